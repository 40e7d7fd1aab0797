"""One stream: a ResNet (He et al., CVPR 2016) over T instants, with filters and a maximum over time.

Shapes: B clips, T instants, C channels, H W positions, K classes; N = B T frames, those of a clip side by side. Frames
are folded into the batch, so every spatial convolution is two-dimensional. Memory is channels-last, so that for what
looks along time a clip is a picture of T rows and H W columns, without a copy.

Units are named as in the papers: 2a, 2b, ... 5c. They take and hand on sums *before* the ReLU, where a gate can see
them. So does the stem: maximum and ReLU may change places.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from stmul.batchnorm import BatchNorm2d
from stmul.config import StreamNetwork, TemporalFilters, unit_names
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


class TemporalFilter(nn.Module):
    """A convolution over instants t-1, t, t+1, each output channel from all input channels, zeros beyond the clip.

    It starts as the same three taps for each channel by itself; `centre` changes nothing (st-resnet `ConvTime.m`).
    """

    def __init__(self, channels: int, initial: str) -> None:
        super().__init__()
        taps = torch.tensor(TAPS[initial])
        self.weight = nn.Parameter(torch.eye(channels)[:, :, None] * taps)  # (C out, C in, 3)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_NCHW: Tensor, instants: int) -> Tensor:
        """Filtered x, of the same shape."""
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
    with a ReLU; `temporal` is the initial filter after the ReLU of the middle one (basic: of the first), if any.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        bottleneck: bool,
        stride: int,
        stride_on: str,
        temporal: str | None,
    ) -> None:
        super().__init__()
        channels_out = channels * expansion(bottleneck)
        if bottleneck:
            first, middle = (stride, 1) if stride_on == "1x1" else (1, stride)
            self.conv1, self.norm1 = conv(channels_in, channels, 1, first), BatchNorm2d(channels)
            self.conv2, self.norm2 = conv(channels, channels, 3, middle), BatchNorm2d(channels)
            self.conv3, self.norm3 = conv(channels, channels_out, 1), BatchNorm2d(channels_out)
        else:
            self.conv1, self.norm1 = conv(channels_in, channels, 3, stride), BatchNorm2d(channels)
            self.conv2, self.norm2 = conv(channels, channels_out, 3), BatchNorm2d(channels_out)
        self.bottleneck = bottleneck
        self.temporal = None if temporal is None else TemporalFilter(channels, temporal)
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
        x = self.norm1(self.conv1(x_NCHW)).relu_()  # in place: normalisation keeps its input, not its output
        if self.bottleneck:
            x = self.norm2(self.conv2(x)).relu_()
        if self.temporal is not None:
            x = self.temporal(x, instants)
        last: Tensor = self.norm3(self.conv3(x)) if self.bottleneck else self.norm2(self.conv2(x))
        return last


def expansion(bottleneck: bool) -> int:
    """Channels that a unit hands on, over the channels of its middle."""
    return 4 if bottleneck else 1


class Stream(nn.Module):
    """A whole network of one stream: stem, units by name, head.

    `settings.width` channels leave the first convolution; `stride_on` "1x1" or "3x3" and `pooling` "caffe" or
    "torchvision" choose between the two ResNets in use; `pool` is the side of the last average's window (7 at 224
    pixels), `temporal_window` the length of the maximum over time. Raises NetworkError for temporal filters in units
    that a network of this depth lacks.
    """

    def __init__(
        self,
        settings: StreamNetwork,
        *,
        channels: int,
        classes: int,
        temporal: TemporalFilters | None,
        stride_on: str,
        pooling: str,
        pool: int,
        temporal_window: int,
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.pool, self.temporal_window = channels, classes, pool, temporal_window
        width, bottleneck, names = settings.width, settings.depth >= 50, unit_names(settings.depth)
        filtered = () if temporal is None else temporal.units
        if missing := sorted(set(filtered) - set(names)):
            raise NetworkError(
                f"temporal filters in {', '.join(missing)}: depth {settings.depth} has {', '.join(names)}"
            )
        self.conv1 = conv(channels, width, 7, 2)
        # Caffe's networks have a bias here, torchvision's none. It is always there, zero by default, so that both
        # are held as they are; it is not trained: the normalisation after it takes out whatever it adds.
        self.conv1.bias = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.norm1 = BatchNorm2d(width)
        self.maximum = nn.MaxPool2d(3, 2, ceil_mode=True) if pooling == "caffe" else nn.MaxPool2d(3, 2, padding=1)
        self.units = nn.ModuleDict()
        channels_in = width
        for name in names:
            stage = int(name[0]) - 2
            self.units[name] = Unit(
                channels_in,
                width << stage,
                bottleneck=bottleneck,
                stride=2 if name[1:] == "a" and stage else 1,
                stride_on=stride_on,
                temporal=temporal.initial if temporal is not None and name in filtered else None,
            )
            channels_in = (width << stage) * expansion(bottleneck)
        self.dropout = nn.Dropout(settings.dropout)
        self.classifier = nn.Conv2d(channels_in, classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, frames_BTCHW: Tensor) -> Tensor:
        """Class scores before any softmax, (B, K, T', H', W'): one for each window in time and space."""
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
        x_NCHW = frames_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.maximum(self.norm1(self.conv1(x_NCHW)))  # type: ignore[no-any-return]

    def head(self, x_NCHW: Tensor, instants: int) -> Tensor:
        """From the last sum to score maps: maximum over time, then average over space, then the classifier."""
        height, width = x_NCHW.shape[-2:]
        window = min(self.temporal_window, instants)
        x_BCTP = functional.max_pool2d(as_rows(x_NCHW.relu(), instants), (window, 1), stride=1)
        x_NCHW = functional.avg_pool2d(
            as_frames(x_BCTP, height, width), (min(self.pool, height), min(self.pool, width)), stride=1
        )
        scores_NKHW = self.classifier(self.dropout(x_NCHW))
        return scores_NKHW.unflatten(0, (-1, instants - window + 1)).transpose(1, 2)  # type: ignore[no-any-return]
