"""Training as released, step by step: MatConvNet's update in plain numpy, in double precision, beside stmul's.

The rule is that of st-resnet `cnn_train_dag.m` (momentum, decay), matconvnet `BatchNorm.m` (moments), `DropOut.m` and
`setLrWd.m` (multipliers). Gradients are by hand for a small network; for two streams they are torch's, through torch's
own normalisation, one sub-batch at a time. Neither reference sees stmul's step, schedule or normalisation.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD

import stmul.train
from configs import load
from shards.order import steps_for
from stmul.batchnorm import BatchNorm2d
from stmul.config import Config, Network, Recipe, StreamNetwork
from stmul.loading import Batch, merged
from stmul.meter import Seen
from stmul.network import TwoStream
from stmul.runs import Run
from stmul.schedule import parameter_groups, rate
from stmul.stages import build
from stmul.train import step

# Differences, of the largest value of a parameter or of the moments: what is allowed, what a mistake exceeds.
# Moments agree less closely, as their rate is held in single precision (0.05 (1 + 1.5e-8)).
WEIGHTS_CLOSE, WEIGHTS_FAR, MOMENTS_CLOSE, MOMENTS_FAR = 1e-10, 1e-5, 1e-7, 1e-4
PARTS, CLIPS, INSTANTS, CLASSES = 4, 4, 3, 4  # sub-batches, and the clips of each
MOMENTUM, DECAY, MOMENTS_RATE, EPSILON, DROPOUT = 0.9, 5e-4, 0.05, 1e-5, 0.8
RATES = [0.02] * 6 + [0.002] * 3  # of each step
MULTIPLIERS = {"filter": (1, 1), "bias": (2, 0), "norm scale": (2, 0), "norm bias": (1, 0)}  # of rate, of decay
WRONG_MULTIPLIERS = {
    "filters are not decayed": ("filter", (1, 0)),
    "biases are decayed": ("bias", (2, 1)),
    "biases learn at the rate": ("bias", (1, 0)),
    "normalisation scales are decayed": ("norm scale", (2, 1)),
    "normalisation scales learn at the rate": ("norm scale", (1, 0)),
    "normalisation biases are decayed": ("norm bias", (1, 1)),
    "normalisation biases learn twice as fast": ("norm bias", (2, 0)),
}
WRONG_SPREADS = {
    "moments of the variance": lambda variance: variance,
    "moments of the unbiased variance": lambda variance: np.sqrt(variance * (360 / 359) + EPSILON),  # of 360 values
}
WRONG_MOMENTS = (*WRONG_SPREADS, "moments move by 0.1")
WRONG_RULE = (
    "gradient over the clips of a sub-batch",
    "normalised over the whole batch",
    "momentum is dampened",
    "momentum is Nesterov's",
    "momentum holds the rate",
    "the rate changes a step early",
    "dropout is not scaled",
)

Array = NDArray[np.float64]
Named = dict[str, Any]
Gradients = Callable[[Named, list[Batch], list[Array], float], tuple[Named, dict[str, list[tuple[Array, Array]]]]]


class Reference:
    """MatConvNet's solver: values and momenta by parameter, moments (mean, sigma) by normalisation."""

    def __init__(self, network: nn.Module, gradients: Gradients, wrong: str) -> None:
        self.values = {name: one.detach().numpy().copy() for name, one in network.named_parameters()}
        self.moments = {name: moments_of(one) for name, one in network.named_modules() if isinstance(one, BatchNorm2d)}
        self.momenta: Named = dict.fromkeys(self.values, 0.0)
        self.kinds, self.gradients, self.wrong = kinds(network), gradients, wrong
        kind, pair = WRONG_MULTIPLIERS.get(wrong, ("", (0, 0)))
        self.multipliers = {**MULTIPLIERS, kind: pair}
        self.kept_scale = 1.0 if wrong == "dropout is not scaled" else 1.0 / (1.0 - DROPOUT)
        self.spread = WRONG_SPREADS.get(wrong, lambda variance: np.sqrt(variance + EPSILON))

    def step(self, number: int, parts: list[Batch], kept: list[Array]) -> None:
        """One update from sub-batches and the features that dropout kept of each."""
        wrong, clips = self.wrong, sum(len(part.labels_B) for part in parts)
        if wrong == "normalised over the whole batch":
            parts, kept = list(merged(iter(parts), len(parts))), [np.concatenate(kept)]
        gradients, seen = self.gradients(self.values, parts, kept, self.kept_scale)
        now = RATES[min(number + (wrong == "the rate changes a step early"), len(RATES) - 1)]
        divisor = CLIPS if wrong == "gradient over the clips of a sub-batch" else clips
        for name, gradient in gradients.items():
            learning, decay = self.multipliers[self.kinds[name]]
            slope = gradient / divisor + DECAY * decay * self.values[name]
            scale, outer = (now, 1.0) if wrong == "momentum holds the rate" else (1.0, now)
            scale *= 1.0 - MOMENTUM * (wrong == "momentum is dampened" and number > 0)
            self.momenta[name] = MOMENTUM * self.momenta[name] - scale * slope
            ahead = MOMENTUM * self.momenta[name] - slope
            move = ahead if wrong == "momentum is Nesterov's" else self.momenta[name]
            self.values[name] = self.values[name] + outer * learning * move
        share = 0.1 if wrong == "moments move by 0.1" else MOMENTS_RATE
        for name, pairs in seen.items():
            average = np.mean([(mean, self.spread(variance)) for mean, variance in pairs], axis=0)
            self.moments[name] = (1 - share) * self.moments[name] + share * average

    def differences(self, network: nn.Module) -> tuple[float, float]:
        """The largest difference of a parameter and of a moment, over the largest of its own values."""
        its = {name: one.detach().numpy() for name, one in network.named_parameters()}
        weights = [off(own.ravel(), its[name].ravel()) for name, own in self.values.items()]
        moments = [off(own, moments_of(network.get_submodule(name))) for name, own in self.moments.items()]
        return max(weights), max(moments)


