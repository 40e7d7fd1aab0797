"""MatConvNet nets in memory, with the fields that DagNN.saveobj stores.

The names, the geometry and the order of the layers are those of He's Caffe ResNets after MatConvNet's import-caffe.py,
fine-tuned, and composed by st-resnet STMulNet.m. They are typed here by hand and shared with no importer.

Shapes: C channels, T instants, H W positions, L flow stack (2L channels), K classes. A parameter's axes are
MatConvNet's: filters [H W Cin Cout], biases and multipliers [C 1], moments [C 2] = [mu sigma].
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from tests.stmul.matconvnet_scores import OPS, Array, evaluate

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # residual units in the stages 2 to 5
SIGMA_OF_DEAD = 1e-5**0.5  # sqrt(0 + epsilon): what a channel that never varies has for sigma


@dataclass(frozen=True)
class Layer:
    """One layer. In a block a tuple is a row vector, a list a cell array, a bool a logical, a dict a struct."""

    name: str
    type: str  # "dagnn.Conv"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: tuple[str, ...]
    block: Mapping[str, Any]


@dataclass(frozen=True)
class Param:
    """One parameter, single precision, in MatConvNet's axis order."""

    name: str
    value: NDArray[np.float32]
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Net:
    """What DagNN.saveobj stores (matconvnet @DagNN/saveobj.m); the list of layers is in no order of execution."""

    layers: tuple[Layer, ...]
    params: tuple[Param, ...]
    vars: tuple[str, ...]
    meta: Mapping[str, Any]


# --- Layers, with every field that their blocks have ------------------------------------------------------------------


def _conv(name: str, source: str, size: tuple[int, ...], *, stride: int = 1, pad: int = 0, bias: bool = False) -> Layer:
    block = {"size": size, "hasBias": bias, "opts": ["cuDNN"]}
    block |= {"pad": (pad,) * 4, "stride": (stride,) * 2, "dilate": (1, 1)}
    params = (f"{name}_filter", f"{name}_bias") if bias else (f"{name}_filter",)
    return Layer(name, "dagnn.Conv", (source,), (name,), params, block)


def _norm(name: str, source: str, channels: int) -> Layer:
    block = {"numChannels": channels, "epsilon": 1e-5, "opts": ["NoCuDNN"], "freeze": False}
    params = (f"{name}_mult", f"{name}_bias", f"{name}_moments")
    return Layer(name, "dagnn.BatchNorm", (source,), (f"{source}x",), params, block)


def _relu(name: str, source: str, target: str) -> Layer:
    return Layer(name, "dagnn.ReLU", (source,), (target,), (), {"useShortCircuit": True, "leak": 0, "opts": []})


def _pool(name: str, source: str, method: str, size: int, *, stride: int, pad: tuple[int, ...]) -> Layer:
    block = {"method": method, "poolSize": (size, size), "opts": ["cuDNN"]}
    block |= {"pad": pad, "stride": (stride,) * 2, "dilate": (1, 1)}
    return Layer(name, "dagnn.Pooling", (source,), (name,), (), block)


def _loss(name: str, scores: str, target: str, kind: str, opts: Iterable[Any] = ()) -> Layer:
    block = {"loss": kind, "ignoreAverage": False, "opts": list(opts)}
    return Layer(name, "dagnn.Loss", (scores, "label"), (target,), (), block)


def _conv_norm_relu(name: str, norm: str, source: str, size: tuple[int, ...], **geometry: Any) -> list[Layer]:
    layers = [_conv(name, source, size, **geometry), _norm(norm, name, size[3])]
    return [*layers, _relu(f"{name}_relu", f"{name}x", f"{name}xxx")]


# --- Single streams ---------------------------------------------------------------------------------------------------


