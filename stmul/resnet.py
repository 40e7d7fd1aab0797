"""One stream: a ResNet (He et al., CVPR 2016) over T instants, with filters and a maximum over time.

Shapes: B clips, T instants, C channels, H W positions, K classes; N = B T frames, those of a clip side by side. Frames
are folded into the batch, so every spatial convolution is two-dimensional. Memory is channels-last, so that for what
looks along time a clip is a picture of T rows and H W columns, without a copy.

Units are named as in the papers: 2a, 2b, ... 5c. They take and hand on sums *before* the ReLU, where a gate can see
them. So does the stem: maximum and ReLU may change places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stmul.batchnorm import BatchNorm2d
from stmul.config import STRIDED, Network, StreamNetwork, TemporalFilters, unit_names
from stmul.errors import NetworkError

Operator = Callable[[Tensor, Tensor], Tensor]
TAPS = {"centre": (0.0, 1.0, 0.0), "average": (1 / 3, 1 / 3, 1 / 3), "difference": (-1.0, 3.0, -1.0)}  # t-1, t, t+1


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that leaves out the positions its stride skips before it multiplies.

    The same numbers, as fast. With torch 2.15's own stride, and fewer than 8 channels, channels-last, on the CPU, the
    weight's gradient is written beyond its memory, which ends the process.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        step = self.stride[0]
        seen_NCHW = x_NCHW if step == 1 else x_NCHW[:, :, ::step, ::step]
        return functional.conv2d(seen_NCHW, self.weight, self.bias)


def conv(channels_in: int, channels_out: int, side: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1, without bias, He normal by fan-out."""
    kind = Pointwise if side == 1 else nn.Conv2d
    made = kind(channels_in, channels_out, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made.to(memory_format=torch.channels_last)


def inflated(weight: Tensor, initial: str) -> Tensor:
    """A 1x1 convolution's weight (C out, C in, 1, 1) over three instants, (C out, C in, 3): each tap has its share."""
    return weight[:, :, 0] * torch.tensor(TAPS[initial], dtype=weight.dtype, device=weight.device)


class TemporalFilter(nn.Module):
    """A convolution over instants t-1, t, t+1, each output channel from all input channels, zeros beyond the clip.

    It starts as `pointwise`, a weight (C out, C in, 1, 1), at each tap with that tap's share; the identity with taps
    `centre` changes nothing (matconvnet `ConvTime.m`).
    """

    def __init__(self, pointwise: Tensor, initial: str, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(inflated(pointwise, initial))  # (C out, C in, 3)
        self.bias = nn.Parameter(torch.zeros(len(pointwise))) if bias else None

    def forward(self, x_NCHW: Tensor, instants: int) -> Tensor:
        """Filtered x: N, H and W stay."""
        x_BCTP = as_rows(x_NCHW, instants)
        # A two-dimensional (3, 1) convolution: as fast as the three-dimensional one or faster, faster than three matrix
        # products, and laid out as the convolution after it wants it.
        out_BCTP = functional.conv2d(x_BCTP, self.weight.unsqueeze(-1), self.bias, padding=(1, 0))
        return as_frames(out_BCTP, *x_NCHW.shape[-2:])


def as_rows(x_NCHW: Tensor, instants: int) -> Tensor:
    """Frames as one picture per clip, (B, C, T, H W): a row for each instant."""
    frames, channels, height, width = x_NCHW.shape
    return x_NCHW.reshape(frames // instants, instants, channels, height * width).transpose(1, 2)


def as_frames(x_BCTP: Tensor, height: int, width: int) -> Tensor:
    """`as_rows` undone."""
    clips, channels, instants, _ = x_BCTP.shape
    return x_BCTP.transpose(1, 2).reshape(clips * instants, channels, height, width)


class Unit(nn.Module):
    """Residual unit on the sum x before its ReLU f: f(x) + F(f(x)); joined with another stream's m: f(x) + F(x * f(m)).

    `*` is the operator handed in. Only the input of the residual branch F is joined; the shortcut stays f(x).
    F is two 3x3 convolutions (basic) or 1x1, 3x3, 1x1 (bottleneck), each with its normalisation and all but the last
    with a ReLU. Over time, F has an injected filter after the ReLU of the middle one (basic: of the first), or its 1x1
    convolutions are inflated, or nothing (`temporal` None).
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        bottleneck: bool,
        stride: int,
        stride_on: str,
        temporal: TemporalFilters | None,
    ) -> None:
        super().__init__()
        channels_out = channels * expansion(bottleneck)
        if bottleneck:
            first, middle = (stride, 1) if stride_on == "1x1" else (1, stride)
            self.conv1: nn.Module = _pointwise(channels_in, channels, first, temporal)
            self.conv2: nn.Module = conv(channels, channels, 3, middle)
            self.conv3: nn.Module = _pointwise(channels, channels_out, 1, temporal)
            self.norm1, self.norm2, self.norm3 = (BatchNorm2d(out) for out in (channels, channels, channels_out))
        else:
            self.conv1, self.conv2 = conv(channels_in, channels, 3, stride), conv(channels, channels_out, 3)
            self.norm1, self.norm2 = BatchNorm2d(channels), BatchNorm2d(channels_out)
        self.bottleneck = bottleneck
        self.temporal: TemporalFilter | None = None
        if temporal is not None and temporal.kind == "injected":
            self.temporal = TemporalFilter(torch.eye(channels)[:, :, None, None], temporal.initial, bias=True)
        changes = stride != 1 or channels_in != channels_out
        self.project = conv(channels_in, channels_out, 1, stride) if changes else None
        self.project_norm = BatchNorm2d(channels_out) if changes else None

    def forward(
        self, x_NCHW: Tensor, instants: int, m_NCHW: Tensor | None = None, operator: Operator = torch.mul
    ) -> Tensor:
        """The sum before the next ReLU, from the sum x before this one and, if joined, the other stream's sum m."""
        shortcut = x_NCHW.relu()
        inner = shortcut if m_NCHW is None else operator(x_NCHW, m_NCHW.relu())
        return self.shortcut(shortcut) + self.residual(inner, instants)

    def shortcut(self, x_NCHW: Tensor) -> Tensor:
        """x, projected where size or channels change."""
        if self.project is None or self.project_norm is None:
            return x_NCHW
        projected: Tensor = self.project_norm(self.project(x_NCHW))
        return projected

    def residual(self, x_NCHW: Tensor, instants: int) -> Tensor:
        """F(x)."""
        x = self.norm1(_filtered(self.conv1, x_NCHW, instants))
        x = x.relu_()  # in place: normalisation keeps its input, not its output
        if self.bottleneck:
            x = self.norm2(self.conv2(x)).relu_()
        if self.temporal is not None:
            x = self.temporal(x, instants)
        last: Tensor = self.norm3(_filtered(self.conv3, x, instants)) if self.bottleneck else self.norm2(self.conv2(x))
        return last


def _pointwise(channels_in: int, channels_out: int, stride: int, temporal: TemporalFilters | None) -> nn.Module:
    made = conv(channels_in, channels_out, 1, stride)
    if temporal is None or temporal.kind != "inflated":
        return made
    return TemporalFilter(made.weight.detach(), temporal.initial, bias=False)


def _filtered(conv: nn.Module, x_NCHW: Tensor, instants: int) -> Tensor:
    return conv(x_NCHW, instants) if isinstance(conv, TemporalFilter) else conv(x_NCHW)  # type: ignore[no-any-return]


def expansion(bottleneck: bool) -> int:
    """Channels that a unit hands on, over the channels of its middle."""
    return 4 if bottleneck else 1


class Stream(nn.Module):
    """A whole network of one stream: mean, stem, units by name, head.

    `settings` are its own, `shared` what it has in common with the other; `mean` has an entry for each input channel;
    `pool` is the side of the last average's window (7 at 224 pixels). Without `over_time` nothing looks along time:
    no temporal filters, no maximum. Raises NetworkError for temporal filters in units that this depth lacks.
    """

    mean: Tensor
    settings: Network
    class_names: tuple[str, ...] = ()  # empty where nobody has told them

    def __init__(
        self,
        settings: StreamNetwork,
        shared: Network,
        *,
        mean: Sequence[float],
        classes: int,
        pool: int,
        over_time: bool = True,
    ) -> None:
        super().__init__()
        self.own, self.settings = settings, shared
        self.channels, self.classes, self.pool = len(mean), classes, pool
        self.temporal_window = shared.temporal_window if over_time else 1
        self.temporal_stride = shared.temporal_stride if over_time else 1
        width, bottleneck, names = settings.width, settings.depth >= 50, unit_names(settings.depth)
        filtered = shared.filtered(settings) if over_time else ()
        if missing := sorted(set(filtered) - set(names)):
            raise NetworkError(
                f"temporal filters in {', '.join(missing)}: depth {settings.depth} has {', '.join(names)}"
            )
        # Part of the weights: they are worth nothing with another one.
        self.register_buffer("mean", torch.tensor([float(level) for level in mean]))
        self.conv1 = conv(self.channels, width, 7, 2)
        # Caffe's networks have a bias here, torchvision's none. It is always there, zero by default, so that both
        # are held as they are; it is not trained: the normalisation after it takes out whatever it adds.
        self.conv1.bias = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.norm1 = BatchNorm2d(width)
        caffe = shared.pooling == "caffe"
        self.maximum = nn.MaxPool2d(3, 2, ceil_mode=True) if caffe else nn.MaxPool2d(3, 2, padding=1)
        self.units = nn.ModuleDict()
        channels_in = width
        for name in names:
            stage = int(name[0]) - 2
            self.units[name] = Unit(
                channels_in,
                width << stage,
                bottleneck=bottleneck,
                stride=2 if name in STRIDED else 1,
                stride_on=shared.stride_on,
                temporal=shared.temporal if name in filtered else None,
            )
            channels_in = (width << stage) * expansion(bottleneck)
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Conv2d(channels_in, classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Class scores before any softmax, (B, K, T', H', W'): one for each window in time and space.

        Frames are (B, T, C, H, W), levels 0..255 of RGB or of flow (x and y in turn), float or uint8.
        """
        instants = frames_BTCHW.shape[1]
        x_NCHW = self.stem(frames_BTCHW)
        for unit in self.units.values():
            x_NCHW = unit(x_NCHW, instants)
        return self.head(x_NCHW, instants)

    def stem(self, frames_BTCHW: Tensor) -> Tensor:
        """Clips folded into frames and through the first convolution: what unit 2a takes, (N, C, H/4, W/4)."""
        if frames_BTCHW.dim() != 5 or frames_BTCHW.shape[2] != self.channels:
            found = tuple(frames_BTCHW.shape)
            raise NetworkError(f"clips of shape {found}: expected (B, T, {self.channels}, H, W)")
        x_NCHW = frames_BTCHW.flatten(0, 1) - self.mean[:, None, None]
        x_NCHW = x_NCHW.contiguous(memory_format=torch.channels_last)
        return self.maximum(self.norm1(self.conv1(x_NCHW)))  # type: ignore[no-any-return]

    def head(self, x_NCHW: Tensor, instants: int) -> Tensor:
        """From the last sum to score maps: its ReLU, and what follows."""
        return self.classified(x_NCHW.relu(), instants)

    def classified(self, x_NCHW: Tensor, instants: int) -> Tensor:
        """From the last activations to score maps: maximum over time, then average over space, then the classifier."""
        height, width = x_NCHW.shape[-2:]
        window = min(self.temporal_window, instants)
        x_BCTP = functional.max_pool2d(as_rows(x_NCHW, instants), (window, 1), (self.temporal_stride, 1))
        x_NCHW = functional.avg_pool2d(
            as_frames(x_BCTP, height, width), (min(self.pool, height), min(self.pool, width)), stride=1
        )
        scores_NKHW = self.classifier(self.dropout(x_NCHW))
        return scores_NKHW.unflatten(0, (-1, x_BCTP.shape[2])).transpose(1, 2)  # type: ignore[no-any-return]