def off(own: Array, its: Array) -> float:
    return float((abs(own - its).max(-1) / np.maximum(abs(own).max(-1), 1e-9)).max())


def moments_of(norm: nn.Module) -> Array:
    return np.stack([norm.running_mean.numpy(), norm.running_sigma.numpy()])


def kinds(network: nn.Module) -> dict[str, str]:
    """What each parameter is, by its name."""
    found = {}
    for place, owner in network.named_modules():
        norm = isinstance(owner, BatchNorm2d)
        for name, _ in owner.named_parameters(recurse=False):
            kind = ("norm scale" if norm else "filter") if name == "weight" else ("norm bias" if norm else "bias")
            found[f"{place}.{name}"] = kind
    return found


class Small(nn.Module):
    """A 1x1 convolution, normalisation, ReLU, the mean of a clip, dropout, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.norm = nn.Conv2d(3, 12, 1, bias=False), BatchNorm2d(12)
        self.dropout, self.classifier = nn.Dropout(DROPOUT), nn.Conv2d(12, CLASSES, 1)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        x_NCHW = self.norm(self.filters(x_BTCHW.flatten(0, 1))).relu()
        x_BCHW = x_NCHW.unflatten(0, x_BTCHW.shape[:2]).mean((1, 3, 4))[:, :, None, None]
        return self.classifier(self.dropout(x_BCHW))[:, :, None]


def by_hand(values: Named, parts: list[Batch], kept: list[Array], kept_scale: float) -> tuple[Named, Named]:
    """Gradients of `Small`'s summed loss, forwards and backwards written out; mean and variance of each sub-batch."""
    total: Named = dict.fromkeys(values, 0.0)
    seen: Named = {"norm": []}
    filters, classifier = values["filters.weight"][:, :, 0, 0], values["classifier.weight"][:, :, 0, 0]
    scale, bias = values["norm.weight"][:, None, None], values["norm.bias"][:, None, None]
    axes = (0, 1, 3, 4)
    for part, kept_BCHW in zip(parts, kept, strict=True):
        x_BTCHW, labels_B = part.rgb_BTCHW.numpy(), part.labels_B.numpy()
        conv = np.einsum("dc,btchw->btdhw", filters, x_BTCHW)
        mean, variance = conv.mean(axes), conv.var(axes)
        sigma = np.sqrt(variance + EPSILON)[:, None, None]
        normal = (conv - mean[:, None, None]) / sigma
        out = scale * normal + bias
        mask_BC = kept_BCHW[:, :, 0, 0] * kept_scale
        feature_BC = np.maximum(out, 0).mean((1, 3, 4)) * mask_BC
        scores_BK = feature_BC @ classifier.T + values["classifier.bias"]
        odds_BK = np.exp(scores_BK - scores_BK.max(1, keepdims=True))
        to_scores = odds_BK / odds_BK.sum(1, keepdims=True) - np.eye(CLASSES)[labels_B]
        to_feature = (to_scores @ classifier) * mask_BC / (out.size / mask_BC.size)
        to_out = (out > 0) * to_feature[:, None, :, None, None]
        to_normal = to_out * scale
        along = (to_normal * normal).mean(axes)[:, None, None]
        to_conv = (to_normal - to_normal.mean(axes)[:, None, None] - normal * along) / sigma
        for name, gradient in {
            "filters.weight": np.einsum("btdhw,btchw->dc", to_conv, x_BTCHW)[:, :, None, None],
            "norm.weight": (to_out * normal).sum(axes),
            "norm.bias": to_out.sum(axes),
            "classifier.weight": (to_scores.T @ feature_BC)[:, :, None, None],
            "classifier.bias": to_scores.sum(0),
        }.items():
            total[name] = total[name] + gradient
        seen["norm"].append((mean, variance))
    return total, seen


