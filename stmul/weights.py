"""Weights from elsewhere: ImageNet networks in torchvision's form, and states of streams, fitted to a network."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stmul.batchnorm import sigma_of
from stmul.checkpoint import differences, first
from stmul.config import FLOW_MEAN, STRIDED, UNITS, Data, Network, StreamNetwork, unit_names
from stmul.errors import WeightsError

State = Mapping[str, Tensor]
TORCHVISION_WIDTH = 64
RGB_CHANNELS = 3
TORCHVISION_MEAN = (123.675, 116.28, 103.53)  # 255 x its 0.485 0.456 0.406
TORCHVISION_STD = (0.229, 0.224, 0.225)
HEADS = ("classifier.weight", "classifier.bias")


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors in a .safetensors file, or in one written by torch.save; nothing in it is run.

    A checkpoint's or a training script's dictionary gives what is under `network`, `state_dict` or `model`.
    Raises WeightsError where the file is missing, cut, or holds something else.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the readers raise whatever they trip over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path}: not readable as weights ({reason}); expected .safetensors or torch.save"
        ) from error
    for key in ("network", "state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(f"{path}: expected named tensors, found {type(found).__name__}")
    return {str(name): value for name, value in found.items()}


def imagenet(settings: Network, data: Data, *, source: str = "") -> dict[str, State]:
    """What each stream starts from: torchvision's ImageNet weights in the form of `Stream`, still with 1000 classes.

    `source` is a file with a torchvision state; empty: torchvision's own, from its cache or its server. Raises
    WeightsError where they cannot be had, or are for other networks than those in the settings.
    """
    bottleneck = max(settings.appearance.depth, settings.motion.depth) >= 50
    if settings.pooling != "torchvision" or (bottleneck and settings.stride_on != "3x3"):
        raise WeightsError(
            f"ImageNet weights of torchvision: they need network.pooling torchvision and network.stride_on 3x3, found"
            f" {settings.pooling} and {settings.stride_on}"
        )
    states: dict[str, State] = {}
    for name, stream, channels in (
        ("appearance", settings.appearance, RGB_CHANNELS),
        ("motion", settings.motion, 2 * data.stack),
    ):
        if stream.width != TORCHVISION_WIDTH:
            raise WeightsError(
                f"ImageNet weights of torchvision: their width is {TORCHVISION_WIDTH},"
                f" network.{name}.width is {stream.width}"
            )
        where = source or f"torchvision's resnet{stream.depth}"
        state = read_state(Path(source)) if source else _downloaded(stream.depth)
        states[name] = from_torchvision(state, stream, channels=channels, where=where)
    return states


def from_torchvision(
    state: State, settings: StreamNetwork, *, channels: int, where: str = "torchvision's weights"
) -> dict[str, Tensor]:
    """A torchvision ResNet's state in the form of `Stream`, for input of `channels` channels in 0..255 minus the mean.

    1 / (255 std) goes into the first convolution, running variances become sigmas. With other channels than RGB each
    gets the mean of the three colours' filters (st-resnet `cnn_ucf101_temporal.m`). Raises WeightsError listing the
    first differences.
    """
    names = _torchvision_names(settings.depth)
    wrong = [f"{name} is missing" for name in names if name not in state]
    wrong += [
        f"{name} is not in a ResNet-{settings.depth}"
        for name in state
        if name not in names and not name.endswith("num_batches_tracked")
    ]
    _refuse(wrong, where)
    made = {ours: state[theirs].float() for theirs, ours in names.items()}
    made = {name: sigma_of(value) if name.endswith("running_sigma") else value for name, value in made.items()}
    if (shape := tuple(made["conv1.weight"].shape[1:])) != (RGB_CHANNELS, 7, 7):
        raise WeightsError(f"{where}: conv1.weight has filters of shape {shape}, expected (3, 7, 7)")
    made["conv1.weight"] = made["conv1.weight"] / (255.0 * torch.tensor(TORCHVISION_STD)[:, None, None])
    if channels != RGB_CHANNELS:
        made["conv1.weight"] = made["conv1.weight"].mean(1, keepdim=True).repeat(1, channels, 1, 1)
    made["mean"] = torch.tensor(TORCHVISION_MEAN) if channels == RGB_CHANNELS else torch.full((channels,), FLOW_MEAN)
    made["conv1.bias"] = torch.zeros(len(made["conv1.weight"]))
    made["classifier.weight"] = made["classifier.weight"][:, :, None, None]
    return made


def fitted(state: State, network: nn.Module, where: str = "starting weights") -> tuple[dict[str, Tensor], list[str]]:
    """`state` for `network`, and the names of the classifiers that were made for other classes: those stay as drawn.

    Raises WeightsError listing the first differences if anything else does not fit.
    """
    expected = network.state_dict()
    kept = dict(state)
    replaced = []
    for name, own in expected.items():
        if name.endswith(HEADS) and name in kept and len(kept[name]) != len(own):
            kept[name] = own
            replaced.append(name)
    _refuse(differences(kept, expected), where)
    return kept, replaced


def _refuse(wrong: Sequence[str], where: str) -> None:
    if wrong:
        raise WeightsError(f"{where}: for another network: {first(wrong)}; check depth and width")


def _torchvision_names(depth: int) -> dict[str, str]:
    """torchvision's name -> ours, for each tensor of a ResNet of this depth; our first bias has none."""
    convolutions, normalisations = {"conv1": "conv1"}, {"bn1": "norm1"}
    blocks = [f"layer{layer}.{block}" for layer, count in enumerate(UNITS[depth], 1) for block in range(count)]
    for theirs, unit in zip(blocks, unit_names(depth), strict=True):
        ours = f"units.{unit}"
        for i in (1, 2, 3) if depth >= 50 else (1, 2):
            convolutions[f"{theirs}.conv{i}"] = f"{ours}.conv{i}"
            normalisations[f"{theirs}.bn{i}"] = f"{ours}.norm{i}"
        if unit in STRIDED or (unit == "2a" and depth >= 50):
            convolutions[f"{theirs}.downsample.0"] = f"{ours}.project"
            normalisations[f"{theirs}.downsample.1"] = f"{ours}.project_norm"
    names = {f"{theirs}.weight": f"{ours}.weight" for theirs, ours in convolutions.items()}
    moments = {"weight": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_sigma"}
    for theirs, ours in normalisations.items():
        names |= {f"{theirs}.{one}": f"{ours}.{other}" for one, other in moments.items()}
    return names | {"fc.weight": "classifier.weight", "fc.bias": "classifier.bias"}


def _downloaded(depth: int, timeout_s: float = 10.0) -> dict[str, Tensor]:
    """torchvision's own weights, as published with the first paper's training, from its cache or its server."""
    from torchvision.models import get_model_weights

    url = str(get_model_weights(f"resnet{depth}").IMAGENET1K_V1.url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:  # asked for with a time limit first: torch.hub has none
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout_s):
                pass
            torch.hub.download_url_to_file(url, str(cached), hash_prefix=cached.stem.rpartition("-")[2], progress=False)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "reason", error)
            raise WeightsError(
                f"torchvision's ImageNet weights for resnet{depth} cannot be fetched ({reason});"
                f" give a file with them: --set train.imagenet=PATH"
            ) from error
    return read_state(cached)