def unit_names(depth: int, stage: int) -> list[str]:
    """Caffe's names of a stage's units: 2a 2b 2c, and in the long stages of deeper nets 4a 4b1 4b2 ... ."""
    count = UNITS[depth][stage - 2]
    if depth > 50 and stage in (3, 4):
        return [f"{stage}a", *(f"{stage}b{i}" for i in range(1, count))]
    return [f"{stage}{letter}" for letter in ascii_lowercase[:count]]


def _unit(name: str, source: str, channels: int, middle: int, *, stride: int, projected: bool) -> list[Layer]:
    """A bottleneck, projection first; its stride is on the 1x1 convolutions."""
    branch, norm = f"res{name}_branch", f"bn{name}_branch"
    shortcut, layers = source, []
    if projected:
        shortcut = f"{branch}1x"
        layers = _conv_norm_relu(f"{branch}1", f"{norm}1", source, (1, 1, channels, 4 * middle), stride=stride)[:2]
    layers += _conv_norm_relu(f"{branch}2a", f"{norm}2a", source, (1, 1, channels, middle), stride=stride)
    layers += _conv_norm_relu(f"{branch}2b", f"{norm}2b", f"{branch}2axxx", (3, 3, middle, middle), pad=1)
    layers += _conv_norm_relu(f"{branch}2c", f"{norm}2c", f"{branch}2bxxx", (1, 1, middle, 4 * middle))[:2]
    addition = {"pickTemporalCentre": False}
    layers += [Layer(f"res{name}", "dagnn.Sum", (shortcut, f"{branch}2cx"), (f"res{name}",), (), addition)]
    return [*layers, _relu(f"res{name}_relu", f"res{name}", f"res{name}x")]


def _resnet(source: str, channels: int, *, depth: int, width: int, classes: int) -> list[Layer]:
    """Caffe's layers from conv1 to fc1000. Only the 50 layers' conv1 has a bias (ResNet-50-deploy.prototxt)."""
    conv1 = (7, 7, channels, width)
    layers = _conv_norm_relu("conv1", "bn_conv1", source, conv1, stride=2, pad=3, bias=depth == 50)
    layers += [_pool("pool1", "conv1xxx", "max", 3, stride=2, pad=(0, 1, 0, 1))]
    source, channels = "pool1", width
    for stage in range(2, 6):
        middle = width * 2 ** (stage - 2)
        for position, name in enumerate(unit_names(depth, stage)):
            stride = 2 if stage > 2 and position == 0 else 1
            layers += _unit(name, source, channels, middle, stride=stride, projected=position == 0)
            source, channels = f"res{name}x", 4 * middle
    layers += [_pool("pool5", source, "avg", 7, stride=1, pad=(0, 0, 0, 0))]
    return [*layers, _conv("fc1000", "pool5", (1, 1, channels, classes), bias=True)]


def _losses() -> list[Layer]:
    top5 = _loss("top5error", "fc1000", "top5error", "topkerror", ["topK", 5])
    softmax = _loss("loss_fc1000", "fc1000", "objective_fc1000", "softmaxlog")
    return [softmax, _loss("top1error", "fc1000", "top1error", "classerror"), top5]


def _appearance(depth: int, width: int, classes: int) -> list[Layer]:
    return [*_resnet("input", 3, depth=depth, width=width, classes=classes), *_losses()]


def _motion(depth: int, width: int, classes: int, stack: int, dropout: float) -> list[Layer]:
    """As cnn_ucf101_temporal.m leaves it: the dropout that fc1000 reads stands behind it in the list."""
    layers = _resnet("input", 2 * stack, depth=depth, width=width, classes=classes)
    if dropout:
        drop = {"rate": dropout, "frozen": False}
        layers[-1] = replace(layers[-1], inputs=("drop_pool5",))
        layers += [Layer("drop_pool5", "dagnn.DropOut", ("pool5",), ("drop_pool5",), (), drop)]
    return [*layers, *_losses()]


