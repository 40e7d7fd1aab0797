"""One warp of TV-L1 on a CUDA device, in fused Triton kernels; what `eager.solve` does, for many pairs at once.

An iteration is one launch: a block makes the new flow of its tile, and of the pixels right of and below each once
more, and from these the new dual variables, so that a pixel costs one read and one write of what there is (60 bytes).
It reads one set of fields and writes the other. The sum that ends a pair stays on the device, as a whole number in
parts of the limit: whole numbers add up to the same in any order, so a result depends on nothing but its pair. A launch
looks at the sum of the one before; blocks of a pair that has ended return at once. The host asks once per outer pass,
and goes on with those that run. A pass of the same kind is recorded as a CUDA graph and replayed.

With TRITON_INTERPRET=1 in the environment the same kernels run on the CPU, slowly, for tests.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from preprocess.tvl1.eager import Linearised, Parameters, Unknowns
from preprocess.tvl1.gpu_kernels import AT_MOST, LIMIT, median_pass, step_pass
from preprocess.tvl1.gpu_warp import linearised

VERSION = 1  # of the arithmetic: raise it when the same pictures give other bytes
AT_ONCE = 64  # pairs in a batch at most: more keep an H100 no busier
SHARE = 0.25  # of the free memory that a batch may take; processes share a device
ARRAYS = 60  # float32 values per pixel of a pair at most: 15 here, the rest in the pyramid and the warp
MOST_SCALED = 1e30  # with a limit of 0: so that a change of a billionth of a pixel is beyond it
RECORDED = 512  # passes at most, some 100 kB each


def why_unusable(device: torch.device) -> str:
    """Why these kernels cannot run on the device, in a few words; empty where they can."""
    if device.type != "cuda":
        return "" if _interpreted() else f"the device is {device.type}, not cuda"
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and major < 7:
        return f"Triton needs compute capability 7.0, {torch.cuda.get_device_name(device)} has {major}.{minor}"
    return ""


def pairs_at_once(device: torch.device, height: int, width: int) -> int:
    """How many pairs of pictures of this size fit the memory that is free: 1, 2, 4 .. 64. No result depends on it."""
    if device.type != "cuda":
        return AT_ONCE
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fitting = int(SHARE * (free + reserved) / (4 * ARRAYS * height * width))
    return min(AT_ONCE, 1 << max(fitting.bit_length() - 1, 0))


def solve(unknowns: Unknowns, linearised: Linearised, parameters: Parameters) -> None:
    """One warp, in place: up to `outer` passes, each a median filter of u and up to `inner` iterations, per pair."""
    device = unknowns.u1.device
    if reason := why_unusable(device):
        raise ValueError(f"TV-L1 in Triton: {reason}")
    with _on(device), torch.no_grad():
        _workspace(device, threading.get_ident()).solve(unknowns, linearised, parameters)


def warped(first_NHW: Tensor, planes_N3HW: Tensor, u1: Tensor, u2: Tensor) -> Linearised:
    """The second pictures, as level and gradient, warped by the flow, against the first."""
    with _on(u1.device):
        return linearised(first_NHW, planes_N3HW, u1, u2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """What the kernels work on: C pairs, of which the first N are used. Sets of fields are read and written in turn."""

    u: tuple[Tensor, Tensor]  # (C, 2, H, W) float32
    p: tuple[Tensor, Tensor]  # (C, 4, H, W): p11, p12, p21, p22
    line: Tensor  # (C, 3, H, W): gx, gy, rho_c
    running: Tensor  # (C,) int32: pairs that a launch is for; -1: none
    where: Tensor  # (C,) int32: the sets that hold a pair's newest fields: that of u, plus twice that of p
    errors: Tensor  # (3, C) int64: of the launch before, of this one, and one made ready for the next


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """Whose turn it is before a pass: the sets that hold u and p, and the row of `errors` to look at."""

    u: int = 0
    p: int = 0
    error: int = 0


@dataclass(slots=True)
class Workspace:
    """Memory of one device and thread, used again for each warp, and the passes that are recorded for it."""

    device: torch.device
    memory: Tensor | None = None  # float32
    counters: Tensor | None = None  # int64
    recorded: dict[Any, Any] = field(default_factory=dict)  # pass -> CUDA graph; None: launched once, so compiled

    def solve(self, unknowns: Unknowns, linearised: Linearised, parameters: Parameters) -> None:
        """`solve` above."""
        pairs, height, width = unknowns.u1.shape
        if height * width >= 1 << 29:
            raise ValueError(f"TV-L1 of pictures of {width}x{height}: expected less than 2^29 pixels")
        here = self.fields(_power_of_two(pairs), height, width)
        torch.stack((unknowns.u1, unknowns.u2), 1, out=here.u[0][:pairs])
        torch.stack((unknowns.p11, unknowns.p12, unknowns.p21, unknowns.p22), 1, out=here.p[0][:pairs])
        torch.stack((linearised.gx, linearised.gy, linearised.rho_c), 1, out=here.line[:pairs])
        here.where.zero_()
        here.errors.zero_()
        here.errors[0].fill_(AT_MOST)  # no iteration yet
        running, turn = list(range(pairs)), Turn()
        for _ in range(parameters.outer):
            count = _power_of_two(len(running))
            here.running[:count].copy_(torch.tensor(running + [-1] * (count - len(running)), dtype=torch.int32))
            turn = self.run(here, count, turn, parameters)
            errors = here.errors[turn.error, :pairs].tolist()  # waits for the device
            running = [pair for pair in running if errors[pair] > LIMIT]
            if not running:
                break
        second_u, second_p = (here.where[:pairs, None, None] & bit != 0 for bit in (1, 2))
        for plane, name in enumerate(("u1", "u2")):
            first, second = (one[:pairs, plane] for one in here.u)
            torch.where(second_u, second, first, out=getattr(unknowns, name))
        for plane, name in enumerate(("p11", "p12", "p21", "p22")):
            first, second = (one[:pairs, plane] for one in here.p)
            torch.where(second_p, second, first, out=getattr(unknowns, name))

    def fields(self, capacity: int, height: int, width: int) -> Fields:
        """Fields for so many pairs, at the same addresses as ever: recorded passes hold addresses."""
        area, counted = capacity * height * width, 4 * capacity
        if self.memory is None or self.counters is None or self.memory.numel() < 15 * area:
            self.recorded.clear()
            self.memory = self.counters = None  # given back before more is asked for
            self.memory = torch.empty(15 * area, dtype=torch.float32, device=self.device)
            self.counters = torch.empty(max(counted, 4 * AT_ONCE), dtype=torch.int64, device=self.device)
        elif self.counters.numel() < counted:
            self.recorded.clear()
            self.counters = torch.empty(counted, dtype=torch.int64, device=self.device)
        planes = (2, 2, 4, 4, 3)
        starts = [sum(planes[:i]) * area for i in range(len(planes))]
        u0, u1, p0, p1, line = (
            self.memory[start : start + some * area].view(capacity, some, height, width)
            for start, some in zip(starts, planes, strict=True)
        )
        small = self.counters[3 * capacity : counted].view(torch.int32)
        return Fields(
            u=(u0, u1),
            p=(p0, p1),
            line=line,
            running=small[:capacity],
            where=small[capacity:],
            errors=self.counters[: 3 * capacity].view(3, capacity),
        )

    def run(self, here: Fields, count: int, turn: Turn, parameters: Parameters) -> Turn:
        """One outer pass for the first `count` entries of `running`: launched at first, then recorded and replayed."""
        after = _turn_after(turn, parameters)
        if self.device.type != "cuda":
            _launch(here, count, turn, parameters)
            return after
        kind = (here.line.shape, count, turn, parameters)
        if kind not in self.recorded:
            if len(self.recorded) >= RECORDED:
                self.recorded.clear()
            self.recorded[kind] = None
            _launch(here, count, turn, parameters)  # compiles, which a recording must not
            return after
        if self.recorded[kind] is None:
            self.recorded[kind] = _recorded(self.device, here, count, turn, parameters)
        self.recorded[kind].replay()
        return after


def _recorded(device: torch.device, here: Fields, count: int, turn: Turn, parameters: Parameters) -> Any:
    """A pass as a CUDA graph. Other threads may use the device meanwhile; nothing is allocated inside."""
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            _launch(here, count, turn, parameters)
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(aside)
    return graph


def _launch(here: Fields, count: int, turn: Turn, parameters: Parameters) -> None:
    """The launches of one outer pass."""
    _, _, height, width = here.line.shape
    u, p, error = turn.u, turn.p, turn.error
    if parameters.median > 1:
        median_pass(here.u[u], here.u[1 - u], here.running[:count], here.errors[error], parameters.median)
        u = 1 - u
    limit = parameters.epsilon**2 * height * width
    for _ in range(parameters.inner):
        step_pass(
            old=(here.u[u], here.p[p]),
            new=(here.u[1 - u], here.p[1 - p]),
            line=here.line,
            running=here.running[:count],
            where=here.where,
            place=(1 - u) + 2 * (1 - p),
            errors=(here.errors[error], here.errors[(error + 1) % 3], here.errors[(error + 2) % 3]),
            scale=min(LIMIT / limit, MOST_SCALED) if limit else MOST_SCALED,
            bound=parameters.lambda_ * parameters.theta,
            theta=parameters.theta,
            dual_step=parameters.tau / parameters.theta,
        )
        u, p, error = 1 - u, 1 - p, (error + 1) % 3


def _turn_after(turn: Turn, parameters: Parameters) -> Turn:
    """The turn after a pass."""
    medians = int(parameters.median > 1)
    return Turn(
        u=(turn.u + medians + parameters.inner) % 2,
        p=(turn.p + parameters.inner) % 2,
        error=(turn.error + parameters.inner) % 3,
    )


@functools.lru_cache(maxsize=16)
def _workspace(device: torch.device, thread: int) -> Workspace:
    """The workspace of a device in a thread; recorded passes cannot serve two at once."""
    return Workspace(device)


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
