"""Random numbers that are a function of their key: no state, no order of calls, the same on every machine for ever.

SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) in counter mode. numpy's
own distribution methods are not used: their streams may change between versions (NEP 19).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MASK = 0xFFFFFFFFFFFFFFFF


def mix(value: int) -> int:
    """SplitMix64's output function on one 64-bit word."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix` of each element."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_of(*parts: int | str) -> int:
    """A 64-bit key for a tuple of whole numbers and words, for example `key_of(seed, "stride", position)`."""
    key = 0
    for part in parts:
        if isinstance(part, str):
            part = int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
        key = mix((key + GOLDEN) & MASK ^ mix(int(part) & MASK))
    return key


def words(key: int, count: int) -> NDArray[np.uint64]:
    """The first `count` 64-bit words under `key`."""
    with np.errstate(over="ignore"):
        counters = np.uint64(key) + np.uint64(GOLDEN) * np.arange(1, count + 1, dtype=np.uint64)
        return mixed(counters)


@dataclass(slots=True)
class Draws:
    """Numbers drawn one after the other under one key. Cheap to make: one per clip and purpose."""

    key: int
    used: int = 0

    @classmethod
    def of(cls, *parts: int | str) -> Draws:
        return cls(key_of(*parts))

    def word(self) -> int:
        """A uniform 64-bit word."""
        self.used += 1
        return mix((self.key + self.used * GOLDEN) & MASK)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high), with 53 random bits; rounding may give `high` where a float has few digits left."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """A whole number in low .. high, both included."""
        return low + (self.word() * (high - low + 1) >> 64)

    def flag(self) -> bool:
        """True half of the time."""
        return bool(self.word() >> 63)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """0 .. count-1 in a drawn order: a stable sort of random words, ties by position."""
        return np.argsort(words(self.word(), count), kind="stable")
