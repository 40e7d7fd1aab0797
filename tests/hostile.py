"""What tests of hostile input share: bounds in time and memory, and ways to spoil bytes that were right."""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

PATIENCE = 60.0  # seconds for what takes milliseconds, on a machine that may stand still for some
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


class Hung(BaseException):
    """No error that anything under test could catch."""


@contextmanager
def patient(seconds: float = PATIENCE) -> Iterator[None]:
    """Ends with Hung what takes longer."""

    def give_up(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def bounded(most: int) -> Iterator[None]:
    """Fails where the block takes longer than PATIENCE, or sets aside more than `most` bytes at any moment."""
    tracemalloc.start()
    try:
        with patient():
            yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak <= most, f"{peak} bytes were set aside, expected at most {most}"
    finally:
        tracemalloc.stop()


@st.composite
def spoiled(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` after one to four accidents: bits flipped, pieces cut out, doubled, moved or put in, numbers grown."""
    for _ in range(draw(st.integers(1, 4))):
        place = st.integers(0, len(data))
        start, stop = sorted((draw(place), draw(place)))
        kind = draw(st.sampled_from(["flip", "cut", "end", "double", "splice", "insert", "grow"]))
        if kind == "flip" and start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << draw(st.integers(0, 7))]) + data[start + 1 :]
        elif kind == "cut":
            data = data[:start] + data[stop:]
        elif kind == "end":
            data = data[:stop]
        elif kind == "double":
            data = data[:stop] + data[start:]
        elif kind == "splice":
            other = draw(place)
            data = data[:other] + data[start:stop] + data[other + stop - start :]
        elif kind == "insert":
            data = data[:start] + draw(st.binary(max_size=20)) + data[start:]
        elif kind == "grow":
            size, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            number = draw(st.sampled_from(NUMBERS)) % (1 << 8 * size)
            data = data[:start] + number.to_bytes(size, order) + data[start + size :]  # type: ignore[arg-type]
    return data


def paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of a tree of maps and lists, its own among them."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in below for place in paths(value, (*path, key)))]


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """`tree` with `value` at `path`."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = replaced(tree[path[0]], path[1:], value)
    return copy


def nested(depth: int, inner: Any = 0, *, key: str | None = None) -> Any:
    """`inner` in `depth` lists, or in maps under `key`."""
    for _ in range(depth):
        inner = [inner] if key is None else {key: inner}
    return inner
