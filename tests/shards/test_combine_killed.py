"""Filter, merge and append killed before any change they make on the disk: as before, or new, and gone on with."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from shards.check import problems
from shards.split import open_split
from tests.shards.test_combine import contents, made, some

Run = Callable[..., int]


@pytest.fixture(scope="module")
def victim() -> Iterator[Run]:
    """A function (*words, number): `stmul shards WORDS`, killed before its `number`th change; its exit code."""
    program = str(Path(__file__).with_name("combine_victim.py"))
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(*words: object, number: int = 0) -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps([[*map(str, words)], number]), file=process.stdin, flush=True)
            return int(json.loads(process.stdout.readline()))

        yield run
        process.stdin.close()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """`old` and `new`, whose records get other labels in `old`; both have a part `test`."""
    folder = tmp_path / "sources"
    made(folder / "old", [*some("train", "abcde"), *some("train", "f", "kick"), *some("test", "tu")])
    made(folder / "new", [*some("train", "xyz"), *some("test", "w", "kick")], classes=("kick", "climb"))
    return folder


def state(folder: Path) -> dict[str, bytes]:
    """What belongs to the split in `folder`: what its manifest names, and the manifest."""
    with open_split(folder) as split:
        left = ("append.partial/", "train-000003.tar", "train-000004.tar", "test-000001.tar")
        wrong = [str(problem) for problem in problems(split) if "is not in the manifest" not in str(problem)]
        assert not wrong
        named = {file.name for part in split.manifest.parts.values() for file in (*part.shards, part.index)}
    found = contents(folder)
    assert all(
        name in named or name.startswith(left) or name.endswith((".index", "manifest.json", ".partial"))
        for name in found
    )
    return {name: data for name, data in found.items() if name in named or name == "manifest.json"}


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_an_append_killed_anywhere_leaves_the_old_split_or_the_new_one(
    stride: int, victim: Run, sources: Path, tmp_path: Path
) -> None:
    before = contents(sources / "old")
    whole = Path(shutil.copytree(sources / "old", tmp_path / "whole"))
    assert victim("append", whole, sources / "new") == 0
    after = state(whole)
    killed = list[bool]()
    for number in count(1, stride):
        folder = Path(shutil.copytree(sources / "old", tmp_path / "killed"))
        code = victim("append", folder, sources / "new", number=number)
        assert code in (0, -signal.SIGKILL)
        found = state(folder)
        assert found in (before, after)
        killed.append(found == before)
        assert victim("append", folder, sources / "new") == 0
        assert contents(folder) == contents(whole)
        shutil.rmtree(folder)
        if code == 0:
            break
    assert killed == sorted(killed, reverse=True)  # the old one up to a moment, the new one from then on
    assert killed.count(True) > 20 // stride
    assert killed.count(False) >= 3 // stride


def test_an_append_killed_again_and_again_comes_to_its_end(victim: Run, sources: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sources / "old", tmp_path / "killed"))
    for number in (9, 14, 19, 24, 26, 28):
        assert victim("append", folder, sources / "new", number=number) in (0, -signal.SIGKILL)
        state(folder)
    assert victim("append", folder, sources / "new") == 0
    assert victim("append", sources / "old", sources / "new") == 0
    assert contents(folder) == contents(sources / "old")


@pytest.mark.parametrize(
    ("command", "stride"),
    [("merge", 4), ("filter", 4), *(pytest.param(word, 1, marks=pytest.mark.slow) for word in ("merge", "filter"))],
)
def test_a_new_split_killed_anywhere_is_whole_or_absent_and_gone_on_with(
    command: str, stride: int, victim: Run, sources: Path, tmp_path: Path
) -> None:
    words: dict[str, list[object]] = {
        "merge": ["merge", sources / "new", sources / "old"],
        "filter": ["filter", sources / "old", "--classes", "kick,climb"],
    }
    before = contents(sources)

    def run(out: Path, number: int = 0) -> int:
        first, *rest = words[command]
        places = [word for word in rest if isinstance(word, Path)]
        return victim(first, *places, out, *rest[len(places) :], number=number)

    assert run(tmp_path / "whole") == 0
    after, number, code = contents(tmp_path / "whole"), 1 - stride, -1
    while code:
        number += stride
        out = tmp_path / "out"
        code = run(out, number)
        assert code in (0, -signal.SIGKILL)
        assert not out.exists() or contents(out) == after
        assert run(out) == 0
        assert contents(out) == after
        assert not (tmp_path / "out.partial").exists()
        shutil.rmtree(out)
    assert number > 15
    assert contents(sources) == before


def test_what_was_packed_before_is_used_and_checked(victim: Run, sources: Path, tmp_path: Path) -> None:
    out, packed = tmp_path / "out", tmp_path / "out.partial" / "train-000000.tar"
    number = 0
    while not packed.exists():
        number += 1
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
        assert victim("merge", sources / "new", sources / "old", out, number=number) == -signal.SIGKILL
    inode, data = packed.stat().st_ino, packed.read_bytes()
    assert victim("merge", sources / "new", sources / "old", out) == 0
    assert (out / packed.name).stat().st_ino == inode
    (tmp_path / "again.partial").mkdir()
    shutil.copytree(out, tmp_path / "again.partial", dirs_exist_ok=True)
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    for path in (tmp_path / "again.partial").glob("*.tar"):
        path.unlink()
        path.write_bytes(damaged)
    assert victim("merge", sources / "new", sources / "old", tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(out)
