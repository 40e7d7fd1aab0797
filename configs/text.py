"""The YAML that settings are written in: YAML 1.2's plain rules, so that `yes` is a word and `1e-3` a number."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

# PyYAML speaks YAML 1.1: there `no` is false, `1e-3` a word, `1:30` ninety and `010` eight.
PLAIN = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (the name and kind are PyYAML's)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping; a key that stands twice is refused, since the first would be lost without a word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    # Both dialects' rules: text that either would take for something else is quoted.
    yaml_implicit_resolvers = {key: list(rules) for key, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


def _word(dumper: _Dumper, word: str) -> yaml.ScalarNode:
    # PyYAML would break the line at these, and read them back as blanks.
    quotes = '"' if set(word) & set("\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", word, style=quotes)


_Dumper.add_representer(str, _word)
for tag, pattern, first in PLAIN:
    for kind in (_Loader, _Dumper):
        kind.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), [*first, ""] if "null" in tag else [*first])


def parse(text: str) -> Any:
    """What `text` says. Raises ValueError, one line with the place, where it is no YAML."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{place}{what}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write(tree: Any) -> str:
    """`tree` as text that `parse` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def without_secrets(message: str) -> str:
    """`message` with URLs in it that have lost user, password and query: what a wrong setting is shown as."""
    message = re.sub(r"(:/{1,2})[^\s]*@", r"\1", message)
    return re.sub(r"(:/{1,2}[^\s?]*)\?\S*?(?=[\]}:,.;'\"]*(?:\s|$))", r"\1", message)