def imagenet_net(*, depth: int = 50, width: int = 4, classes: int = 6, seed: int = 0) -> Net:
    """A net like imagenet-resnet-50-dag: it reads 'data', ends in 'prob', and its average is a whole picture."""
    layers = _resnet("data", 3, depth=depth, width=width, classes=classes)
    prob = Layer("prob", "dagnn.SoftMax", ("fc1000",), ("prob",), (), {})
    slope = np.linspace(-9, 9, 224)[:, None, None] + np.linspace(-5, 5, 224)[None, :, None]
    return _finished([*layers, prob], (_rgb_average(seed) + slope).astype(np.float32), seed)


def appearance_base(*, depth: int = 50, width: int = 4, classes: int = 6, seed: int = 0) -> Net:
    """The fine-tuned appearance stream by itself; `width` is conv1's number of channels, 64 in the paper."""
    return _finished(_appearance(depth, width, classes), _rgb_average(seed), seed)


def motion_base(
    *, depth: int = 50, width: int = 4, classes: int = 6, seed: int = 0, stack: int = 10, dropout: float = 0.8
) -> Net:
    """The fine-tuned motion stream by itself, on `stack` flow fields u, v; without dropout the layer is absent."""
    return _finished(_motion(depth, width, classes, stack, dropout), np.full((1, 1, 2 * stack), 128.0), seed)


# --- Both streams -----------------------------------------------------------------------------------------------------


def final(
    *,
    depth_appearance: int = 50,
    depth_motion: int = 50,
    width: int = 4,
    classes: int = 6,
    seed: int = 0,
    stack: int = 10,
    dropout: float = 0.8,
    temporal_noise: float = 0.5,
) -> Net:
    """The composed net of st-resnet STMulNet.m; no `temporal_noise` leaves its temporal filters as they start."""
    appearance = _suffixed(_appearance(depth_appearance, width, classes), "spatial")
    motion = _suffixed(_motion(depth_motion, width, classes, stack, dropout), "temporal")
    appearance, motion = (
        _renamed(appearance, "input_spatial", "input"),
        _renamed(motion, "input_temporal", "input_flow"),
    )
    layers, times, pools = [*_gated(appearance), *motion], [], []
    for depth, stream in ((depth_appearance, "spatial"), (depth_motion, "temporal")):
        for stage in range(2, 6):
            relu = f"res{unit_names(depth, stage)[1]}_branch2b"
            layers, time = _inserted(layers, f"{relu}xxx_{stream}", _conv_time(f"{relu}_relu_{stream}_Time"))
            times.append(time)
        layers, pool = _inserted(layers, f"res5cx_{stream}", _pool_time(f"res5c_relu_pool_{stream}1"))
        pools.append(pool)
    errors = [_loss("err1__spatial", "fc1000_spatial", "error", "classerror")]
    errors += [_loss("err1_temporal", "fc1000_temporal", "error", "classerror")]
    average = np.concatenate([np.full((1, 1, 2 * stack), 128.0), _rgb_average(seed)], axis=2)
    return _finished([*layers, *times, *pools, *errors], average, seed, temporal_noise)


def _suffixed(layers: list[Layer], stream: str) -> list[Layer]:
    """A stream's layers under its own names; two get theirs from where they stand, whatever they are."""
    first_loss = next(i for i, layer in enumerate(layers) if layer.type == "dagnn.Loss")
    last_pool = max(i for i, layer in enumerate(layers) if layer.type == "dagnn.Pooling")
    names = {first_loss - 1: "prediction", last_pool - 1: "res5c_relu"}

    def suffixed(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word if word == "label" else f"{word}_{stream}" for word in words)

    return [
        replace(
            layer,
            name=f"{names.get(i, layer.name)}_{stream}",
            inputs=suffixed(layer.inputs),
            outputs=suffixed(layer.outputs),
            params=suffixed(layer.params),
        )
        for i, layer in enumerate(layers[: first_loss + 1])
    ]


def _renamed(layers: list[Layer], old: str, new: str) -> list[Layer]:
    return [replace(layer, inputs=tuple(new if var == old else var for var in layer.inputs)) for layer in layers]


