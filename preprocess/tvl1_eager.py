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

from preprocess.tvl1_parameters import Parameters

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
    for _ in range(parameters.outer):
        for flow in (now.u1, now.u2):
            flow.copy_(median(flow, parameters.median))
        for _ in range(parameters.inner):
            unfinished = _iterate(now, line, parameters) > limit
            if unfinished.all():
                continue
            _put(now, unknowns, running)
            running = running[unfinished]
            if not len(running):
                return
            now = Unknowns(**{f.name: getattr(unknowns, f.name)[running] for f in fields(Unknowns)})
            line = Linearised(**{f.name: getattr(linearised, f.name)[running] for f in fields(Linearised)})
    _put(now, unknowns, running)


def _put(now: Unknowns, unknowns: Unknowns, pairs: Tensor) -> None:
    if now is not unknowns:
        for field in fields(Unknowns):
            getattr(unknowns, field.name)[pairs] = getattr(now, field.name)


def _iterate(x: Unknowns, line: Linearised, parameters: Parameters) -> Tensor:
    """u <- v + theta div p, where v = u + TH(rho), then p <- (p + tau/theta grad u) / (1 + tau/theta |grad u|).

    TH moves u along the gradient, by -rho / grad, but by no more than lambda theta gradients. In place; gives the sum
    of the squared change of u, (N,).
    """
    bound = parameters.lambda_ * parameters.theta
    rho = line.rho_c + (line.gx * x.u1 + line.gy * x.u2)
    step = (-rho / line.grad.clamp(min=FLAT)).clamp_(-bound, bound)
    change_NHW = torch.zeros_like(rho)
    for u, gradient, px, py in ((x.u1, line.gx, x.p11, x.p12), (x.u2, line.gy, x.p21, x.p22)):
        new = u + step * gradient + parameters.theta * _divergence(px, py)
        change_NHW += (new - u).square_()
        u.copy_(new)
        _dual(u, px, py, parameters.tau / parameters.theta)
    return _sums(change_NHW)


def _divergence(px: Tensor, py: Tensor) -> Tensor:
    """Backward differences; before the first row and column p is 0."""
    divergence = px + py
    divergence[:, :, 1:] -= px[:, :, :-1]
    divergence[:, 1:] -= py[:, :-1]
    return divergence


def _dual(u: Tensor, px: Tensor, py: Tensor, step: float) -> None:
    """The dual update in place, by forward differences of u; past the last row and column u stays the same."""
    ux, uy = torch.zeros_like(u), torch.zeros_like(u)
    torch.sub(u[:, :, 1:], u[:, :, :-1], out=ux[:, :, :-1])
    torch.sub(u[:, 1:], u[:, :-1], out=uy[:, :-1])
    shrink = 1 + step * (ux.square() + uy.square()).sqrt_()
    px.add_(ux, alpha=step).div_(shrink)
    py.add_(uy, alpha=step).div_(shrink)


def _sums(values_NHW: Tensor) -> Tensor:
    """The sum of each picture, (N,): by halves, which is the same for any batch and device. `values_NHW` is used up."""
    values = values_NHW.flatten(1)
    while (width := values.shape[1]) > 1:
        half = (width + 1) // 2
        values[:, : width - half] += values[:, half:]
        values = values[:, :half]
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
