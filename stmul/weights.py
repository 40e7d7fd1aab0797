"""Weights from elsewhere: ImageNet networks in torchvision's form, and states of streams, fitted to a network."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from configs import text
from stmul.batchnorm import sigma_of
from stmul.checkpoint import differences, first
from stmul.config import FLOW_MEAN, RGB_CHANNELS, STRIDED, UNITS, Data, Network, StreamNetwork, unit_names
from stmul.errors import WeightsError

State = Mapping[str, Tensor]
IMAGENET_WIDTH = 64
TORCHVISION_MEAN = (123.675, 116.28, 103.53)  # 255 x its 0.485 0.456 0.406
TORCHVISION_STD = (0.229, 0.224, 0.225)
HEADS = ("classifier.weight", "classifier.bias")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weights:
    """States to begin with, by stage, and the network settings that they were made for."""

    states: Mapping[str, State]
    shared: Mapping[str, Any]


def stepping(network: Network) -> dict[str, str]:
    """Where a network steps and how it pools: what weights alone do not show."""
    return {"stride_on": network.stride_on, "pooling": network.pooling}


def made_for(config: str) -> dict[str, str]:
    """The same of the network that a checkpoint's settings (YAML) are for; nothing if they are of another version."""
    try:
        return stepping(Network.model_validate(text.parse(config)["network"]))
    except (ValueError, KeyError, TypeError):
        return {}


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


def imagenet(settings: Network, data: Data, *, source: str = "") -> Weights:
    """What each stream starts from: ImageNet weights in the form of `Stream`, still with 1000 classes.

    `source` is a file, or a folder with one for each depth: a torchvision state (.pth, .pt, .safetensors), or
    MatConvNet's `imagenet-resnet-50-dag.mat`, from which the authors started. Empty: torchvision's own, from its cache
    or its server. Raises WeightsError where they cannot be had, or are for other networks than those in the settings.
    """
    states: dict[str, State] = {}
    shared: dict[str, str] = {}
    for name, stream, channels in (
        ("appearance", settings.appearance, RGB_CHANNELS),
        ("motion", settings.motion, 2 * data.stack),
    ):
        if stream.width != IMAGENET_WIDTH:
            raise WeightsError(
                f"ImageNet weights: their width is {IMAGENET_WIDTH}, network.{name}.width is {stream.width}"
            )
        path = _in_folder(Path(source), stream.depth) if source else _downloaded(stream.depth)
        if path.suffix == ".mat":
            states[name], mine = _from_matconvnet(path, stream, channels)
        else:
            states[name] = from_torchvision(read_state(path), stream, channels=channels, where=str(path))
            mine = {"pooling": "torchvision", **({"stride_on": "3x3"} if stream.depth >= 50 else {})}
        if any(shared.get(key, value) != value for key, value in mine.items()):
            raise WeightsError(f"{path}: made for {mine}, the other stream's weights for {shared}")
        shared |= mine
    return Weights(states=states, shared=shared)


def _in_folder(source: Path, depth: int) -> Path:
    """The file itself, or the one of this depth in a folder: `resnet50*` or `imagenet-resnet-50-dag.mat`."""
    if not source.is_dir():
        return source
    pattern = re.compile(rf"(.*-)?resnet-?{depth}(\D.*)?\.(pth|pt|safetensors|mat)")
    found = [path for path in sorted(source.iterdir()) if pattern.fullmatch(path.name)]
    if len(found) != 1:
        named = ", ".join(path.name for path in found or sorted(source.iterdir())[:5]) or "nothing"
        raise WeightsError(f"{source}: expected one file of a ResNet-{depth}, as resnet{depth}.pth, found {named}")
    return found[0]


def _from_matconvnet(path: Path, settings: StreamNetwork, channels: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    from stmul.matconvnet import load_stream  # with it come readers of MATLAB files

    stream = load_stream(path)
    if stream.channels != RGB_CHANNELS or stream.own.depth != settings.depth:
        raise WeightsError(
            f"{path}: a ResNet-{stream.own.depth} on {stream.channels} channels, expected depth {settings.depth} on RGB"
        )
    state = stream.state_dict()
    return (state if channels == RGB_CHANNELS else _for_motion(state, channels)), stepping(stream.settings)


def _for_motion(state: State, channels: int) -> dict[str, Tensor]:
    """A state for RGB, with the mean of the three colours' filters for each of `channels` channels of flow.

    As st-resnet `cnn_ucf101_temporal.m`.
    """
    mixed = state["conv1.weight"].mean(1, keepdim=True).repeat(1, channels, 1, 1)
    return {**state, "conv1.weight": mixed, "mean": torch.full((channels,), FLOW_MEAN)}


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
    made["mean"] = torch.tensor(TORCHVISION_MEAN)
    made["conv1.bias"] = torch.zeros(len(made["conv1.weight"]))
    made["classifier.weight"] = made["classifier.weight"][:, :, None, None]
    return made if channels == RGB_CHANNELS else _for_motion(made, channels)


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


def _downloaded(depth: int, timeout_s: float = 10.0) -> Path:
    """The file of torchvision's own weights, the first that it published, from its cache or its server."""
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
    return cached
