"""Settings: typed, frozen trees read from YAML by name or path, then changed by `key=value`; wrong input is one clear line.

A file has one top-level section per reader: `preprocess` for building shards, the others for training and testing.
Each reader takes its own sections and leaves those that it is told belong to others.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

FOLDER = Path(__file__).parent
SECTIONS = ("preprocess", "network", "data", "train", "evaluate", "experiment")


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


class SettingsError(ValueError):
    """A setting that cannot be used; the message names its source, its place, what was found and what was expected."""


S = TypeVar("S", bound=Settings)


def names() -> list[str]:
    """The names of the shipped configurations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(root: type[S], source: str | Path | None = None, overrides: Sequence[str] = ()) -> S:
    """The settings in `source` (a shipped name or a path; None for all defaults) with `overrides` (`a.b=c`) on top.

    Sections of the file that `root` lacks but another command reads are left alone.
    Raises SettingsError, one line for each mistake, before anything is done.
    """
    place, tree = _read(source) if source is not None else ("defaults", {})
    tree = {key: value for key, value in tree.items() if key in root.model_fields or key not in SECTIONS}
    _validate(root, tree, lambda path: place)
    changes = [_split(override) for override in overrides]
    for key, value, _ in changes:
        _put(tree, key.split("."), value)

    def blame(path: str) -> str:
        guilty = [text for key, _, text in changes if key == path or path.startswith(key + ".")]
        guilty = guilty or [text for key, _, text in changes if not path or key.startswith(path + ".")]
        return ", ".join(f"--set {text}" for text in guilty) or place

    return _validate(root, tree, blame)


def dump(settings: Settings) -> str:
    """The whole tree as YAML, as it is written beside results; `load` reads it back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def nearest(word: str, words: Sequence[str]) -> str:
    """`; did you mean X?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _read(source: str | Path) -> tuple[str, dict[str, Any]]:
    path = Path(source)
    if path.suffix not in {".yaml", ".yml"} and "/" not in str(source):
        path = FOLDER / f"{source}.yaml"
        if not path.exists():
            hint = nearest(str(source), names())
            raise SettingsError(f"no configuration named {str(source)!r}{hint} (shipped: {', '.join(names())})")
    if not path.is_file():
        raise SettingsError(f"{path}: no such configuration file (shipped names: {', '.join(names())})")
    place = f"configs/{path.name}" if path.parent == FOLDER else str(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{place}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise SettingsError(f"{place}: expected sections ({', '.join(SECTIONS)}), found {type(tree).__name__}")
    if (parent := tree.pop("extends", None)) is not None:
        _, base = _read(parent)
        tree = _merged(base, tree)
    return place, tree


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    both = {k: _merged(base[k], v) for k, v in top.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return {**base, **top, **both}


def _split(override: str) -> tuple[str, Any, str]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"--set {override}: expected key=value, for example train.seed=1")
    try:
        return key.strip(), yaml.safe_load(text), override
    except yaml.YAMLError:
        return key.strip(), text, override


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        below = tree.get(key)
        tree[key] = dict(below) if isinstance(below, dict) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _validate(root: type[S], tree: Mapping[str, Any], blame: Any) -> S:
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        known = list(_paths(root))
        lines = []
        for mistake in error.errors():
            path = ".".join(str(key) for key in mistake["loc"] if not (isinstance(key, str) and "[" in key))
            place = blame(path)
            named = f"{path}: " if path and not place.startswith(f"--set {path}=") else ""
            lines.append(f"{place}: {named}{_explain(mistake, path, known)}")
        raise SettingsError("\n".join(dict.fromkeys(lines))) from None


EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a section",
    "model_attributes_type": "a section",
    "dict_type": "a section",
}


def _explain(mistake: Any, path: str, known: Sequence[str]) -> str:
    kind, found = mistake["type"], mistake.get("input")
    if kind == "extra_forbidden":
        leaf = path.rpartition(".")[2]
        by_leaf = {name.rpartition(".")[2]: name for name in known}
        hint = nearest(path, known) or (f"; did you mean {by_leaf[leaf]}?" if leaf in by_leaf else "")
        return f"no such setting{hint}"
    if kind == "missing":
        return "expected a value, found none"
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    expected = EXPECTED.get(kind) or mistake["msg"].replace("Input should be ", "").replace("Input should have", "to have")
    return f"expected {expected}, found {found!r}"


def _paths(root: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in root.model_fields.items():
        yield above + name
        for kind in _models(field.annotation):
            yield from _paths(kind, f"{above}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _models(part)
