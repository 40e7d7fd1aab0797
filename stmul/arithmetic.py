"""How the network's arithmetic is done: in float32 or with bfloat16 in it, and by kernels compiled for it or not.

Neither changes what the network is: weights, their names, their gradients, the statistics of normalisation, scores and
losses stay float32, and dropout is drawn alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from stmul.config import Config, Evaluate, Train
from stmul.errors import NetworkError

NEEDED = {
    "cpu": "It takes a C++ compiler (Debian, Ubuntu: apt install g++ python3-dev)",
    "cuda": "It takes Triton (pip install triton) and a C compiler (Debian, Ubuntu: apt install gcc python3-dev)",
}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which convolutions, and what lies between them, are done in `precision`, float32 or bfloat16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


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
