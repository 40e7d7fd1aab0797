"""What a record is: one video, both of its streams as JPEGs, its class, and how all of it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shards.errors import FormatError

LEVELS_PER_PIXEL = 6.375  # 255 levels over 40 pixels: -20 .. 20
ZERO_LEVEL = 127.5  # no motion: half way between two levels, so that mirroring is exactly 255 - q

Blob = bytes | memoryview
Table = NDArray[np.uint32]
Plain = str | int | float | bool | None  # what settings stored in a record may be


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frames:
    """The JPEGs of one stream, one after the other in one blob; JPEG i is `blob[ends[i - 1]:ends[i]]`.

    Flow has two gray JPEGs for each pair of frames: x0 y0 x1 y1 ..., so that neighbouring pairs are one range.
    """

    width: int  # pixels
    height: int
    components: int  # 1 gray, 3 colour; of the JPEGs as stored
    encoder: Mapping[str, Plain]  # quality, subsampling, library version
    blob: Blob
    ends: Table  # (images,) bytes from the start of the blob
    crcs: Table  # (images,) CRC-32C of each JPEG

    @classmethod
    def of(
        cls, jpegs: Iterable[Blob], *, width: int, height: int, components: int, encoder: Mapping[str, Plain]
    ) -> Frames:
        """The frames that `jpegs` are, in their order. Raises FormatError at 4 GiB, where the table's offsets end."""
        parts = [bytes(jpeg) for jpeg in jpegs]
        ends = np.cumsum([len(part) for part in parts], dtype=np.uint64)
        if len(ends) and ends[-1] >= 2**32:
            raise FormatError(f"a stream of {int(ends[-1])} bytes: a record holds less than 4 GiB; cut the video")
        crcs = np.array([google_crc32c.value(part) for part in parts], dtype=np.uint32)
        return cls(
            width=width,
            height=height,
            components=components,
            encoder=dict(encoder),
            blob=b"".join(parts),
            ends=ends.astype(np.uint32),
            crcs=crcs,
        )

    def __len__(self) -> int:
        """How many JPEGs."""
        return len(self.ends)

    def __getitem__(self, image: int) -> memoryview:
        """The bytes of JPEG `image`."""
        if not 0 <= image < len(self.ends):
            raise IndexError(f"image {image} of {len(self.ends)}")
        start = int(self.ends[image - 1]) if image else 0
        return memoryview(self.blob)[start : int(self.ends[image])]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The file a record was made from."""

    sha256: str  # hex, of the file's bytes (extracted frames: of the frames' names and bytes in order)
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowMade:
    """How the flow was computed. Values are pixels of the full-resolution frame whatever the stored scale."""

    method: str  # "tvl1", "dis", "farneback", "extracted" (taken over)
    parameters: Mapping[str, Plain]
    library: str  # name and version
    levels_per_pixel: float = LEVELS_PER_PIXEL
    zero: float = ZERO_LEVEL
    scale: float = 1.0  # stored size / frame size, before sides are rounded down to whole pixels
    dropped: int = 0  # flow images left out because there were as many as frames


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Record:
    """One video of n frames: its name, its class, n RGB frames and the n - 1 flow pairs between them.

    Pair k is the motion from frame k to frame k + 1.
    """

    name: str  # "v_Archery_g01_c01"
    label: int  # 0 .. K-1
    class_name: str
    fps: tuple[int, int]  # numerator, denominator; (0, 1) unknown
    source: Source
    decoded_frames: int  # frames the source gave
    header_frames: int  # frames its container's header promised; 0 unknown
    rgb: Frames
    flow: Frames
    flow_made: FlowMade

    def __post_init__(self) -> None:
        if len(self.rgb) < 1:
            raise FormatError(f"{self.name}: no frames")
        needed = 2 * (len(self.rgb) - 1)
        if len(self.flow) != needed:
            raise FormatError(f"{self.name}: {len(self.rgb)} frames need {needed} flow images, found {len(self.flow)}")
        if self.label < 0:
            raise FormatError(f"{self.name}: label {self.label}; labels count from 0")

    @property
    def frames(self) -> int:
        """How many frames, n."""
        return len(self.rgb)


def quantise(flow_px: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Flow in pixels as the levels that are stored: round half to even of 255 (v + 20) / 40, clipped to 0 .. 255."""
    levels = np.rint((flow_px.astype(np.float64) + 20.0) * LEVELS_PER_PIXEL)
    return np.clip(levels, 0, 255).astype(np.uint8)


def dequantise(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stored levels as pixels of flow."""
    return ((levels.astype(np.float32) - ZERO_LEVEL) / LEVELS_PER_PIXEL).astype(np.float32)
