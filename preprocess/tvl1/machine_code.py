"""Python functions as machine code, compiled when first called and kept on disk for later processes.

Compiling takes seconds, loading a moment. The code lies in a folder that is named by all that it depends on: the
sources in this package that are compiled, the versions of Python and numba, and the processor. So a changed source, or
another kind of machine on a shared installation, never runs old code, and processes that start at the same moment
write the same bytes. Numba's own cache looks only at the file that a function stands in, and mixes kinds of machines.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.registry import cpu_target

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

SOURCES = ("iterate.py", "lanes.py", "machine_code.py", "median.py", "warp.py")


def compiled(function: Compiled) -> Compiled:
    """`function` compiled; beside it others may run, in other threads."""
    machine = njit(nogil=True, error_model="numpy")(function)
    if folder() is not None:
        machine._cache = Kept(function)  # what njit(cache=True) does with numba's own
    return cast(Compiled, machine)


@functools.cache
def folder() -> Path | None:
    """Where code is kept: NUMBA_CACHE_DIR, else beside the sources, else in the user's cache; None: nowhere."""
    here = Path(__file__).parent
    facts = [sys.version, numba.__version__, repr(cpu_target.target_context.codegen().magic_tuple())]
    digest = hashlib.sha256("\n".join(facts).encode())
    for source in SOURCES:
        digest.update((here / source).read_bytes())
    name = f"stmul-{digest.hexdigest()[:24]}"
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    asked = os.environ.get("NUMBA_CACHE_DIR")
    for place in [Path(asked)] if asked else [here / "__pycache__", users]:
        try:
            (place / name).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place / name).close()
        except OSError:
            continue
        return place / name
    return None


class Place:
    """Where numba is told to keep a function."""

    def __init__(self, function: Any) -> None:
        self.line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Any, file: str) -> Place:
        return cls(function)

    def ensure_cache_path(self) -> None:
        """The folder was made before."""

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return str(folder())

    def get_disambiguator(self) -> str:
        return str(self.line)


class Form(CompileResultCacheImpl):  # type: ignore[misc]
    """How code is written."""

    _locator_classes = (Place,)


class Kept(FunctionCache):  # type: ignore[misc]
    """The code of one function on disk. What cannot be read is compiled again; what cannot be written is not kept."""

    _impl_class = Form

    def load_overload(self, signature: Any, context: Any) -> Any:
        try:
            return super().load_overload(signature, context)
        except Exception:  # a file that a power cut left empty may raise anything
            return None

    def save_overload(self, signature: Any, code: Any) -> None:
        for _ in range(2):
            try:
                super().save_overload(signature, code)
            except Exception:  # a full disk; or a damaged index: the second time it is new
                with suppress(OSError):
                    self.flush()
            else:
                return
