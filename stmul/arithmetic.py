"""How the network's arithmetic is done: in float32 or with 16 bits in it, compiled for it or not, the same each time.

None of it changes what the network is: weights, their names, their gradients, the statistics of normalisation, scores
and losses stay float32, and dropout is drawn alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from stmul.config import Config, Evaluate, Train
from stmul.errors import NetworkError

GROWTH = 2000  # steps in a row without one skipped, after which the loss scale is doubled
LARGEST = 2.0**24
NEEDED = {
    "cpu": "It takes a C++ compiler (Debian, Ubuntu: apt install g++ python3-dev)",
    "cuda": "It takes Triton (pip install triton) and a C compiler (Debian, Ubuntu: apt install gcc python3-dev)",
}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which convolutions, and what lies between them, are done in `precision`."""
    kind = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=precision != "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossScale:
    """By how much the loss is multiplied before its gradients are taken, so that float16 can hold the small ones.

    A step whose gradients became too large to be held is skipped and halves it; many good ones in a row double it
    (Micikevicius et al., ICLR 2018). A power of two: what comes out is rounded, but by float16's range.
    """

    scale: float = 2.0**16
    good: int = 0  # steps since it last changed
    skipped: int = 0  # steps in all

    def after(self, updated: bool) -> LossScale:
        """The one for the next step."""
        if not updated:
            return LossScale(scale=self.scale / 2, good=0, skipped=self.skipped + 1)
        if self.good + 1 < GROWTH:
            return LossScale(scale=self.scale, good=self.good + 1, skipped=self.skipped)
        return LossScale(scale=min(2 * self.scale, LARGEST), good=0, skipped=self.skipped)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, if `wanted`, only kernels that give the same bits each time are used; what has none is an error.

    What a GPU computes then depends on nothing but its kind, and the versions of its libraries.
    """
    if not wanted:
        yield
        return
    # Read when cuBLAS is first used: without it the order of its sums may differ from call to call.
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1], benchmark


def averaged(map_BKTHW: Tensor, over: Sequence[int]) -> Tensor:
    """The mean over some dimensions, summed and handed out in no less than float32."""
    return map_BKTHW.mean(tuple(over), dtype=torch.promote_types(map_BKTHW.dtype, torch.float32))


def compile_forward(network: nn.Module, *, sizes_vary: bool = False, backend: str = "inductor") -> None:
    """Has the forward of `network` compiled, as one graph, when it is first called; its weights keep their names.

    With `sizes_vary` the second size met is compiled for all sizes, else each size for itself.
    """
    # Without its own generator the compiled dropout draws what the uncompiled one draws.
    options: dict[str, str | int | bool | Callable[..., object]] | None = (
        {"fallback_random": True} if backend == "inductor" else None
    )
    network.compile(backend=backend, fullgraph=True, dynamic=None if sizes_vary else False, options=options)


def missing_compiler(device: torch.device) -> str:
    """Why nothing can be compiled for `device`, in one line; empty where it can. Tried on a line of arithmetic."""
    try:
        torch.compile(lambda x: (x + 1).relu(), fullgraph=True)(torch.ones(3, device=device))
    except Exception as error:
        if not _of_compiler(error):
            raise
        return _first_line(error)
    return ""


def as_possible(
    config: Config, station: Literal["train", "evaluate"], device: torch.device, say: Callable[[str], None]
) -> Config:
    """The settings, without what cannot be done here: decoding on a GPU, the station's `compile`; a line says why."""
    if config.data.decode == "gpu" and device.type != "cuda":
        say("decode    not on a GPU, for none is used: going on with the CPU, whose levels differ by a few")
        config = config.model_copy(update={"data": config.data.model_copy(update={"decode": "cpu"})})
    settings: Train | Evaluate = getattr(config, station)
    if not settings.compile or not (missing := missing_compiler(device)):
        return config
    needed = NEEDED.get(device.type, "It takes a compiler that PyTorch knows")
    say(f"compile   not possible here ({missing}): going on uncompiled, with the same result. {needed}")
    return config.model_copy(update={station: settings.model_copy(update={"compile": False})})


@contextmanager
def compiling(setting: str) -> Iterator[None]:
    """Inside, a compiler's failure becomes a NetworkError that names the setting which asked for compiling."""
    try:
        yield
    except Exception as error:
        if not _of_compiler(error):
            raise
        raise NetworkError(
            f"the network cannot be compiled: {_first_line(error)}. Go on without: --set {setting}=false"
        ) from error


def _of_compiler(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo.", "torch._inductor."))  # they have no common base


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()), type(error).__name__)
