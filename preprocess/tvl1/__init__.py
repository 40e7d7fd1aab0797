"""TV-L1 optical flow: Zach, Pock and Bischof, "A duality based approach for realtime TV-L1 optical flow", 2007.

With OpenCV's parameters, pyramid, median filter and stop, so that it agrees with OpenCV's own, in a fraction of its
time: tests/bench/flow.py measures both. N pairs, H W positions, 2 = horizontal then vertical.
- On the CPU: cpu, compiled, one pair after the other on one thread; it loads no PyTorch.
- On CUDA: gpu, in fused kernels. On any other device, or without Triton: eager. Both by tensors.
A pair's flow is the same in any batch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from configs import SettingsError, nearest
from preprocess.tvl1.parameters import Parameters

if TYPE_CHECKING:
    import torch

    from preprocess.tvl1.tensors import Solver, Warp

Pictures = TypeVar("Pictures", "NDArray[Any]", "torch.Tensor")

VERSION = 1  # of the arithmetic on the CPU: raise it when the same pictures give other bytes
SMALLEST = 3  # pixels of a side
DRIVERS = ("libcuda.so.1", "libamdhip64.so")
EAGER_PIXELS = 64 * 340 * 256  # of a batch without fused kernels: some 5 GB


def tvl1(
    first_NHW: Pictures, second_NHW: Pictures, *, device: str | torch.device | None = None, **parameters: float
) -> Pictures:
    """The flow from each gray picture to its partner, (N, H, W, 2) float32, in pixels.

    Pictures are uint8 or float, levels 0..255; arrays give an array, tensors a tensor on their device. `device`: where
    to compute; unless given, where tensors are, and for arrays the GPU if there is one. `parameters`: the fields of
    `Parameters`. Raises SettingsError for a parameter that cannot be had, ValueError for pictures that do not match.
    """
    if first_NHW.ndim != 3 or first_NHW.shape != second_NHW.shape or min(first_NHW.shape[1:]) < SMALLEST:
        raise ValueError(
            f"pictures of shapes {tuple(first_NHW.shape)} and {tuple(second_NHW.shape)}: expected twice the same"
            f" (pairs, height, width), sides of {SMALLEST} or more"
        )
    settings = settings_of(parameters)
    if isinstance(first_NHW, np.ndarray) and isinstance(second_NHW, np.ndarray):
        return flow_of(first_NHW, second_NHW, settings, str(device or ("cpu" if why_no_cuda() else "cuda")))
    import torch

    first, second = (pictures.to(device or first_NHW.device) for pictures in (first_NHW, second_NHW))
    if first.device.type == "cpu":
        return torch.from_numpy(_on_cpu(first.numpy(), second.numpy(), settings)).to(first_NHW.device)
    return _on_device(first, second, settings).to(first_NHW.device)


def settings_of(parameters: Mapping[str, float]) -> Parameters:
    """`Parameters` with these values. Raises SettingsError for an unknown name, with the nearest."""
    names = [field.name for field in dataclasses.fields(Parameters)]
    for name in parameters:
        if name not in names:
            raise SettingsError(f"TV-L1 has no parameter {name}{nearest(name, names)} (it has {', '.join(names)})")
    return Parameters(**parameters)  # type: ignore[arg-type]


def flow_of(
    first_NHW: NDArray[Any], second_NHW: NDArray[Any], parameters: Parameters, device: str
) -> NDArray[np.float32]:
    """`tvl1` of arrays, with all decided."""
    if device == "cpu":
        return _on_cpu(first_NHW, second_NHW, parameters)
    import torch

    first, second = (
        torch.from_numpy(np.ascontiguousarray(pictures)).to(device) for pictures in (first_NHW, second_NHW)
    )
    return np.asarray(_on_device(first, second, parameters).cpu().numpy())


def why_no_cuda() -> str:
    """Why there is no GPU for this, in a few words; empty where there is one. Loads PyTorch only beside a driver."""
    if sys.platform == "linux" and not any(map(_loads, DRIVERS)):
        return "there is no driver of a GPU"
    try:
        import torch

        from preprocess.tvl1.gpu import why_unusable
    except ImportError as error:
        return f"PyTorch with Triton cannot be imported ({error})"
    return why_unusable(torch.device("cuda")) if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def cuda_devices() -> int:
    """How many GPUs this process may use."""
    if why_no_cuda():
        return 0
    import torch

    return torch.cuda.device_count()


def cuda_name() -> str:
    """The kind of GPU, as far as results may depend on it: "cuda sm_90"."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"cuda sm_{major}{minor}"


def cuda_library() -> str:
    """The version of the kernels, and all that their results may depend on."""
    from preprocess.tvl1 import gpu

    return f"{gpu.VERSION} on {cuda_name()}, torch {version('torch')}, triton {version('triton')}"


def cuda_pairs(height: int, width: int) -> int:
    """How many pairs of this size a GPU takes at once now."""
    import torch

    return _solver(torch.device("cuda"), height, width)[2]


def _loads(driver: str) -> bool:
    try:
        ctypes.CDLL(driver)
    except OSError:
        return False
    return True


def _on_cpu(first_NHW: NDArray[Any], second_NHW: NDArray[Any], parameters: Parameters) -> NDArray[np.float32]:
    from preprocess.tvl1.cpu import flow_of  # compiles

    flow_NHW2 = np.empty((*first_NHW.shape, 2), np.float32)
    for pair, (one, other) in enumerate(zip(first_NHW, second_NHW, strict=True)):
        flow_NHW2[pair] = flow_of(one, other, parameters)
    return flow_NHW2


def _on_device(first_NHW: torch.Tensor, second_NHW: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """In batches that fit the memory, smaller ones where they do not after all."""
    import torch

    from preprocess.tvl1.tensors import flow_of

    device, (pairs, height, width) = first_NHW.device, first_NHW.shape
    solve, warp, at_once = _solver(device, height, width)
    flow_NHW2, done = [first_NHW.new_empty((0, height, width, 2), dtype=torch.float32)], 0
    while done < pairs:
        batch = slice(done, done + at_once)
        try:
            flow_NHW2.append(flow_of(first_NHW[batch], second_NHW[batch], parameters, solve, warp))
        except torch.OutOfMemoryError:
            if at_once == 1:
                raise
            at_once //= 2
            continue
        done += at_once
    return torch.cat(flow_NHW2)


def _solver(device: torch.device, height: int, width: int) -> tuple[Solver, Warp | None, int]:
    """What solves and what warps on this device, and how many pairs of this size it takes at once."""
    if device.type == "cuda":
        from preprocess.tvl1 import gpu

        if not gpu.why_unusable(device):
            return gpu.solve, gpu.warped, gpu.pairs_at_once(device, height, width)
    from preprocess.tvl1 import eager

    return eager.solve, None, max(1, EAGER_PIXELS // (height * width))
