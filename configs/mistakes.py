"""What is wrong with settings, one line for each mistake: its source, its place, what was expected, what was found."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a section",
    "model_attributes_type": "a section",
    "dict_type": "a section",
    "invalid_key": "a name",
}


def nearest(word: str, words: Sequence[str]) -> str:
    """`; did you mean X?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def lines(error: ValidationError, root: type[BaseModel], blame: Callable[[str], str]) -> list[str]:
    """One line for each mistake in `error`; `blame(dotted path)` says where the value came from."""
    found = []
    for mistake in error.errors():
        keys = [str(key) for key in mistake["loc"]]
        if (size := _list_size(root, keys, mistake["type"])) is not None:
            what = f"expected a list of {size}, found {_short(mistake['input'])}"
            keys = keys[:-1] if mistake["type"] == "missing" else keys
        else:
            what = _explain(mistake, keys, root)
        path = ".".join(keys)
        place = blame(path)
        named = f"{path}: " if path and not place.startswith(f"--set {path}=") else ""
        found.append(f"{place}: {named}{what}")
    return list(dict.fromkeys(found))


def annotation(root: type[BaseModel], keys: Sequence[str]) -> Any:
    """The type of the setting at `keys`; None where there is no such setting."""
    kind: Any = root
    for key in keys:
        if isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
            kind = kind.model_fields[key].annotation
        elif typing.get_origin(kind) is tuple and key.isdigit():
            kind = typing.get_args(kind)[0]
        else:
            return None
    return kind


def _explain(mistake: Any, keys: Sequence[str], root: type[BaseModel]) -> str:
    kind, found = mistake["type"], mistake.get("input")
    if kind == "extra_forbidden":
        return f"no such setting{_hint(keys, root)}"
    if kind == "missing":
        return "expected a value, found none"
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"expected text of the form {mistake['ctx']['pattern']}, found {_short(found)}"
    if kind == "string_type" and isinstance(found, int | float):
        return f"expected text, found the value {_short(found)}; write it in quotes"
    expected = EXPECTED.get(kind) or mistake["msg"].replace("Input should be ", "")
    hint = ""
    if kind == "literal_error" and isinstance(found, str):
        hint = nearest(found, [word for word in _words(annotation(root, keys)) if isinstance(word, str)])
    if expected.startswith(("greater", "less")):
        expected = f"a number {expected}"
    return f"expected {expected}, found {_short(found)}{hint}"


def _words(kind: Any) -> tuple[Any, ...]:
    """What a Literal allows, or those of a union; nothing for other types."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return tuple(word for part in typing.get_args(kind) for word in _words(part))


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _list_size(root: type[BaseModel], keys: Sequence[str], kind: str) -> int | None:
    """How long the list at `keys` must be, if its length is what is wrong."""
    if kind not in {"missing", "too_long"} or not keys:
        return None
    outer = annotation(root, keys[:-1] if kind == "missing" else keys)
    sizes = typing.get_args(outer)
    return len(sizes) if typing.get_origin(outer) is tuple and Ellipsis not in sizes else None


def _hint(keys: Sequence[str], root: type[BaseModel]) -> str:
    """What may have been meant: a word for a setting, one alike beside it, the same elsewhere; else what there is."""
    *above, leaf = keys
    section = annotation(root, above)
    within = "".join(f"{key}." for key in above)
    other: Mapping[str, str] = getattr(section, "other_names", {})
    if leaf in other:
        return f"; did you mean {within}{other[leaf]}?"
    beside = list(section.model_fields) if section is not None else []
    if close := difflib.get_close_matches(leaf, beside, n=1, cutoff=0.6):
        return f"; did you mean {within}{close[0]}?"
    leaves: dict[str, str] = {}
    for path in _paths(root):
        leaves.setdefault(path.rpartition(".")[2], path)
    if close := difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.75):
        return f"; did you mean {leaves[close[0]]}?"
    return f"; {'.'.join(above) or 'there'} {'has' if above else 'are'} {', '.join(beside)}"


def _paths(root: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every setting's dotted path, the shallow ones first within a section."""
    yield from (above + name for name in root.model_fields)
    for name, field in root.model_fields.items():
        for kind in _models(field.annotation):
            yield from _paths(kind, f"{above}{name}.")


def _models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif typing.get_origin(kind) in (typing.Union, types.UnionType):
        for part in typing.get_args(kind):
            yield from _models(part)
