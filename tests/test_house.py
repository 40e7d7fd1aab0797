"""The house is as it is drawn: arrows point one way, weight stays where it is needed, every command explains itself."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stmul.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
ARROWS = {
    "configs": set(),
    "shards": {"configs"},
    "preprocess": {"configs", "shards"},
    "stmul": {"configs", "shards"},
}
# Where a library may be imported at all, wherever in a module the import stands.
PLACES = {
    "torch": r"stmul/.*|preprocess/(tvl1/\w+|flows/(raft|methods))\.py",
    "torchvision": r"stmul/.*|preprocess/flows/raft\.py",
    "triton": r"preprocess/tvl1/gpu\w*\.py",
    "numba": r"preprocess/tvl1/(lanes|machine_code)\.py",
    "cv2": r"preprocess/.*|stmul/resize\.py",
    "av": r"preprocess/.*",
    "webdataset": r"shards/(writer|adapter)\.py",
    "lmdb": r"shards/.*",
    "obstore": r"shards/stores/.*",
    "boto3": r"shards/stores/.*",
    "h5py": r"stmul/matfile/hdf5\.py",
    "scipy": r"nothing: a wrong byte in a MATLAB file can end its process",
    "simplejpeg": r"(stmul|preprocess)/.*",
}
HEAVY = {"torch", "torchvision", "cv2", "av", "webdataset", "boto3"}
MODULES = sorted(path for package in ARROWS for path in (ROOT / package).rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Every node of a module, its functions' insides too."""
    return list(ast.walk(ast.parse(text_of(path))))


def imported(path: Path) -> Iterator[str]:
    """The dotted name of every module that `path` imports, also inside functions, and by `import_module("name")`."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in {
            "import_module",
            "__import__",
        }:
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_arrows_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    foreign = {name.partition(".")[0] for name in imported(path)} & ARROWS.keys() - {package}
    assert foreign <= ARROWS[package], f"{named(path)} imports {foreign - ARROWS[package]}"


def test_every_package_has_its_place_in_the_drawing():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == ARROWS.keys()


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_nobody_imports_a_command_line(path):
    assert not [name for name in imported(path) if re.search(r"(^|\.)cli(\.|$)", name)]
    # By name only the one command does, when a group is used.
    if path != ROOT / "stmul" / "__main__.py":
        assert not re.findall(r"""["'](?:configs|shards|preprocess|stmul)\.cli\b""", text_of(path))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_libraries_stay_where_they_are_needed(path):
    strays = {name for name in imported(path) if name in PLACES and not re.fullmatch(PLACES[name], named(path))}
    assert not strays, f"{named(path)} imports {strays}"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_says_what_it_is_and_is_not_too_long(path):
    lines = len(text_of(path).splitlines())
    assert lines <= 400, f"{named(path)} has {lines} lines: look for the seam"
    docstring = ast.get_docstring(ast.parse(text_of(path)))
    if lines:
        assert docstring, f"{named(path)} has no docstring"
        assert docstring.splitlines()[0].endswith((".", ":", "?")), f"{named(path)}: its first line is no sentence"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_nothing_runs_a_shell_or_code_out_of_data(path):
    for node in nodes_of(path):
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        where = f"{named(path)}:{node.lineno}: {called}"
        assert called not in {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"}, where
        assert keywords.get("shell", "False") == "False", where
        if called == "torch.load":
            assert keywords.get("weights_only") == "True", where
        if called in {"np.load", "numpy.load"}:
            assert keywords.get("allow_pickle", "False") == "False", where


def python(script: str, *arguments: str) -> list[str]:
    """What a fresh interpreter prints, in words."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.check_output(command, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).split()


def test_reading_a_split_loads_nothing_heavy(make_split, tmp_path):
    make_split(tmp_path / "split1", train=2, test=1, frames=3)
    script = """
import sys, shards, shards.order, shards.stream
from shards.format import decode
from shards.split import open_split
with open_split(sys.argv[1]) as split:
    print(decode(split.read("train", 0)).frames)
print(*sys.modules)
"""
    frames, *modules = python(script, str(tmp_path / "split1"))
    assert int(frames) >= 3
    assert "shards.split" in modules
    assert not HEAVY & set(modules)


@pytest.mark.parametrize("module", ["configs", "stmul.config", "preprocess.config"])
def test_settings_load_nothing_heavy(module):
    assert not (HEAVY | {"numpy", "click"}) & set(python(f"import sys, {module}; print(*sys.modules)"))


# The command line


def commands(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command and group with its words."""
    yield " ".join(("stmul", *path)), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, f"{path} {name}"
            yield from commands(below, (*path, name))


ALL = dict(commands())


@pytest.mark.parametrize("words", ALL)
def test_every_command_explains_itself_with_an_example(words):
    result = CliRunner().invoke(main, [*words.split()[1:], "--help"])
    assert result.exit_code == 0, result.output
    text = ALL[words].help or ""
    assert text.split("\n")[0].strip().endswith((".", ":")), f"{words}: its first line is no sentence"
    assert re.search(rf"^\s*{words}( |$)", text, re.MULTILINE), f"{words}: no line shows how to use it"


@pytest.mark.parametrize("words", ALL)
def test_every_option_says_what_it_does(words):
    silent = [option.name for option in ALL[words].params if isinstance(option, click.Option) and not option.help]
    assert not silent


def test_the_one_command_finds_every_group_and_command_by_name():
    for name, (place, text) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), click.Command)
        assert text.endswith(".")
        assert name in CliRunner().invoke(main, ["--help"]).output


def test_an_unknown_command_suggests_the_nearest_one():
    result = CliRunner().invoke(main, ["trian"])
    assert result.exit_code == 2
    assert "No such command 'trian'; did you mean train?" in result.output


def test_the_command_knows_its_version():
    assert re.search(r"\d+\.\d+", CliRunner().invoke(main, ["--version"]).output)


def test_no_help_loads_anything_heavy():
    script = """
import sys
from click.testing import CliRunner
from stmul.__main__ import main
for words in sys.argv[1:]:
    assert CliRunner().invoke(main, [*words.split()[1:], "--help"]).exit_code == 0, words
print(*sys.modules)
"""
    assert not (HEAVY | {"numpy", "PIL", "matplotlib", "rich.console"}) & set(python(script, *ALL))


def test_help_answers_in_less_than_half_a_second():
    def seconds() -> float:
        """CPU time of one fresh process: what the wall clock shows where nobody else is working."""
        begin = os.times()
        subprocess.run([sys.executable, "-m", "stmul", "--help"], check=True, capture_output=True, cwd=ROOT)
        end = os.times()
        return end.children_user + end.children_system - begin.children_user - begin.children_system

    assert min(seconds() for _ in range(5)) < 0.5  # it takes a quarter of that