def through_torch(network: TwoStream) -> Gradients:
    """Gradients of the summed loss of a copy of `network` whose normalisations are torch's."""
    plain, seen = copy.deepcopy(network), defaultdict(list)

    def note(name: str, _: nn.Module, given: tuple[Tensor]) -> None:
        x_NCHW = given[0].detach().numpy()
        seen[name].append((x_NCHW.mean((0, 2, 3)), x_NCHW.var((0, 2, 3))))

    for name, norm in network.named_modules():
        if isinstance(norm, BatchNorm2d):
            plain.set_submodule(name, nn.BatchNorm2d(len(norm.weight), EPSILON, track_running_stats=False).double())
            plain.get_submodule(name).register_forward_pre_hook(partial(note, name))
    plain.motion.dropout = nn.Identity()
    plain.motion.dropout.register_forward_hook(lambda dropout, given, out: out * dropout.mask)

    def gradients(values: Named, parts: list[Batch], kept: list[Array], kept_scale: float) -> tuple[Named, Named]:
        plain.zero_grad()
        seen.clear()
        for name, parameter in plain.named_parameters():
            parameter.data.copy_(torch.from_numpy(values[name]))
        for part, mask in zip(parts, kept, strict=True):
            plain.motion.dropout.mask = torch.from_numpy(mask * kept_scale)
            # 32 pixels and one window over time: a map has one place.
            heads = [map_BKTHW[:, :, 0, 0, 0] for map_BKTHW in plain(part.rgb_BTCHW, part.flow_BTCHW)]
            sum((head.logsumexp(1) - head[range(CLIPS), part.labels_B]).sum() for head in heads).backward()
        return {name: one.grad.numpy() for name, one in plain.named_parameters() if one.requires_grad}, seen

    return gradients


def small_network() -> tuple[nn.Module, nn.Dropout, Gradients]:
    network = drawn(Small())
    return network, network.dropout, by_hand


def two_streams() -> tuple[nn.Module, nn.Dropout, Gradients]:
    appearance, motion = (StreamNetwork(depth=18, width=8, dropout=dropout) for dropout in (0.0, DROPOUT))
    settings = Network(appearance=appearance, motion=motion, temporal={"units": ()})
    network = drawn(TwoStream(settings, stack=2, classes=CLASSES, pool=1))
    return network, network.motion.dropout, through_torch(network)


