"""What a network is made of and what it takes, as tables; counted on the meta device: nothing is allocated or computed.

Multiply-adds are those of convolutions, each counted once: half as many as floating-point operations. Normalisations,
ReLUs, gates and maxima are left out; they add less than a hundredth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stmul.bases import STREAMS
from stmul.config import Config
from stmul.memory import Alive, blank_clips, saved_bytes
from stmul.network import TwoStream
from stmul.stages import build

META = torch.device("meta")
DIRECTIONS = {  # by whether appearance is gated, and motion
    (False, False): "",
    (True, False): "motion → appearance",
    (False, True): "appearance → motion",
    (True, True): "both ways",
}
WHOLE = (256, 340)  # pixels, height and width of a frame of UCF101 as stored: 240 x 320 with the short side at 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a part of a stream takes."""

    parameters: int  # trained ones
    multiply_adds: int  # in one forward


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """How a video is scored: in `views` forwards of `instants` frames of `size`."""

    instants: int
    size: tuple[int, int]  # height, width
    views: int  # 2 with the mirror image


def parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def multiply_adds(network: nn.Module, *clips: Tensor) -> Mapping[str, int]:
    """Multiply-adds of one forward inside each module, by its name in `network`; "" is all of them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*clips)
    root = type(network).__name__  # module names begin with it: TwoStream.appearance.conv1
    counts = {name: sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()}
    return {name.removeprefix(root).removeprefix("."): count for name, count in counts.items() if name != "Global"}


def parts_of(stream: nn.Module) -> dict[str, tuple[str, ...]]:
    """The rows of a stream and the modules in each: stem, units by name, classifier."""
    children = dict(stream.named_children())
    stem = tuple(name for name in children if name not in ("units", "classifier"))
    units = {name: (f"units.{name}",) for name, _ in children["units"].named_children()}
    return {"stem": stem, **units, "classifier": ("classifier",)}


def costs(network: TwoStream, *clips: Tensor) -> dict[str, dict[str, Cost]]:
    """What each part of each stream takes in one forward of `clips`, by stream and part."""
    counts = multiply_adds(network, *clips)
    found: dict[str, dict[str, Cost]] = {}
    for name in STREAMS:
        stream = network.get_submodule(name)
        found[name] = {
            part: Cost(
                parameters=sum(parameters(stream.get_submodule(module)) for module in modules),
                multiply_adds=sum(counts.get(f"{name}.{module}", 0) for module in modules),
            )
            for part, modules in parts_of(stream).items()
        }
    return found


def total(parts: Iterable[Cost]) -> Cost:
    """All parts as one."""
    every = list(parts)
    return Cost(
        parameters=sum(part.parameters for part in every), multiply_adds=sum(part.multiply_adds for part in every)
    )


def summary_tables(config: Config, classes: int) -> tuple[Table, Table]:
    """The units of both streams, with what each takes; then what a clip and a training take."""
    with META:
        network = build("joint", config, classes)
    assert isinstance(network, TwoStream)
    saved = saved_bytes(network.train(), config, "joint", META)
    network.eval()
    side = config.data.crop
    trained = costs(network, *blank_clips(config, 1, config.data.frames, (side, side), META))
    return _units(network, config, classes, trained), _takes(network, config, trained, saved)


def _units(network: TwoStream, config: Config, classes: int, trained: Mapping[str, Mapping[str, Cost]]) -> Table:
    settings = config.network
    filtered = {*settings.filtered(settings.appearance), *settings.filtered(settings.motion)}
    kind = settings.temporal.kind if filtered else ""
    joined = settings.operator if settings.operator != "none" else ""
    shown = _table(f"{classes} classes; a clip in training: {_clip(config.data.frames, (config.data.crop,) * 2)}")
    shown.add_column("unit")
    for column in ("appearance\nM", "\nGMACs", "motion\nM", "\nGMACs"):
        shown.add_column(column, justify="right")
    shown.add_column(f"joined\n{joined}")
    shown.add_column(f"over time\n{kind}")
    for row in ("stem", *network.order, "classifier"):
        cells = [cell for stream in STREAMS for cell in _cells(trained[stream].get(row))]
        over_time = settings.temporal.initial if row in filtered else ""
        gates = (row in network.gated_appearance, row in network.gated_motion)
        shown.add_row(row, *cells, DIRECTIONS[gates], over_time)
    shown.add_section()
    shown.add_row("all", *(cell for stream in STREAMS for cell in _cells(total(trained[stream].values()))), "", "")
    shown.caption = (
        "M: million parameters that are trained.\n"
        "GMACs: billion multiply-adds of one clip's forward, each counted once; FLOPs are twice as many."
    )
    return shown


def _takes(network: TwoStream, config: Config, trained: Mapping[str, Mapping[str, Cost]], saved: int) -> Table:
    shown = _table("What it takes, in float32")
    for column in ("", *STREAMS, "both"):
        shown.add_column(column, justify="right" if column else "left")
    clip = scored(config)
    frames = blank_clips(config, 1, clip.instants, clip.size, META)
    with Alive(network, *frames) as alive:
        tested = costs(network, *frames)
    forwards = "1 forward" if clip.views == 1 else f"{clip.views} forwards"
    for words, found, times in (("a clip in training", trained, 1), (f"a test clip, {forwards}", tested, clip.views)):
        counts = [total(found[stream].values()).multiply_adds * times for stream in STREAMS]
        shown.add_row(words, *(f"{_giga(count)} GMACs" for count in (*counts, sum(counts))))
    shown.add_section()
    streams = [network.get_submodule(name) for name in STREAMS]
    weights = [_bytes(stream) for stream in streams]
    shown.add_row("weights, running moments", *map(_memory, (*weights, sum(weights))))
    copies, words = (2, "gradients, momentum") if config.train.momentum else (1, "gradients")
    learning = [4 * parameters(stream) * copies for stream in streams]
    shown.add_row(words, *map(_memory, (*learning, sum(learning))))
    _, clips = config.train.batches("joint")
    shown.add_row(f"kept for backward, {_count(clips, 'clip')}", "", "", _memory(saved))
    shown.add_row("a test clip's widest moment", "", "", _memory(alive.most))
    shown.caption = (
        f"A test clip, {config.evaluate.protocol}: {_clip(clip.instants, clip.size)}"
        f"{', and mirrored' if clip.views > 1 else ''}.\n"
        "Its widest moment: the most tensors alive at once. Workspaces inside operations are left out."
    )
    return shown


def scored(config: Config) -> Scored:
    """The clip that stands for a test video, of frames as UCF101's where whole frames are scored."""
    size = WHOLE if config.evaluate.protocol == "dense" else (config.data.crop, config.data.crop)
    return Scored(instants=config.evaluate.frames, size=size, views=2 if config.evaluate.mirror else 1)


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _cells(cost: Cost | None) -> tuple[str, str]:
    return ("", "") if cost is None else (f"{cost.parameters / 1e6:.3f}", _giga(cost.multiply_adds))


def _giga(count: int) -> str:
    return f"{count / 1e9:.3f}"


def _memory(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _clip(instants: int, size: tuple[int, ...]) -> str:
    return f"{_count(instants, 'instant')} of {' x '.join(map(str, size))} pixels"
