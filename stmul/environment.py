"""Where a result was made: the machine, the libraries, and the state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "torchvision", "numpy", "simplejpeg", "stmul")


def environment() -> dict[str, str]:
    """The machine, the libraries and the code, in words; nothing that names a person or a host."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    state = git_state(Path(__file__).parent)
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, GPU {gpu}",
        "Python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        **({"code": state} if state else {}),
    }


def git_state(folder: Path) -> str:
    """The commit that `folder` is checked out at, `with changes` where its tracked files differ; "" without git.

    A package that is installed lies in no checkout of its own: only a folder whose files git tracks counts.
    """
    if not _git(folder, "ls-files", "--error-unmatch", Path(__file__).name):
        return ""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/")
    return f"commit {commit[:12]}{' with changes' if changed else ''}" if commit else ""


def _git(folder: Path, *words: str) -> str:
    """What a git command answers; "" where there is no git, no checkout, or no answer within some seconds."""
    # Without GIT_DIR and the like, which would speak of another checkout; without its optional lock on the index.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *words],
            env=own,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return ""
    return done.stdout.strip()