def _gated(appearance: list[Layer]) -> list[Layer]:
    """Motion's ReLU times appearance's sum before its ReLU, read by nothing but the next layer of the list."""
    layers = list(appearance)
    for stage in range(2, 6):
        position = next(i for i, layer in enumerate(layers) if layer.name == f"res{stage}a_relu_spatial") + 1
        name = f"res{stage}a_relu_spatial_sum"
        factors = (f"res{stage}ax_temporal", f"res{stage}a_spatial")
        layers[position] = replace(layers[position], inputs=(name,))
        layers.insert(position, Layer(name, "dagnn.Mul", factors, (name,), (), {"backPropInput": (1, 1)}))
    return layers


def _conv_time(name: str) -> Layer:
    block = {"size": (1, 3, 0, 0), "hasBias": True, "opts": ["cuDNN"], "pad": (0, 0, 1, 1), "stride": (1, 1)}
    return Layer(name, "dagnn.ConvTime", (), (name,), (f"{name}_f", f"{name}_b"), block | {"dilate": (1, 1)})


def _pool_time(name: str) -> Layer:
    block = {"method": "max", "poolSize": (1, 5), "opts": ["cuDNN"], "pad": (0, 0, 0, 0), "stride": (1, 1)}
    return Layer(name, "dagnn.PoolTime", (), (name,), (), block | {"dilate": (1, 1)})


def _inserted(layers: list[Layer], var: str, new: Layer) -> tuple[list[Layer], Layer]:
    """The layers with `new` between `var` and its readers, and `new` itself, as wide as the reader's filters."""
    (reader,) = (layer for layer in layers if var in layer.inputs)
    block = new.block
    if "size" in block:
        channels = reader.block["size"][2]
        block = {**block, "size": (1, 3, channels, channels)}
    return _renamed(layers, var, new.outputs[0]), replace(new, inputs=(var,), block=block)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def _draws(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, crc32(name.encode())])


def _rgb_average(seed: int) -> Array:
    return np.array([124.0, 117.0, 104.0]).reshape(1, 1, 3) + _draws(seed, "averageImage").normal(size=3)


