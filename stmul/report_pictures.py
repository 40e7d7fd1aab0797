"""Strips of pictures of one clip at a few of its test instants: frames, flow, and what each stream looked at.

What a stream looked at is Grad-CAM's map laid over the grey frame, or over the speed of the flow: dark purple where
nothing spoke for the class, yellow where the most did. One scale holds for all instants and classes of a stream.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shards.picture import Picture, flow_colour, round_limit, shown_flow
from shards.split import Split
from shards.stream import Clip, read_clips
from stmul import clips as instants_of
from stmul.augment import View
from stmul.clips import NO_PAIR, Instants
from stmul.config import Config
from stmul.decode import Decoded, Placed, decode
from stmul.evaluate import Networks
from stmul.gradcam import centres, class_maps
from stmul.loading import clip_tensors, test_views
from stmul.report_clips import Film, Strip

SHOWN = 5  # instants
HEIGHT = 128  # pixels of a picture
QUALITY = 82
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # as matplotlib's inferno, roughly
VEIL, GLOW = (
    0.25,
    0.55,
)  # how much of the colour lies over a picture where the map is 0, and how much more where it is 1

Maps = NDArray[np.float32]  # (T, h, w), 0 .. 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A clip to be shown: its record, and the classes (label, name) of which it is shown what spoke for them."""

    record: int
    classes: Sequence[tuple[int, str]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Seen:
    """What a test sees of a clip."""

    decoded: Decoded
    placed: Placed
    shown: Sequence[int]  # which of its instants
    view: View
    seen_at: tuple[int, int]  # height and width at which a network sees the view
    pooling: str  # of the network


def films(
    split: Split, part: str, asked: Sequence[Asked], networks: Networks | None, config: Config, device: torch.device
) -> dict[str, Film]:
    """The strips of each clip, by its name; without networks only what there is to be seen.

    Raises CorruptRecordError and UnreachableError as reading does.
    """
    return {name: film for one in asked for name, film in [_film(split, part, one, networks, config, device)]}


def _film(
    split: Split, part: str, asked: Asked, networks: Networks | None, config: Config, device: torch.device
) -> tuple[str, Film]:
    count = split.index(part).row(asked.record).frames
    chosen = instants_of.testing(count, frames=config.evaluate.frames, stack=config.data.stack)
    (clip,) = read_clips(split, part, [(asked.record, asked.record, chosen)])
    decoded = decode([clip])
    (placed,) = decoded.clips
    view, size = test_views(config, placed.size)[0]
    side = (round(view.bottom - view.top), round(view.right - view.left))
    seen = _Seen(
        decoded=decoded,
        placed=placed,
        shown=_shown(chosen),
        view=view,
        seen_at=side if size is None else (size, size),
        pooling=config.network.pooling,
    )
    frames, flows = _frames(seen), _flows(seen)
    lengths = np.hypot(*np.moveaxis(np.stack(flows), 3, 0))
    limit = round_limit(lengths)
    strips = [
        Strip(title="Frames", picture=_jpeg(frames)),
        Strip(title=_flow_title(limit), picture=_jpeg([flow_colour(px, limit) for px in flows])),
    ]
    grey = {
        "appearance": [_grey(frame.mean(axis=2)) for frame in frames],
        "motion": [_grey(40 + 215 * np.minimum(length / limit, 1)) for length in lengths],
    }
    maps = _maps(networks, seen, size, [label for label, _ in asked.classes], device) if networks else {}
    for i, (_, name) in enumerate(asked.classes):
        for head, maps_MThw in maps.items():
            stream = head.split()[0]
            pictures = [_overlaid(grey[stream][place], maps_MThw[i, t], seen) for place, t in enumerate(seen.shown)]
            strips.append(Strip(title=f"{head.capitalize()}, for {name}", picture=_jpeg(pictures), head=head))
    return clip.row.name, Film(instants=_times(clip, [int(chosen.rgb[t]) for t in seen.shown]), strips=strips)


def _shown(chosen: Instants) -> list[int]:
    """Which of the instants are shown: some, evenly spread, none of them twice."""
    first = {int(chosen.rgb[t]): int(t) for t in reversed(instants_of.evenly(range(len(chosen.rgb)), SHOWN))}
    return [first[frame] for frame in sorted(first)]


def _times(clip: Clip[Instants], frames: Sequence[int]) -> list[str]:
    one, other = clip.row.fps
    if not one or not other:
        return [f"frame {frame}" for frame in frames]
    told = [[f"{frame * other / one:.{places}f} s" for frame in frames] for places in (1, 2)]
    return told[0] if len(set(told[0])) == len(frames) else told[1]


def _frames(seen: _Seen) -> list[Picture]:
    frames_FHWC = seen.decoded.rgb_FHWC(seen.placed).numpy()
    return [frames_FHWC[seen.placed.rgb_of[t]] for t in seen.shown]


def _flows(seen: _Seen) -> list[NDArray[np.float32]]:
    """Flow (H, W, 2) in pixels from each instant's frame to the next: the middle of its stack."""
    planes_PHW = seen.decoded.flow_PHW(seen.placed).numpy()
    pairs = [int(seen.placed.flow_of[t, seen.placed.flow_of.shape[1] // 2]) for t in seen.shown]
    still = np.zeros((*seen.placed.size, 2), np.float32)
    return [
        still if pair == NO_PAIR else shown_flow(np.moveaxis(planes_PHW[2 * pair : 2 * pair + 2], 0, 2))
        for pair in pairs
    ]


def _flow_title(limit: float) -> str:
    return f"Flow, full colour at {limit:g} pixel{'s' if limit != 1 else ''} a frame"


def _maps(
    networks: Networks, seen: _Seen, size: int | None, labels: Sequence[int], device: torch.device
) -> dict[str, NDArray[np.float32]]:
    """Maps (M, T, h, w) of each class, 0 .. 1, by head: of the joint network if there is one, else of the streams."""
    rgb, flow = clip_tensors(seen.decoded.to(device), seen.placed, seen.view, size=size)
    assert rgb is not None
    assert flow is not None
    clip = {"appearance": rgb, "motion": flow}
    found: dict[str, torch.Tensor] = {}
    if networks.joint is not None:
        found = class_maps(networks.joint, clip, labels)
    else:
        for network in (networks.appearance, networks.motion):
            if network is not None:
                maps = class_maps(network, clip, labels)  # type: ignore[arg-type]
                found |= {f"{stream} alone": map_MThw for stream, map_MThw in maps.items()}
    return {head: (maps / maps.amax().clamp(min=1e-12)).cpu().numpy() for head, maps in found.items()}


def _overlaid(grey_HW: NDArray[np.float32], map_hw: Maps, seen: _Seen) -> Picture:
    """The map over a grey picture, within what the network saw of it; the rest is darker."""
    height, width = grey_HW.shape
    down, across = height / seen.placed.size[0], width / seen.placed.size[1]
    top, bottom = round(seen.view.top * down), round(seen.view.bottom * down)
    left, right = round(seen.view.left * across), round(seen.view.right * across)
    part_HW1 = _grown(map_hw, bottom - top, right - left, seen)[..., None]
    steps = np.linspace(0, 1, len(HEAT))
    heat_HW3 = np.stack([np.interp(part_HW1[..., 0], steps, [colour[c] for colour in HEAT]) for c in range(3)], axis=2)
    page = np.repeat(0.35 * grey_HW[..., None], 3, axis=2)
    share_HW1 = VEIL + GLOW * part_HW1
    inside = grey_HW[top:bottom, left:right, None]
    page[top:bottom, left:right] = (1 - share_HW1) * inside + share_HW1 * heat_HW3
    return np.rint(page).astype(np.uint8)


def _grown(map_hw: Maps, height: int, width: int, seen: _Seen) -> NDArray[np.float64]:
    """The map at the size at which it is shown: linear between the middles of what its places see."""
    sides = (seen.seen_at[0] / height, seen.seen_at[1] / width)
    rows, columns = (
        ((np.arange(count) + 0.5) * pixels - 0.5, centres(places, seen.pooling))
        for count, pixels, places in zip((height, width), sides, map_hw.shape, strict=True)
    )
    tall_Hw = np.stack([np.interp(*rows, column) for column in map_hw.T], axis=1)
    return np.stack([np.interp(*columns, row) for row in tall_Hw])


def _grey(levels_HW: NDArray[np.floating]) -> NDArray[np.float32]:
    """Levels 0..255, at the height at which they are shown."""
    height, width = levels_HW.shape
    size = (_width(height, width), HEIGHT)
    grown = Image.fromarray(levels_HW.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(grown, dtype=np.float32), 0, 255)


def _width(height: int, width: int) -> int:
    return max(1, round(width * HEIGHT / height))


def _jpeg(pictures: Sequence[Picture]) -> bytes:
    """Pictures of one shape side by side, as a file."""
    height, width = pictures[0].shape[:2]
    wide = _width(height, width)
    page = Image.new("RGB", (wide * len(pictures), HEIGHT))
    for i, picture in enumerate(pictures):
        page.paste(Image.fromarray(picture).resize((wide, HEIGHT), Image.Resampling.LANCZOS), (i * wide, 0))
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
