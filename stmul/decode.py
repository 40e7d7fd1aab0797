"""Undecoded clips -> one flat uint8 arena with a table of what lies where.

The unit is the sub-batch. A frame used by several instants is decoded once; the table says which instant wants which.
On the CPU simplejpeg decodes in the reading threads, without the GIL; on a GPU torchvision (nvJPEG) decodes a sub-batch
at once, when it is asked for there. CPU decoders agree to the bit; a GPU's is exempt, and named in a run's settings.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import CorruptRecordError
from shards.format import MOST_PIXELS, PIXELS_PER_BYTE
from shards.stream import Clip
from stmul.arenas import Arenas
from stmul.clips import NO_PAIR, Instants


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Placed:
    """Where a decoded clip lies in the arena, and how its instants are made of its frames."""

    position: int
    record: int
    name: str
    label: int
    size: tuple[int, int]  # height and width of the video's RGB frames, whether they are read or not
    rgb: tuple[int, int, int, int]  # offset, frames F, height, width; of (F, H, W, 3)
    flow: tuple[int, int, int, int]  # offset, planes 2P, height, width; of (2P, H, W), x and y in turn
    rgb_of: NDArray[np.int64]  # (T,) which of the F frames
    flow_of: NDArray[np.int64]  # (T, L) which of the P pairs, NO_PAIR for no motion
    valid: bool = True  # False: damaged and left out; F and P are 0


class Loaded(Protocol):
    """A sub-batch of clips, decoded or yet to be decoded."""

    def to(self, device: torch.device) -> Decoded:
        """The clips decoded, on `device`."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A sub-batch of decoded clips."""

    arena: Tensor  # uint8, flat; pinned on request
    clips: tuple[Placed, ...]

    def to(self, device: torch.device) -> Decoded:
        """The same on `device`, copied without waiting where the arena is pinned."""
        return replace(self, arena=self.arena.to(device, non_blocking=True))

    def rgb_FHWC(self, clip: Placed) -> Tensor:
        """The clip's RGB frames as they lie in the arena, uint8."""
        offset, frames, height, width = clip.rgb
        return self.arena[offset : offset + frames * height * width * 3].view(frames, height, width, 3)

    def flow_PHW(self, clip: Placed) -> Tensor:
        """The clip's flow planes, x0 y0 x1 y1 ..., as they lie in the arena, uint8."""
        offset, planes, height, width = clip.flow
        return self.arena[offset : offset + planes * height * width].view(planes, height, width)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A sub-batch of clips that are decoded where they are needed."""

    clips: tuple[Clip[Instants], ...]

    def to(self, device: torch.device) -> Decoded:
        """The clips decoded on `device` by torchvision. Raises CorruptRecordError as `decode`."""
        from torchvision.io import ImageReadMode, decode_jpeg  # takes a second: its users alone pay for it

        _check_sizes(self.clips)
        placed, size = placed_in_arena(self.clips)
        decoded = Decoded(torch.empty(size, dtype=torch.uint8, device=device), placed)
        targets = [target for clip in placed for target in (*decoded.rgb_FHWC(clip), *decoded.flow_PHW(clip))]
        jpegs = [(jpeg, clip) for clip in self.clips for jpeg in (*clip.rgb, *clip.flow)]
        for mode, colour in ((ImageReadMode.RGB, True), (ImageReadMode.GRAY, False)):
            chosen = [number for number, target in enumerate(targets) if (target.dim() == 3) == colour]
            data = [torch.from_numpy(np.frombuffer(jpegs[number][0], np.uint8).copy()) for number in chosen]
            try:
                with warnings.catch_warnings():
                    # Torchvision 0.29 announces that TorchCodec will take this over; it does what it did.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    images_CHW = decode_jpeg(data, mode=mode, device=device) if data else []
            except RuntimeError as error:
                names = ", ".join(sorted({clip.row.name for clip in self.clips}))
                raise CorruptRecordError(f"one of {names}: a frame that cannot be decoded: {error}") from error
            for number, image_CHW in zip(chosen, images_CHW, strict=True):
                image = image_CHW.permute(1, 2, 0) if colour else image_CHW[0]
                if image.shape != targets[number].shape:
                    clip = jpegs[number][1]
                    raise _wrong_size(clip.row.name, tuple(image.shape), tuple(targets[number].shape))
                targets[number].copy_(image)
        return decoded


def placed_in_arena(clips: Sequence[Clip[Instants]]) -> tuple[tuple[Placed, ...], int]:
    """Where each clip is to lie in an arena, and the arena's bytes."""
    placed, size = [], 0
    for clip in clips:
        row, chosen = clip.row, clip.chosen
        rgb = (size, len(clip.rgb), row.rgb.height, row.rgb.width)
        size += 3 * rgb[1] * rgb[2] * rgb[3]
        flow = (size, len(clip.flow), row.flow.height, row.flow.width)
        size += flow[1] * flow[2] * flow[3]
        flow_of = np.where(chosen.flow == NO_PAIR, NO_PAIR, np.searchsorted(chosen.pairs, chosen.flow))
        placed.append(
            Placed(
                position=clip.position,
                record=row.record,
                name=row.name,
                label=row.label,
                size=(row.rgb.height, row.rgb.width),
                rgb=rgb,
                flow=flow,
                rgb_of=np.searchsorted(chosen.frames, chosen.rgb),
                flow_of=flow_of,
                valid=clip.valid,
            )
        )
    return tuple(placed), size