def pictures(seed: int, *shape: int) -> NDArray[np.uint8]:
    """Pictures (T, H, W, C) of coarse random blocks that change with time, under noise of the pixels."""
    draws = np.random.default_rng(seed)
    instants, height, width, channels = shape
    still, moving = draws.normal(size=(2, instants, height // 12 + 1, width // 12 + 1, channels))
    blocks = np.repeat(np.repeat(still[:1] + 0.7 * moving, 12, axis=1), 12, axis=2)[:, :height, :width]
    return np.clip(120 + 35 * blocks + 25 * draws.normal(size=shape), 0, 255).astype(np.uint8)


def _params(layer: Layer, seed: int, temporal_noise: float) -> list[Param]:
    """A layer's parameters, each drawn by its own name; moments wait for `_calibrated`."""
    draws = [_draws(seed, name) for name in layer.params]
    values: tuple[NDArray[Any], ...] = ()
    rates: tuple[tuple[float, float], ...] = ()  # learning rate and weight decay, of setLrWd.m
    if layer.type == "dagnn.BatchNorm":
        channels = layer.block["numChannels"]
        mult, bias = draws[0].uniform(0.4, 1.2, (channels, 1)), 0.3 * draws[1].normal(size=(channels, 1))
        values, rates = (mult, bias, np.tile([0.0, 1.0], (channels, 1))), ((2, 0), (1, 0), (0.05, 0))
    elif layer.type == "dagnn.ConvTime":
        size = layer.block["size"]
        taps = temporal_noise * draws[0].normal(size=size) / (3 * size[2]) ** 0.5
        taps[0, 1] += np.eye(size[2])
        values, rates = (taps, temporal_noise * draws[1].normal(size=(size[3], 1))), ((1, 1), (1, 1))
    elif layer.type == "dagnn.Conv":
        size = layer.block["size"]
        filters = draws[0].normal(size=size) * (2 / np.prod(size[:3])) ** 0.5
        values = (filters, *(draw.normal(size=(size[3], 1)) for draw in draws[1:]))
        rates = ((1, 1), (2, 0))[: len(values)]
    return [
        Param(name, value.astype(np.float32), *rate)
        for name, value, rate in zip(layer.params, values, rates, strict=True)
    ]


def _finished(layers: list[Layer], average: Array, seed: int, temporal_noise: float = 0.0) -> Net:
    params = tuple(param for layer in layers for param in _params(layer, seed, temporal_noise))
    names = dict.fromkeys(var for layer in layers for var in (*layer.inputs, *layer.outputs))
    normalization = {"imageSize": (224, 224, average.shape[2]), "averageImage": average}
    normalization |= {"border": (32, 32), "interpolation": "bicubic", "keepAspect": True, "cropSize": 0.875}
    classes_of_imagenet = {"name": ["n01440764", "n01443537"], "description": ["tench", "goldfish"]}
    meta = {"normalization": normalization | {"rgbVariance": np.eye(3) * 7.5}, "classes": classes_of_imagenet}
    meta |= {"curNumFrames": 5, "curBatchSize": 128}
    return _calibrated(Net(tuple(layers), params, tuple(names), meta), seed)


def _calibrated(net: Net, seed: int) -> Net:
    """The net with moments of its own on small random pictures, so that neither depth nor gates blow it up.

    Filters are scaled until sigma is a drawn number away from 1. Every sixteenth channel is dead: its filter is zero,
    its sigma sqrt(epsilon), and its mu off by about a sigma, so that what is divided by matters there as well.
    """
    values = {param.name: param.value for param in net.params}
    writer = {layer.outputs[0]: layer for layer in net.layers}

    def normalise(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
        (x_CTHW,), (mult, bias, _) = inputs, params
        draws, channels = _draws(seed, layer.params[2]), len(mult)
        alive = draws.permutation(channels) >= channels // 16
        sigma = draws.uniform(1.3, 2.0, channels) ** draws.choice([-1, 1], channels)
        sigma = np.where(alive, sigma, SIGMA_OF_DEAD)
        offset = draws.uniform(0.1, 0.6, channels) * draws.choice([-1, 1], channels) * np.where(alive, 1, 2)
        mean, deviation = x_CTHW.mean(axis=(1, 2, 3)), x_CTHW.std(axis=(1, 2, 3)) + 1e-9
        scale = alive * sigma / deviation
        for name in writer[layer.inputs[0]].params:  # Cout is the last axis of a filter, and the only one of a bias
            values[name] = (values[name].reshape(-1, channels) * scale).reshape(values[name].shape).astype(np.float32)
        values[layer.params[2]] = np.stack([scale * mean + offset * sigma, sigma], axis=1).astype(np.float32)
        standard = (x_CTHW - mean[:, None, None, None]) * (alive / deviation)[:, None, None, None]
        return mult[..., None, None] * (standard - offset[:, None, None, None]) + bias[..., None, None]

    convs = (layer for layer in net.layers if layer.type == "dagnn.Conv")
    sources = {conv.inputs[0]: conv.block["size"][2] for conv in convs if conv.inputs[0] not in writer}
    clips = {var: pictures(seed, 6, 96, 96, channels) - 120.0 for var, channels in sources.items()}
    wanted = [layer.outputs[0] for layer in net.layers if layer.type == "dagnn.BatchNorm"]
    evaluate(
        net,
        {var: clip.transpose(3, 0, 1, 2) for var, clip in clips.items()},
        wanted,
        OPS | {"dagnn.BatchNorm": normalise},
    )
    return replace(net, params=tuple(replace(param, value=values[param.name]) for param in net.params))
