"""Optical flow by RAFT: Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", 2020.

The networks are torchvision's `raft_large` and `raft_small`; the weights come from a file, and its tensors' names say
which of the two they are for. N pairs, H W positions. Nothing is fetched, and nothing in the file is run.

Libraries choose other algorithms for other batches. So a batch's size depends on nothing but the frames' size and the
kind of device, and the last batch is filled up.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from configs import SettingsError
from preprocess.errors import PreprocessError

STRIDE = 8  # pixels of a feature
SMALLEST = 128  # pixels of a side: the correlation has four levels of at least 2 x 2 features
CORRELATIONS = 2 << 28  # float32 values that a batch may hold of them: all features against all, 2 GiB
TOGETHER = 8  # pairs in a batch at most
LARGE_ONLY = "mask_predictor.conv.weight"  # raft_small has no such layer
AUTHORS = ("fnet.", "cnet.")  # as the paper's own code names the encoders


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Raft:
    """A network with its weights, on its device."""

    network: torch.nn.Module
    name: str  # raft_large or raft_small
    device: torch.device


def weights_digest(path: Path | str) -> str:
    """The SHA-256 of a file of weights, in hexadecimal: with the settings it says how flow was made."""
    where = _weights(path)
    about = where.stat()
    return _digest(where, about.st_size, about.st_mtime_ns)


def library(path: Path | str, device: torch.device | str) -> str:
    """All that decides what flow a file of weights gives: the file's SHA-256, the device's kind, versions."""
    import torchvision

    where = torch.device(device)
    kind = where.type
    if kind == "cuda":
        major, minor = torch.cuda.get_device_capability(where)
        kind = f"cuda sm_{major}{minor}"
    return f"raft {weights_digest(path)} on {kind}, torch {torch.__version__}, torchvision {torchvision.__version__}"


def open_raft(path: Path | str, device: torch.device | str = "cpu") -> Raft:
    """The network that the weights in a file (.pth, .pt or .safetensors) are for, ready on the device.

    It is kept for the next video. Raises SettingsError where there is no file, PreprocessError where it holds something
    else.
    """
    where = _weights(path)
    about = where.stat()
    return _opened(where, about.st_size, about.st_mtime_ns, torch.device(device))


def raft_flow(
    raft: Raft, first_NHW3: NDArray[np.uint8], second_NHW3: NDArray[np.uint8], *, updates: int = 12
) -> NDArray[np.float32]:
    """The flow from each RGB picture to its partner, (N, H, W, 2), pixels.

    `updates`: how often the network refines its estimate. A video's pairs give the same in calls of any multiples of
    `batch_size` pairs, from its first one on.
    """
    if first_NHW3.shape != second_NHW3.shape or first_NHW3.ndim != 4 or first_NHW3.shape[3] != 3:
        raise ValueError(
            f"pictures of shapes {first_NHW3.shape} and {second_NHW3.shape}: expected twice the same (N, H, W, 3)"
        )
    count, height, width, _ = first_NHW3.shape
    together = batch_size(raft.device, height, width)
    flow_NHW2 = np.empty((count, height, width, 2), np.float32)
    for start in range(0, count, together):
        some = np.minimum(np.arange(start, start + together), count - 1)
        there = flow_NHW2[start : start + together]
        there[:] = _flow(raft, first_NHW3[some], second_NHW3[some], updates)[: len(there)]
    return flow_NHW2


def batch_size(device: torch.device, height: int, width: int) -> int:
    """Pairs of frames of this size in a batch, 1 to 8; the same on any GPU. On the CPU a batch is a pair: no faster."""
    if device.type == "cpu":
        return 1
    features = math.prod(_padded(side) // STRIDE for side in (height, width))
    return max(1, min(TOGETHER, CORRELATIONS // features**2))


@torch.inference_mode()
def _flow(
    raft: Raft, first_NHW3: NDArray[np.uint8], second_NHW3: NDArray[np.uint8], updates: int
) -> NDArray[np.float32]:
    height, width = first_NHW3.shape[1:3]
    rows, columns = _padded(height) - height, _padded(width) - width
    border = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)

    def prepared(pictures_NHW3: NDArray[np.uint8]) -> Tensor:
        levels = torch.from_numpy(pictures_NHW3).to(raft.device).permute(0, 3, 1, 2).float()
        return functional.pad(levels / 127.5 - 1, border, mode="replicate")  # -1..1, as torchvision's transform

    with _exact(raft.device):
        flow_N2HW: Tensor = raft.network(prepared(first_NHW3), prepared(second_NHW3), num_flow_updates=updates)[-1]
    inner = flow_N2HW[:, :, border[2] : border[2] + height, border[0] : border[0] + width]
    return inner.permute(0, 2, 3, 1).float().cpu().contiguous().numpy()


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Convolutions by deterministic algorithms in full float32, chosen by rule and not by trying them.

    On the CPU in one thread: processes run side by side, and bytes must not depend on the number of cores.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(threads)


def _padded(side: int) -> int:
    return max(SMALLEST, -(-side // STRIDE) * STRIDE)


@functools.lru_cache(maxsize=8)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """Of the file as it was then: builds ask for each record."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=1)
def _opened(where: Path, size: int, changed_ns: int, device: torch.device) -> Raft:
    """The network with the file's weights as it was then."""
    from torchvision.models import optical_flow

    state = _read(where)
    name = _architecture(where, state)
    network = getattr(optical_flow, name)(weights=None, progress=False)
    expected = network.state_dict()
    wrong = [
        f"{key} is {'missing' if key not in state else tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key not in state or state[key].shape != value.shape
    ]
    wrong += [f"{key} is not among {name}'s" for key in state if key not in expected]
    if wrong:
        raise PreprocessError(
            f"{where}: {len(wrong)} of its tensors do not fit torchvision's {name}: {'; '.join(wrong[:3])}."
            " Take a file of torchvision's weights for it (preprocess.flow.weights)"
        )
    network.load_state_dict(dict(state))
    return Raft(network=network.eval().requires_grad_(False).to(device), name=name, device=device)


def _weights(path: Path | str) -> Path:
    where = Path(path)
    if not str(path) or not where.is_file():
        found = "no file is named" if not str(path) else f"there is no file {where}"
        raise SettingsError(
            f"preprocess.flow.weights: {found}; RAFT needs torchvision's weights of raft_large or raft_small"
            " (.pth or .safetensors). Fetch them once with: python -c 'from torchvision.models.optical_flow import"
            ' raft_large; import torch; torch.save(raft_large(weights="DEFAULT").state_dict(), "raft_large.pth")\''
        )
    return where


def _read(path: Path) -> Mapping[str, Tensor]:
    """The named tensors in a file; those of a network that was trained in several processes lose their prefix."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers raise whatever they trip over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PreprocessError(
            f"{path}: not readable as weights ({reason}); expected torchvision's RAFT weights, .pth or .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise PreprocessError(f"{path}: expected named tensors, found {type(found).__name__}")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _architecture(path: Path, state: Mapping[str, Tensor]) -> str:
    if any(name.startswith(AUTHORS) for name in state):
        raise PreprocessError(
            f"{path}: these are weights under the names of RAFT's own code (fnet, cnet); expected torchvision's names."
            " torchvision offers the same networks, trained alike: take its raft_large or raft_small"
        )
    if not any(name.startswith("feature_encoder.") for name in state):
        some = ", ".join(list(state)[:3])
        raise PreprocessError(f"{path}: expected weights of torchvision's RAFT, found tensors named {some}, ...")
    return "raft_large" if LARGE_ONLY in state else "raft_small"
