"""The README's commands exist, with the options it shows, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from stmul.__main__ import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(program: str) -> list[str]:
    """The commands of `program` in indented lines and in code spans, without comments; `&&` parts them."""
    lines = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`([^`]+)`", README)
    parts = [part.split("  #")[0].strip() for line in lines for part in line.split("&&")]
    return sorted({part for part in parts if part.startswith(program + " ")})


@pytest.mark.parametrize("line", commands("stmul"))
def test_a_command_of_the_readme_exists_with_its_options(line):
    command, words = main, shlex.split(line)[1:]
    context = click.Context(main)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z-]+", words[0]):
        found = command.get_command(context, words[0])
        assert found is not None, f"{line}: no command {words[0]}"
        command, words = found, words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known, f"{line}: no option {word}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("line", commands("make"))
def test_a_target_of_the_readme_exists(line):
    words = [word for word in shlex.split(line) if word != "make"]
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_has_no_blanks_left():
    assert not re.search(r"^[A-Z_0-9]{4,}$", README, re.MULTILINE)
