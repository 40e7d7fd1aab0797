"""The package is light: reading shards loads none of the heavy libraries, and asking for help loads nothing at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import shards
from shards.manifest import Manifest

HEAVY = ("torch", "torchvision", "cv2", "av", "webdataset", "obstore", "boto3", "PIL", "pydantic")


def loaded(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", f"{script}\nimport sys; print(*sys.modules)", *arguments]
    return subprocess.check_output(command, text=True).split()


def test_importing_shards_loads_nothing_else() -> None:
    assert not {"numpy", "lmdb", "msgpack", *HEAVY} & set(loaded("import shards"))


def test_reading_loads_nothing_heavy(tmp_path: Path, make_split: Callable[..., Manifest]) -> None:
    make_split(tmp_path / "split1", train=2, test=1, frames=2)
    script = (
        "import sys; import shards\n"
        "with shards.open_split(sys.argv[1]) as split:\n"
        "    shards.decode(split.read('train', 0))\n"
        "    assert not list(shards.problems(split))\n"
        "shards.copy_split(sys.argv[1], sys.argv[1] + '.lmdb')\n"
    )
    modules = set(loaded(script, str(tmp_path / "split1")))
    assert "lmdb" in modules
    assert not modules & set(HEAVY)


def test_every_name_is_there() -> None:
    for name in shards.__all__:
        assert getattr(shards, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shards.__getattr__("nothing")