def decode(clips: Sequence[Clip[Instants]], *, arenas: Arenas | None = None, pinned: bool = False) -> Decoded:
    """The clips decoded into one arena, in their order: out of `arenas`, or in new memory, pinned on request.

    Raises CorruptRecordError where a JPEG is not what its record says, before memory is set aside for its pixels.
    """
    _check_sizes(clips)
    placed, size = placed_in_arena(clips)
    if arenas is not None and not pinned:
        arena = arenas.take([size])
    else:
        arena = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)  # torch keeps pinned memory for its next use
    decoded = Decoded(arena, placed)
    for clip, place in zip(clips, placed, strict=True):
        _fill(decoded.rgb_FHWC(place).numpy(), clip.rgb, "RGB", clip.row.name)
        _fill(decoded.flow_PHW(place).numpy()[..., None], clip.flow, "GRAY", clip.row.name)
    return decoded


def _check_sizes(clips: Sequence[Clip[Instants]]) -> None:
    """Raises CorruptRecordError where a JPEG's own header says another size than its record, or an absurd one."""
    for clip in clips:
        for jpegs, place, colour in ((clip.rgb, clip.row.rgb, "RGB"), (clip.flow, clip.row.flow, "GRAY")):
            height, width = place.height, place.width
            for jpeg in jpegs:
                try:
                    found = simplejpeg.decode_jpeg_header(jpeg)[:2]  # 2 us: it looks at the header alone
                except (ValueError, KeyError) as error:  # the latter for kinds of JPEG that it does not know
                    named = f"{clip.row.name}: a {colour} frame of {width}x{height}"
                    raise CorruptRecordError(f"{named}: {error}") from error
                if found != (height, width):
                    raise _wrong_size(clip.row.name, found, (height, width))
                if height * width > min(MOST_PIXELS, PIXELS_PER_BYTE * len(jpeg)):
                    raise CorruptRecordError(
                        f"{clip.row.name}: a frame of {width}x{height} pixels in {len(jpeg)} bytes, which cannot be"
                    )


def _fill(target_NHWC: NDArray[np.uint8], jpegs: Sequence[memoryview], colour: str, name: str) -> None:
    for image_HWC, jpeg in zip(target_NHWC, jpegs, strict=True):
        try:
            shape = simplejpeg.decode_jpeg(jpeg, colorspace=colour, buffer=image_HWC).shape
        except ValueError as error:
            height, width = image_HWC.shape[:2]
            raise CorruptRecordError(f"{name}: a {colour} frame of {width}x{height}: {error}") from error
        if shape != image_HWC.shape:
            raise _wrong_size(name, shape, image_HWC.shape)


def _wrong_size(name: str, found: Sequence[int], expected: Sequence[int]) -> CorruptRecordError:
    return CorruptRecordError(
        f"{name}: a frame of {found[1]}x{found[0]} pixels, expected {expected[1]}x{expected[0]} by its record"
    )