def drawn(network: Any) -> Any:
    """The network in double precision, training, with nothing left at zero or one where a mistake could hide."""
    torch.manual_seed(0)
    network.double().train()
    for module in network.modules():
        if getattr(module, "bias", None) is not None and module.bias.requires_grad:
            nn.init.uniform_(module.bias, 0.1, 0.5)
        if isinstance(module, BatchNorm2d):
            for one in (module.weight, module.running_mean, module.running_sigma):
                nn.init.uniform_(one, 0.5, 1.5)
    return network


def sub_batches_of(network: nn.Module, number: int) -> list[Batch]:
    """The drawn sub-batches of a step."""
    draws, joined = torch.Generator().manual_seed(number), isinstance(network, TwoStream)

    def levels(channels: int, *size: int) -> Tensor:
        return 255 * torch.rand(CLIPS, INSTANTS, channels, *size, generator=draws, dtype=torch.float64)

    return [
        Batch(
            rgb_BTCHW=levels(3, 32, 32) if joined else levels(3, 6, 5) / 100,
            flow_BTCHW=levels(4, 32, 32) if joined else None,
            labels_B=torch.randint(CLASSES, (CLIPS,), generator=draws),
            positions=tuple(range(i * CLIPS, (i + 1) * CLIPS)),
            valid=(True,) * CLIPS,
        )
        for i in range(number * PARTS, (number + 1) * PARTS)
    ]


def differences(made: Callable[[], Any], groups: int, wrong: str = "") -> list[tuple[float, float]]:
    """Between stmul and the reference after each step; `groups` sub-batches go through stmul's network at once."""
    network, dropout, gradients = made()
    reference = Reference(network, gradients, wrong)
    recipe = Recipe(epochs=1, rates=(0.02, 0.02, 0.002))
    optimizer = SGD(parameter_groups(network, DECAY), lr=1.0, momentum=MOMENTUM)
    settings: Named = {"clips": PARTS * CLIPS, "seed": 1, "moments_rate": MOMENTS_RATE, "clip_norm": 0.0}
    kept: list[Array] = []
    dropout.register_forward_hook(lambda _, given, out: kept.append((out != 0).numpy()))
    found = []
    for number in range(len(RATES)):
        for group in optimizer.param_groups:
            group["lr"] = rate(number, len(RATES), recipe) * group["scale"]
        kept.clear()
        parts = sub_batches_of(network, number)
        step(network, merged(iter(parts), groups), optimizer, **settings)
        reference.step(number, parts, np.split(np.concatenate(kept), PARTS))
        found.append(reference.differences(network))
    return found


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("made", [small_network, two_streams])
def test_every_step_is_the_released_update(made, groups):
    for weights, moments in differences(made, groups):
        assert weights < WEIGHTS_CLOSE
        assert moments < MOMENTS_CLOSE


@pytest.mark.parametrize("wrong", [*WRONG_MULTIPLIERS, *WRONG_MOMENTS, *WRONG_RULE])
def test_another_rule_would_be_found(wrong):
    weights, moments = np.max(differences(small_network, 2, wrong), axis=0)
    assert moments > MOMENTS_FAR if wrong in WRONG_MOMENTS else weights > WEIGHTS_FAR


def test_the_bias_of_a_temporal_filter_learns_and_is_decayed_as_its_weight():
    """STMulNet.m calls setLrWd before it adds the filters, whose parameters keep addParam's multipliers: 1 and 1."""
    streams = StreamNetwork(depth=18, width=8)
    network = TwoStream(Network(appearance=streams, motion=streams), stack=2, classes=3, pool=1)
    bias = network.motion.units["3b"].temporal.bias
    (group,) = [one for one in parameter_groups(network, DECAY) if any(bias is own for own in one["params"])]
    assert (group["scale"], group["weight_decay"]) == (1.0, DECAY)


