"""One warp of TV-L1 in plain PyTorch, batched over pairs, on any device; and what is handed to a solver.

N pairs, H W positions. All tensors are float32, (N, H, W), contiguous, on one device. Zach, Pock and Bischof, "A
duality based approach for realtime TV-L1 optical flow", 2007, as OpenCV has it. Each pair's result is that of the pair
alone: the operations are elementwise, and sums are taken in an order that knows only the size of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from preprocess.tvl1.parameters import Parameters

__all__ = ["Linearised", "Parameters", "Unknowns", "median", "solve"]

FLAT = float(torch.finfo(torch.float32).eps)  # a square of the gradient below which a picture says nothing of motion


@dataclass(frozen=True, kw_only=True, slots=True)
class Linearised:
    """The second picture around where it was warped to: rho(u) = rho_c + gx u1 + gy u2 is what is left to explain."""

    gx: Tensor  # its gradient there, levels per pixel
    gy: Tensor
    grad: Tensor  # gx^2 + gy^2
    rho_c: Tensor  # levels


@dataclass(frozen=True, kw_only=True, slots=True)
class Unknowns:
    """The flow u, in pixels, and its dual variables p; kept from warp to warp, and solved for in place."""

    u1: Tensor  # horizontal
    u2: Tensor  # vertical
    p11: Tensor  # p of u1: horizontal, vertical
    p12: Tensor
    p21: Tensor  # and of u2
    p22: Tensor


def solve(unknowns: Unknowns, linearised: Linearised, parameters: Parameters) -> None:
    """One warp, in place: up to `outer` passes, each a median filter of u and up to `inner` iterations.

    A pair is finished as soon as the sum over its picture of an iteration's change of u, squared, is at most
    epsilon^2 H W; it leaves the batch then, and the others go on.
    """
    pairs, height, width = unknowns.u1.shape
    limit = parameters.epsilon**2 * height * width
    running = torch.arange(pairs, device=unknowns.u1.device)
    now, line = unknowns, linearised
    scratch = _scratch(line)
    for _ in range(parameters.outer):
        for flow in (now.u1, now.u2):
            flow.copy_(median(flow, parameters.median))
        for _ in range(parameters.inner):
            unfinished = _iterate(now, line, scratch, parameters) > limit
            if unfinished.all():
                continue
            _put(now, unknowns, running)
            running = running[unfinished]
            if not len(running):
                return
            now = Unknowns(**{f.name: getattr(unknowns, f.name)[running] for f in fields(Unknowns)})
            line = Linearised(**{f.name: getattr(linearised, f.name)[running] for f in fields(Linearised)})
            scratch = _scratch(line)
    _put(now, unknowns, running)


def _put(now: Unknowns, unknowns: Unknowns, pairs: Tensor) -> None:
    if now is not unknowns:
        for field in fields(Unknowns):
            getattr(unknowns, field.name)[pairs] = getattr(now, field.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scratch:
    """Memory that iterations use again and again, and what stays the same in all of them."""

    back: Tensor  # -1 / grad
    step: Tensor
    change: Tensor
    squares: Tensor
    other: Tensor
    x: Tensor  # its last column stays 0
    y: Tensor  # its last row stays 0


def _scratch(line: Linearised) -> Scratch:
    step, change, squares, other, x, y = torch.zeros((6, *line.grad.shape), device=line.grad.device)
    back = line.grad.clamp(min=FLAT).reciprocal_().neg_()
    return Scratch(back=back, step=step, change=change, squares=squares, other=other, x=x, y=y)


def _iterate(now: Unknowns, line: Linearised, scratch: Scratch, parameters: Parameters) -> Tensor:
    """u <- v + theta div p, where v = u + TH(rho), then p <- (p + tau/theta grad u) / (1 + tau/theta |grad u|).

    TH moves u along the gradient, by -rho / grad, but by no more than lambda theta gradients. In place; gives the sum
    of the squared change of u, (N,).
    """
    bound = parameters.lambda_ * parameters.theta
    torch.mul(line.gx, now.u1, out=scratch.step)
    torch.mul(line.gy, now.u2, out=scratch.other)
    scratch.step.add_(scratch.other).add_(line.rho_c).mul_(scratch.back).clamp_(-bound, bound)
    scratch.squares.zero_()
    for u, gradient, px, py in ((now.u1, line.gx, now.p11, now.p12), (now.u2, line.gy, now.p21, now.p22)):
        _divergence(px, py, scratch.change)
        torch.mul(scratch.step, gradient, out=scratch.other)
        u.add_(scratch.change.mul_(parameters.theta).add_(scratch.other))
        scratch.squares.add_(scratch.change.square_())
        _dual(u, px, py, scratch, parameters.tau / parameters.theta)
    return _sums(scratch.squares)


def _divergence(px: Tensor, py: Tensor, out: Tensor) -> None:
    """Backward differences; before the first row and column p is 0."""
    torch.add(px, py, out=out)
    out[:, :, 1:].sub_(px[:, :, :-1])
    out[:, 1:].sub_(py[:, :-1])


def _dual(u: Tensor, px: Tensor, py: Tensor, scratch: Scratch, step: float) -> None:
    """The dual update in place, by forward differences of u; past the last row and column u stays the same."""
    x, y = scratch.x, scratch.y
    torch.sub(u[:, :, 1:], u[:, :, :-1], out=x[:, :, :-1])
    torch.sub(u[:, 1:], u[:, :-1], out=y[:, :-1])
    x.mul_(step)
    y.mul_(step)
    torch.mul(x, x, out=scratch.change)
    torch.mul(y, y, out=scratch.other)
    shrink = scratch.change.add_(scratch.other).sqrt_().add_(1)
    px.add_(x).div_(shrink)
    py.add_(y).div_(shrink)


def _sums(values_NHW: Tensor) -> Tensor:
    """The sum of each picture, (N,), in an order that knows nothing of the batch: by halves. `values_NHW` is used up.

    Rows are added up at once on the CPU, where that is done in one order; on GPUs it depends on the batch.
    """
    values = values_NHW.sum(1) if values_NHW.device.type == "cpu" else values_NHW.flatten(1)
    while (width := values.shape[1]) > 1:
        half = (width + 1) // 2
        values.narrow(1, 0, width - half).add_(values.narrow(1, half, width - half))
        values = values.narrow(1, 0, half)
    return values[:, 0]


def median(values_NHW: Tensor, side: int) -> Tensor:
    """The median of `side` x `side` neighbours (1, 3 or 5), exact; past the border the nearest value counts."""
    if side == 1:
        return values_NHW
    border = side // 2
    padded = functional.pad(values_NHW[:, None], (border,) * 4, mode="replicate")[:, 0]
    rows = padded.shape[1] - 2 * border
    columns = _ordered([padded[:, i : i + rows] for i in range(side)])  # each column's values, least first
    return _median_of_three(columns) if side == 3 else _median_of_five(columns)


def _ordered(values: list[Tensor]) -> list[Tensor]:
    """Three or five tensors, elementwise in order."""
    pairs = {3: ((0, 1), (1, 2), (0, 1)), 5: ((0, 3), (1, 4), (0, 2), (1, 3), (0, 1), (2, 4), (1, 2), (3, 4), (2, 3))}
    for i, j in pairs[len(values)]:
        values[i], values[j] = torch.minimum(values[i], values[j]), torch.maximum(values[i], values[j])
    return values


def _median_of_three(columns: list[Tensor]) -> Tensor:
    """From ordered columns: the median of (the greatest least, the middle middle, the least greatest)."""
    width = columns[0].shape[2] - 2
    least, middle, greatest = ([column[:, :, i : i + width] for i in range(3)] for column in columns)
    low = torch.maximum(torch.maximum(*least[:2]), least[2])
    high = torch.minimum(torch.minimum(*greatest[:2]), greatest[2])
    return _ordered([low, _ordered(middle)[1], high])[1]


def _median_of_five(columns: list[Tensor]) -> Tensor:
    """From ordered columns, which neighbours share: two are merged into ten, two tens into the middle of twenty."""
    width = columns[0].shape[2] - 4
    tens = _merged([c[:, :, :-1] for c in columns], [c[:, :, 1:] for c in columns])
    middle = _middle_of_twenty([t[:, :, :width] for t in tens], [t[:, :, 2 : width + 2] for t in tens])
    last = [c[:, :, 4:] for c in columns]
    found = middle[5]  # of the eleven that are left, the sixth: k of them from one list, the others from the other
    for taken in range(5):
        found = torch.minimum(found, torch.maximum(middle[taken], last[4 - taken]))
    return found


def _merged(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """Two ordered lists of equal length as one: Batcher's odd-even merge."""
    if len(one) == 1:
        return [torch.minimum(one[0], other[0]), torch.maximum(one[0], other[0])]
    evens, odds = _merged(one[::2], other[::2]), _merged(one[1::2], other[1::2])
    merged = [evens[0]]
    for odd, even in zip(odds, evens[1:], strict=False):
        merged += [torch.minimum(odd, even), torch.maximum(odd, even)]
    return merged + (odds[-1:] if len(odds) == len(evens) else evens[-1:])


def _middle_of_twenty(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    """The six in the middle of two ordered lists of ten: the same merge without what no one asks for."""

    def inner(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:  # of two and two: the second and third
        x, y = torch.maximum(a[0], b[0]), torch.minimum(a[1], b[1])
        return [torch.minimum(x, y), torch.maximum(x, y)]

    def around(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:  # of five and five: the fourth to seventh
        outer = inner([a[0], a[4]], [b[0], b[4]])
        odds = inner([a[1], a[3]], [b[1], b[3]])
        low = torch.maximum(torch.minimum(a[2], b[2]), outer[0])
        high = torch.minimum(torch.maximum(a[2], b[2]), outer[1])
        return [
            torch.minimum(odds[0], low),
            torch.maximum(odds[0], low),
            torch.minimum(odds[1], high),
            torch.maximum(odds[1], high),
        ]

    evens, odds = around(one[::2], other[::2]), around(one[1::2], other[1::2])
    middle = []
    for odd, even in zip(odds[:3], evens[1:], strict=True):
        middle += [torch.minimum(odd, even), torch.maximum(odd, even)]
    return middle
