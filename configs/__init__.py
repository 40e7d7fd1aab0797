"""Settings: typed, frozen trees read from YAML by name or path, then changed by `key=value`; mistakes are clear lines.

A file has one top-level section per reader: `preprocess` for building shards, the others for training and testing.
Each reader takes its own sections and leaves those that it is told belong to others.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from configs import text
from configs.mistakes import annotation, lines, nearest

__all__ = ["SECTIONS", "Named", "Settings", "SettingsError", "dump", "load", "names", "nearest"]

FOLDER = Path(__file__).parent
SECTIONS = ("preprocess", "network", "data", "train", "evaluate", "experiment")


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )
    other_names: ClassVar[Mapping[str, str]] = {}  # words people try -> the setting they mean, from this section

    @field_validator("*", mode="before")
    @classmethod
    def numbers_are_no_switches(cls, value: Any, info: ValidationInfo) -> Any:
        """The value; true and false are not taken for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise PydanticCustomError("float_type", "a number")
        return value


class SettingsError(ValueError):
    """A setting that cannot be used; the message names its source, its place, what was found and what was expected.

    A setting may be a URL; the user and password in it, and its query, are not repeated.
    """

    def __init__(self, message: str) -> None:
        super().__init__(text.without_secrets(message))


class Named(str):
    """A change (`a.b=c`) that was asked for by an option with a name of its own; mistakes in it are told as that."""

    def __new__(cls, option: str, key: str, value: Any) -> Self:
        # As JSON, which YAML reads as what it is: a folder called 7 stays text.
        made = super().__new__(cls, f"{key}={json.dumps(value)}")
        made.words = option if value is True else f"{option} {value}"
        return made

    words: str  # "--flow tvl1"


S = TypeVar("S", bound=Settings)
Tree = dict[str, Any]
Layer = tuple[str, Tree]  # a source's name for messages, and what it says


def names() -> list[str]:
    """The names of the shipped configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(root: type[S], source: str | Path | None = None, overrides: Sequence[str] = ()) -> S:
    """The settings in `source` (a shipped name or a path; None for all defaults) with `overrides` (`a.b=c`) on top.

    A file may build on another: `extends: name or path` (relative to the file). A section changes what it names and
    leaves the rest at its defaults. Sections of the file that `root` lacks but another command reads are left alone.
    Raises SettingsError, one line for each mistake, before anything is done.
    """
    layers = _layers(source) if source is not None else []
    tree: Tree = {}
    for _, said in layers:
        tree = _merged(tree, said)
    tree = {key: value for key, value in tree.items() if key in root.model_fields or key not in SECTIONS}
    _validate(root, tree, lambda path: _layer_of(layers, path))
    changes: dict[str, str] = {}  # key -> the override as given; the last one of a key counts
    for override in overrides:
        key, value = _split(root, override)
        changes[key] = override
        _put(tree, key.split("."), value)

    def blame(path: str) -> str:
        above = [said for key, said in changes.items() if key == path or path.startswith(key + ".")]
        below = [said for key, said in changes.items() if not path or key.startswith(path + ".")]
        return ", ".join(map(_said, above or below)) or _layer_of(layers, path)

    return _validate(root, tree, blame)


def _said(change: str) -> str:
    return change.words if isinstance(change, Named) else f"--set {change}"


def dump(settings: Settings) -> str:
    """The whole tree as YAML, as it is written beside results; `load` reads it back."""
    return text.write(settings.model_dump(mode="json"))


def _layers(source: str | Path, beside: Path | None = None, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """What `source` says, after what it extends."""
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"} and "/" not in str(source):
        path = FOLDER / f"{source}.yaml"
        if not path.exists():
            hint = nearest(str(source), names())
            raise SettingsError(f"no configuration named {str(source)!r}{hint} (shipped: {', '.join(names())})")
    elif beside is not None:
        path = beside / path
    place = f"configs/{path.name}" if path.parent == FOLDER else str(path)
    if path.resolve() in seen:
        raise SettingsError(f"{place}: extends itself, by way of {', '.join(one.name for one in seen)}")
    try:
        tree = text.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{place}: no readable configuration file ({error.strerror}; shipped names: {', '.join(names())})"
        ) from error
    except ValueError as error:
        raise SettingsError(f"{place}: not readable as YAML: {error}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise SettingsError(f"{place}: expected sections ({', '.join(SECTIONS)}), found {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return [(place, tree)]
    if not isinstance(parent, str):
        raise SettingsError(f"{place}: extends: expected a name or a path, found {parent!r}")
    return [*_layers(parent, path.parent, (*seen, path.resolve())), (place, tree)]


def _layer_of(layers: Sequence[Layer], path: str) -> str:
    """The source that has the last word on `path`, or on most of it."""

    def known(tree: Any) -> int:
        depth = 0
        for key in path.split("."):
            if not isinstance(tree, dict) or key not in tree:
                break
            tree, depth = tree[key], depth + 1
        return depth

    best = max(range(len(layers)), key=lambda number: (known(layers[number][1]), number), default=None)
    return "defaults" if best is None else layers[best][0]


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> Tree:
    both = {k: _merged(base[k], v) for k, v in top.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return {**base, **top, **both}


def _split(root: type[Settings], override: str) -> tuple[str, Any]:
    key, equals, said = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SettingsError(f"--set {override}: expected key=value, for example train.seed=1")
    section = key.partition(".")[0]
    if section in SECTIONS and section not in root.model_fields:
        here = ", ".join(name for name in SECTIONS if name in root.model_fields)
        raise SettingsError(f"--set {override}: another command reads {section}; this one reads {here}")
    kind = annotation(root, key.split("."))
    words = kind is str or (typing.get_origin(kind) is Literal and isinstance(typing.get_args(kind)[0], str))
    if words and said[:1] not in {"'", '"'}:
        return key, said  # text is text, also where it looks like a number: a run named 001
    try:
        return key, text.parse(said)
    except ValueError:
        return key, said


def _put(tree: Tree, keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        below = tree.get(key)
        tree[key] = dict(below) if isinstance(below, dict) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _validate(root: type[S], tree: Tree, blame: Callable[[str], str]) -> S:
    try:
        return root.model_validate(_completed(root.model_construct(), tree))
    except ValidationError as error:
        raise SettingsError("\n".join(lines(error, root, blame))) from None


def _completed(default: Any, tree: Tree) -> Tree:
    """`tree` with what it does not say taken from `default`, section by section.

    pydantic would complete a section from its class, and forget what the section above gives it as defaults.
    """
    whole: Tree = dict(default.__dict__)
    for key, value in tree.items():
        section = isinstance(whole.get(key), Settings)
        if section and isinstance(value, dict):
            whole[key] = _completed(whole[key], value)
        elif not (section and value is None):  # a section with nothing in it says nothing
            whole[key] = value
    return whole
