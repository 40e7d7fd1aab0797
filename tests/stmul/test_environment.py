"""Where a result was made is told in words; of the code, the commit and whether it was changed since."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import stmul.environment
from stmul.environment import environment, git_state

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *words: str) -> str:
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    name = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **own, **name}).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of one commit, with the package's folder in it."""
    folder = tmp_path / "code" / "stmul"
    folder.mkdir(parents=True)
    (folder / "environment.py").write_text("one\n")
    git(tmp_path / "code", "init", "-q")
    git(tmp_path / "code", "add", ".")
    git(tmp_path / "code", "commit", "-q", "-m", "one")
    return folder


def test_machine_and_libraries_are_told_and_no_host():
    found = environment()
    assert {"machine", "Python", "torch", "numpy", "stmul"} <= found.keys()
    assert "cores, GPU " in found["machine"]
    node = os.uname().nodename
    assert not any(node and node == word.strip(",") for value in found.values() for word in value.split())


@needs_git
def test_the_commit_is_told_and_whether_tracked_files_differ(checkout):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert git_state(checkout) == f"commit {commit[:12]}"
    (checkout / "notes").touch()
    assert git_state(checkout) == f"commit {commit[:12]}"
    (checkout.parent / "README").write_text("one\n")
    git(checkout.parent, "add", "README")
    assert git_state(checkout) == f"commit {commit[:12]} with changes"


@needs_git
def test_the_variables_of_another_checkout_do_not_count(checkout, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))
    assert git_state(checkout).startswith("commit ")


@needs_git
def test_code_that_is_not_in_a_checkout_tells_no_commit(checkout, tmp_path):
    installed = checkout.parent / ".venv" / "stmul"
    shutil.copytree(checkout, installed)  # a package that was installed into an environment inside some checkout
    assert git_state(installed) == ""
    assert git_state(tmp_path) == ""


def test_without_git_nothing_is_said_of_the_code(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path(stmul.environment.__file__).parent) == ""
    assert "code" not in environment()
