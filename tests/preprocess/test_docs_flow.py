"""The example of docs/flow.md runs, and its table names every method and backend there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preprocess.flows.methods import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "flow.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/flow.md, example", "exec"), {})
    assert capsys.readouterr().out == "(3, 64, 96, 2) float32\n(3, 64, 96, 2)\n"


def test_the_table_is_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\|([^|]*)\|", PAGE, re.MULTILINE)
    told = {method: set(re.findall(r"`(\w+)`", backends)) for method, backends in rows}
    assert told == {name: set(method.backends) for name, method in METHODS.items()}
