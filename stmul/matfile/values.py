"""What the values of a MATLAB file are here, and how much of a file is taken."""

from __future__ import annotations

from dataclasses import dataclass

DEEPEST = 30  # levels of structs and cells in each other; a net has 6
MOST_BYTES = 2**32  # of numbers; two ResNet-152 are 0.5 GB
MOST_PARTS = 2**20  # entries of cells and fields of structs; a net has some thousands
FULLEST = 1032  # bytes that deflate can make of one


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something in a file that is no data."""

    kind: str


@dataclass(slots=True)
class Allowance:
    """What may still be taken from a file: a small one can claim to hold any amount."""

    bytes: int
    parts: int = MOST_PARTS

    def take(self, *, size: int = 0, parts: int = 0) -> None:
        """Takes that much. Raises ValueError where it is more than there is left."""
        self.bytes -= size
        self.parts -= parts
        if self.bytes < 0 or self.parts < 0:
            raise ValueError("it claims to hold more than a file of its size, or any network, does")


def allowance(file_size: int) -> Allowance:
    """The allowance of a file of that many bytes."""
    return Allowance(min(MOST_BYTES, FULLEST * file_size + 2**16))
