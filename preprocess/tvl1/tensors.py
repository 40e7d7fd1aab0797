"""TV-L1 in PyTorch, batched over pairs: pyramid, warps and the way down the scales; a solver does each warp.

N pairs, H W positions, all tensors float32 on one device. The solver is eager's, on any device, or gpu's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from preprocess.tvl1.eager import Linearised, Parameters, Unknowns

Solver = Callable[[Unknowns, Linearised, Parameters], None]
Warp = Callable[[Tensor, Tensor, Tensor, Tensor], Linearised]  # as `linearised` below


@torch.no_grad()
def flow_of(
    first_NHW: Tensor, second_NHW: Tensor, parameters: Parameters, solve: Solver, warp: Warp | None = None
) -> Tensor:
    """The flow from gray pictures, levels 0..255, to others: (N, H, W, 2), pixels. `warp`: unless `linearised`."""
    firsts, seconds = (_scales(pictures, parameters) for pictures in (first_NHW, second_NHW))
    u1, u2 = torch.zeros_like(firsts[-1]), torch.zeros_like(firsts[-1])
    for one, other in zip(reversed(firsts), reversed(seconds), strict=True):
        if u1.shape != one.shape:
            u1, u2 = (_enlarged(u, one.shape[1], one.shape[2]) / parameters.scale_step for u in (u1, u2))
        dual = {name: torch.zeros_like(one) for name in ("p11", "p12", "p21", "p22")}
        unknowns = Unknowns(u1=u1.contiguous(), u2=u2.contiguous(), **dual)
        planes_N3HW = torch.stack([other, *_gradient(other)], dim=1)
        for _ in range(parameters.warps):
            solve(unknowns, (warp or linearised)(one, planes_N3HW, unknowns.u1, unknowns.u2), parameters)
        u1, u2 = unknowns.u1, unknowns.u2
    return torch.stack([u1, u2], dim=-1)


def linearised(first_NHW: Tensor, planes_N3HW: Tensor, u1: Tensor, u2: Tensor) -> Linearised:
    """The second picture, as level and gradient, warped by the flow, against the first; outside it is 0."""
    height, width = first_NHW.shape[1:]
    # Places are told as parts of the picture's side, and what is lost by that in float32 makes still pictures move.
    exact = torch.float32 if u1.device.type == "mps" else torch.float64  # which mps lacks
    columns, rows = (torch.arange(side, device=u1.device, dtype=exact) for side in (width, height))
    x = (columns + u1) * (2 / (width - 1)) - 1  # -1 and 1 are the middles of the outermost pixels
    y = (rows[:, None] + u2) * (2 / (height - 1)) - 1
    grid, planes = torch.stack([x, y], dim=-1), planes_N3HW.to(exact)
    warped = functional.grid_sample(planes, grid, mode="bicubic", padding_mode="zeros", align_corners=True).float()
    level, gx, gy = (warped[:, i].contiguous() for i in range(3))
    return Linearised(gx=gx, gy=gy, grad=gx * gx + gy * gy, rho_c=level - gx * u1 - gy * u2 - first_NHW)


def _scales(pictures_NHW: Tensor, parameters: Parameters) -> list[Tensor]:
    scales = [pictures_NHW.float().contiguous()]
    ratio = 1 / parameters.scale_step
    for height, width in parameters.sizes(pictures_NHW.shape[1], pictures_NHW.shape[2])[1:]:
        scales.append(_resized(scales[-1], height, width, ratio, ratio))
    return scales


def _enlarged(values_NHW: Tensor, height: int, width: int) -> Tensor:
    return _resized(values_NHW, height, width, values_NHW.shape[1] / height, values_NHW.shape[2] / width)


def _resized(values_NHW: Tensor, height: int, width: int, ratio_y: float, ratio_x: float) -> Tensor:
    """OpenCV's bilinear resize, without antialiasing; a ratio is the old side over the new one."""
    left, right, share = _between(width, values_NHW.shape[2], ratio_x, values_NHW.device)
    wide = values_NHW[:, :, left] * (1 - share) + values_NHW[:, :, right] * share
    above, below, share = _between(height, values_NHW.shape[1], ratio_y, values_NHW.device)
    share = share[:, None]
    return wide[:, above] * (1 - share) + wide[:, below] * share


def _between(count: int, old: int, ratio: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each new position the old ones around it, and how far on from the first it lies."""
    place = ((np.arange(count) + 0.5) * ratio - 0.5).astype(np.float32)
    before = np.floor(place)
    at = before.astype(np.int64)
    share = np.where((at < 0) | (at >= old - 1), np.float32(0), place - before)
    at = at.clip(0, old - 1)
    after = (at + 1).clip(max=old - 1)
    return (
        torch.from_numpy(at).to(device),
        torch.from_numpy(after).to(device),
        torch.from_numpy(share.astype(np.float32)).to(device),
    )


def _gradient(pictures_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences; at the border the missing neighbour is the pixel itself."""
    padded = functional.pad(pictures_NHW[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    gx = 0.5 * (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2])
    gy = 0.5 * (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1])
    return gx, gy