def test_a_stage_takes_its_steps_at_the_rates_and_with_the_settings_of_its_recipe(small, split, tmp_path, monkeypatch):
    rates = "train.joint={epochs: 4, rates: [0.02, 0.02, 0.002, 0.002]}"
    config = small(rates, "train.groups=2", "network.temporal.units=[]")
    network = build("joint", config, 3)
    kind_of = {id(one): kinds(network)[name] for name, one in network.named_parameters()}
    taken = []

    def noted(network: nn.Module, batches: Iterable[Batch], optimizer: SGD, **settings: Any) -> Seen:
        rules = {
            (kind_of[id(one)], group["lr"], group["weight_decay"], group["momentum"])
            for group in optimizer.param_groups
            for one in group["params"]
        }
        plain = all(group["dampening"] == 0 and not group["nesterov"] for group in optimizer.param_groups)
        taken.append((rules, plain, [len(one.labels_B) // one.groups for one in batches], settings))
        return Seen(loss=0.0, right=0, valid=4)

    monkeypatch.setattr(stmul.train, "step", noted)
    stmul.train.train_stage(
        "joint",
        network,
        config,
        split,
        Run(tmp_path),
        device=torch.device("cpu"),
        watch=lambda _: None,
        log=lambda _: None,
        stop=lambda: False,
    )
    assert len(taken) == 10  # four passes over ten clips, four at a time
    for (rules, plain, clips, settings), now in zip(taken, [0.02] * 5 + [0.002] * 5, strict=True):
        expected = {(kind, now * learning, DECAY * decay, 0.9) for kind, (learning, decay) in MULTIPLIERS.items()}
        assert (rules, plain, clips) == (expected, True, [2])
        assert (settings["clips"], settings["moments_rate"], settings["clip_norm"]) == (4, 0.05, 0.0)


# Of st-resnet STMulNet.m, cnn_ucf101_spatial.m, cnn_ucf101_temporal.m: passes over the clips in what they call an
# epoch (epochFactor), the rate of each such epoch, the crops (f25noCtr, borders25, multiScaleRegular), clips of an
# update and of the sub-batch that a GPU normalised.
RELEASED = [
    ("ucf101", "appearance", 10, (1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4), "border", (256, 32)),
    ("hmdb51", "appearance", 10, (1e-2, 1e-2, 1e-3, 1e-4), "border", (256, 32)),
    *[(name, "motion", 100, (1e-2, 1e-3, 1e-4, 1e-5), "multiscale", (128, 32)) for name in ("ucf101", "hmdb51")],
    *[(name, "joint", 5, (1e-3, 1e-3, 1e-4, 1e-5, 1e-6), "independent", (128, 4)) for name in ("ucf101", "hmdb51")],
]
TRAINING_CLIPS = {"ucf101": 9537, "hmdb51": 3570}  # of the first split


@pytest.mark.parametrize(("name", "stage", "passes", "rates", "crops", "batches"), RELEASED)
def test_every_released_epoch_has_its_rate_from_its_first_step_to_its_last(name, stage, passes, rates, crops, batches):
    config = load(Config, name, [])
    recipe, count = getattr(config.train, stage), TRAINING_CLIPS[name]
    steps = steps_for(recipe.epochs, count=count, batch=batches[0])
    assert config.train.batches(stage) == batches
    assert steps == -(-passes * len(rates) * count // batches[0])
    for epoch, expected in enumerate(rates):
        first, after = (-(-(epoch + i) * passes * count // batches[0]) for i in (0, 1))
        first += epoch > 0  # a change may come a step late: all steps together are rounded up
        assert (rate(first, steps, recipe), rate(after - 1, steps, recipe)) == (expected, expected)
    assert recipe.crops == crops


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_the_shipped_settings_are_the_released_ones(name):
    config = load(Config, name, [])
    train, data, network = config.train, config.data, config.network
    assert (train.momentum, train.weight_decay, train.moments_rate, train.clip_norm) == (0.9, 5e-4, 0.05, 0.0)
    assert (train.batch, train.sub_batch) == (128, 4)  # of the joint stage
    assert (data.frames, data.stride, data.crop) == (5, (5, 35), 224)
    assert (network.appearance.dropout, network.motion.dropout) == (0.0, 0.8)
