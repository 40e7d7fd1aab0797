"""A trained network as a file for other programs: ONNX, or a program of torch.export; checked before it is kept.

What the file takes, for B clips at once, any number of them: levels 0..255 as decoded, uint8 or float32,

    rgb   (B, T, 3, H, W)    frames
    flow  (B, T, 2L, H, W)   at each instant L pairs, u and v in turn, as levels: round(255 (v + 20) / 40), v in pixels

with T, L, H and W as they were when it was made. The mean is taken off inside. What it gives is (B, K): raw class
scores averaged over space and time, as a test averages them, before any softmax; of the joint network also those of
its two heads. Mirror images are views of their own: who wants them asks twice.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from configs import nearest
from shards.whole import whole
from stmul.arithmetic import averaged
from stmul.config import RGB_CHANNELS
from stmul.errors import ExportError
from stmul.evaluate import Networks
from stmul.network import TwoStream
from stmul.trained import Trained

Levels = Literal["uint8", "float32"]
MOST = 1e-4  # of the largest score: how far a file's scores may be from PyTorch's
CLIPS = 1024  # at once, at most
METADATA = "stmul"  # of an ONNX file: the property; of a .pt2: the extra file `stmul.json`


class Scorer(nn.Module):
    """Networks by name, and what is said of them: the names of what they take and give."""

    inputs: ClassVar[tuple[str, ...]] = ("rgb", "flow")
    outputs: ClassVar[tuple[str, ...]] = ("scores", "appearance", "motion")

    joint: TwoStream
    appearance: nn.Module
    motion: nn.Module

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)


class Joint(Scorer):
    """The joint network: the mean of its heads, then each."""

    def forward(self, rgb: Tensor, flow: Tensor) -> tuple[Tensor, ...]:
        appearance, motion = (_scores(maps) for maps in self.joint(rgb, flow))
        return 0.5 * (appearance + motion), appearance, motion


class LateFusion(Scorer):
    """The streams trained alone: the mean of both, then each."""

    def forward(self, rgb: Tensor, flow: Tensor) -> tuple[Tensor, ...]:
        appearance, motion = _scores(self.appearance(rgb)), _scores(self.motion(flow))
        return 0.5 * (appearance + motion), appearance, motion


class Appearance(Scorer):
    """The appearance stream trained alone."""

    inputs, outputs = ("rgb",), ("scores",)

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        return (_scores(self.appearance(rgb)),)


class Motion(Scorer):
    """The motion stream trained alone."""

    inputs, outputs = ("flow",), ("scores",)

    def forward(self, flow: Tensor) -> tuple[Tensor, ...]:
        return (_scores(self.motion(flow)),)


# What can be exported, by the names of its scores, the first that there is unless asked otherwise; and what it takes.
HEADS: Mapping[str, tuple[type[Scorer], tuple[str, ...]]] = {
    "joint": (Joint, ("joint",)),
    "late fusion": (LateFusion, ("appearance", "motion")),
    "motion alone": (Motion, ("motion",)),
    "appearance alone": (Appearance, ("appearance",)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """What an exported network takes and gives, as it stands in the file's metadata."""

    scores_of: str  # a name of HEADS
    inputs: Mapping[str, tuple[str | int, ...]]  # shapes, "clips" for any number
    outputs: tuple[str, ...]
    levels: Levels
    stack: int  # L
    classes: tuple[str, ...]
    run: str
    told: str
    dataset: str
    split: int
    training_digest: str

    def as_json(self) -> str:
        """All of it, in one line."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps({"schema": 1, **fields}, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """A file that was written."""

    path: Path
    contract: Contract
    difference: float | None  # of its scores from PyTorch's, as a part of the largest; None: nothing here could run it


def export(
    trained: Trained,
    paths: Sequence[Path],
    *,
    heads: str = "",
    frames: int = 0,
    size: tuple[int, int] | None = None,
    levels: Levels = "uint8",
    say: Callable[[str], None] = lambda line: None,
) -> list[Exported]:
    """Writes the network to each of `paths`, ONNX or torch.export by its ending; each file is whole or absent.

    `heads` is a name of HEADS; `frames` are T (0: as in a test), `size` height and width (None: the training's crop).
    Raises ExportError where there is no such network, a library is missing, or a file's scores on drawn clips of one
    and of two at a time are farther from PyTorch's than MOST of the largest.
    """
    writers = [_writer(path) for path in paths]
    config = trained.config
    scorer, name = scorer_of(trained.networks, heads)
    tall, wide = size or (config.data.crop, config.data.crop)
    channels = {"rgb": RGB_CHANNELS, "flow": 2 * config.data.stack}
    instants = frames or config.evaluate.frames
    shapes = {one: (instants, channels[one], tall, wide) for one in scorer.inputs}
    contract = Contract(
        scores_of=name,
        inputs={one: ("clips", *shape) for one, shape in shapes.items()},
        outputs=scorer.outputs,
        levels=levels,
        stack=config.data.stack,
        classes=trained.classes,
        run=trained.name,
        told=trained.told,
        dataset=trained.dataset,
        split=trained.split,
        training_digest=trained.digest,
    )
    for line in lines_of(contract):
        say(line)
    tried = {clips: drawn(shapes, clips, levels) for clips in (1, 2)}
    with torch.inference_mode():
        expected = {clips: scorer(*inputs) for clips, inputs in tried.items()}
    program = _program(scorer, drawn(shapes, 2, levels))
    done = []
    for path, write in zip(paths, writers, strict=True):
        with whole(path) as file:
            data, run = write(program, contract)
            difference = max(_farthest(run(tried[clips]), expected[clips]) for clips in tried) if run else None
            if difference is not None and not difference <= MOST:
                raise ExportError(
                    f"{path}: not written: its scores are {difference:.1e} of the largest away from PyTorch's, expected"
                    f" at most {MOST:.0e}. Export another way (.pt2 instead of .onnx, or --levels float32), or take"
                    " other versions of torch, onnxscript and onnxruntime"
                )
            file.write(data)
        done.append(Exported(path=path, contract=contract, difference=difference))
    return done


def scorer_of(networks: Networks, heads: str = "") -> tuple[Scorer, str]:
    """A copy of what is to be exported, on the CPU, in evaluation mode, and the name of its scores.

    Raises ExportError where the networks for it are missing.
    """
    there = [name for name, (_, needs) in HEADS.items() if all(getattr(networks, need) is not None for need in needs)]
    name = heads or there[0]
    if name not in there:
        raise ExportError(f"no scores of {name} in this run; there are those of {', '.join(there)}: --heads NAME")
    made, needs = HEADS[name]
    scorer = deepcopy(made({need: getattr(networks, need) for need in needs})).cpu().eval()
    for tensor in (*scorer.parameters(), *scorer.buffers()):  # torch.export's file takes each as it lies in memory
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return scorer, name


def drawn(shapes: Mapping[str, tuple[int, ...]], clips: int, levels: Levels) -> tuple[Tensor, ...]:
    """Clips of drawn levels, an entry for each input; the same on every call."""
    draws = torch.Generator().manual_seed(clips)
    made = (torch.randint(0, 256, (clips, *shape), dtype=torch.uint8, generator=draws) for shape in shapes.values())
    return tuple(one.to(getattr(torch, levels)) for one in made)


def lines_of(contract: Contract) -> Iterator[str]:
    """What a file takes and gives, for people."""
    for name, shape in contract.inputs.items():
        yield f"takes     {name} ({', '.join(map(str, shape))}) {contract.levels}, levels 0..255"
    yield f"gives     {', '.join(contract.outputs)} (clips, {len(contract.classes)}), raw; {contract.scores_of}"


Inputs = tuple[Tensor, ...]
Run = Callable[[Inputs], Sequence[Tensor]]  # what a file gives for what it takes


def _program(scorer: Scorer, inputs: Inputs) -> ExportedProgram:
    clips = torch.export.Dim("clips", min=1, max=CLIPS)
    shapes = {name: {0: clips} for name in scorer.inputs}
    return torch.export.export(scorer, inputs, dynamic_shapes=shapes, strict=False)


def _torch(program: ExportedProgram, contract: Contract) -> tuple[bytes, Run | None]:
    """A .pt2 file, and what runs it as it was read back."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f"{METADATA}.json": contract.as_json()})
    file.seek(0)
    module = torch.export.load(file).module()

    def run(inputs: Inputs) -> Sequence[Tensor]:
        with torch.inference_mode():
            found: Sequence[Tensor] = module(*inputs)
        return found

    return file.getvalue(), run


def _onnx(program: ExportedProgram, contract: Contract) -> tuple[bytes, Run | None]:
    """An .onnx file, and what runs it, where onnxruntime is installed."""
    made = torch.onnx.export(
        program, dynamo=True, input_names=list(contract.inputs), output_names=list(contract.outputs), verbose=False
    )
    assert made is not None
    made.model.metadata_props.update(
        {METADATA: contract.as_json(), "classes": json.dumps(contract.classes, ensure_ascii=False)}
    )
    data = made.model_proto.SerializeToString()
    if find_spec("onnxruntime") is None:
        return data, None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Sequence[Tensor]:
        fed = {name: levels.numpy() for name, levels in zip(contract.inputs, inputs, strict=True)}
        return [torch.from_numpy(scores) for scores in session.run(list(contract.outputs), fed)]

    return data, run


WRITERS: Mapping[str, Callable[[ExportedProgram, Contract], tuple[bytes, Run | None]]] = {
    ".onnx": _onnx,
    ".pt2": _torch,
}


def _writer(path: Path) -> Callable[[ExportedProgram, Contract], tuple[bytes, Run | None]]:
    if path.suffix not in WRITERS:
        expected = "expected a name that ends in .onnx or .pt2 (torch.export)"
        raise ExportError(f"{path}: {expected}{nearest(path.suffix, list(WRITERS))}")
    if not path.absolute().parent.is_dir():
        raise ExportError(f"{path}: no folder {path.parent}; make it first")
    if path.suffix == ".onnx" and (missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]):
        raise ExportError(
            f"{path}: ONNX takes {' and '.join(missing)}: pip install 'stmul[export]'; .pt2 takes nothing"
        )
    return WRITERS[path.suffix]


def _scores(map_BKTHW: Tensor) -> Tensor:
    return averaged(map_BKTHW, (2, 3, 4))


def _farthest(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, as a part of the largest score; infinite where something is no finite number."""
    parts = [
        float((one - other).abs().max() / other.abs().max()) if one.isfinite().all() else math.inf
        for one, other in zip(found, expected, strict=True)
    ]
    return max(part if math.isfinite(part) else math.inf for part in parts)
