"""What a forward and a training step cost: ours beside the same network in 3-D layers, alternating in one run.

    python -m tests.bench.network --clips 1 --seconds 60

The reference is the straightforward form: Conv3d(1, k, k), BatchNorm3d and 3-D pooling on (B, C, T, H, W), float32,
contiguous, with the same weights; its scores are held to ours (1e-8 of the largest) before anything is timed. The step
is the trainer's own. No data are read. Milliseconds of the wall's clock, or of the CPU's on a busy machine. Memory is a
process's peak (GPU: its peak of tensors) over one training step, each variant in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD

from configs import load
from stmul.arithmetic import autocast, compile_forward, missing_compiler
from stmul.config import Config
from stmul.loading import Batch
from stmul.network import OPERATORS, TwoStream
from stmul.resnet import Stream, TemporalFilter, Unit
from stmul.schedule import parameter_groups
from stmul.stages import build
from stmul.train import step

REFERENCE = "Conv3d, float32"
OURS = {  # precision, compiled
    "ours, float32": ("float32", False),
    "ours, bfloat16": ("bfloat16", False),
    "ours, float32, compiled": ("float32", True),
    "ours, bfloat16, compiled": ("bfloat16", True),
}
SIZES = ("depth", "width")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Plain(TwoStream):
    """A TwoStream's weights in 3-D layers, contiguous; a TwoStream by name, so that the trainer's step takes it."""

    def __init__(self, ours: TwoStream) -> None:
        nn.Module.__init__(self)
        self.appearance, self.motion = PlainStream(ours.appearance), PlainStream(ours.motion)
        self.operator, self.order = ours.operator, ours.order
        self.gated_appearance, self.gated_motion = ours.gated_appearance, ours.gated_motion

    def forward(self, rgb_BTCHW: Tensor, flow_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        operator = OPERATORS.get(self.operator, torch.mul)
        a, m = self.appearance.stem(rgb_BTCHW), self.motion.stem(flow_BTCHW)
        for name in self.order:
            x, y = a, m
            a = self.appearance.units[name](x, operator(x, y.relu()) if name in self.gated_appearance else x.relu())
            m = self.motion.units[name](y, operator(y, x.relu()) if name in self.gated_motion else y.relu())
        return self.appearance.head(a), self.motion.head(m)


class PlainStream(nn.Module):
    """A Stream in 3-D layers."""

    def __init__(self, ours: Stream) -> None:
        super().__init__()
        self.register_buffer("mean", ours.mean)
        self.conv1, self.norm1 = conv3d(ours.conv1), nn.BatchNorm3d(len(ours.norm1.weight))
        pool = ours.maximum
        self.maximum = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, pool.padding, pool.padding), ceil_mode=pool.ceil_mode)
        self.units = nn.ModuleDict({name: PlainUnit(unit) for name, unit in ours.units.items()})
        self.dropout, self.classifier = nn.Dropout(ours.dropout.p), conv3d(ours.classifier)
        self.window, self.stride, self.pool = ours.temporal_window, ours.temporal_stride, ours.pool

    def stem(self, frames_BTCHW: Tensor) -> Tensor:
        x_BCTHW = (frames_BTCHW - self.mean[:, None, None]).transpose(1, 2).contiguous()
        return self.maximum(self.norm1(self.conv1(x_BCTHW)).relu())

    def head(self, x_BCTHW: Tensor) -> Tensor:
        instants, height, width = x_BCTHW.shape[2:]
        x = functional.max_pool3d(x_BCTHW.relu(), (min(self.window, instants), 1, 1), (self.stride, 1, 1))
        x = functional.avg_pool3d(x, (1, min(self.pool, height), min(self.pool, width)), stride=1)
        return self.classifier(self.dropout(x))


class PlainUnit(nn.Module):
    """A Unit in 3-D layers; takes the sum and what its residual branch is to see."""

    def __init__(self, ours: Unit) -> None:
        super().__init__()
        numbers = (1, 2, 3) if ours.bottleneck else (1, 2)
        self.convs = nn.ModuleList(conv3d(getattr(ours, f"conv{i}")) for i in numbers)
        self.norms = nn.ModuleList(nn.BatchNorm3d(len(getattr(ours, f"norm{i}").weight)) for i in numbers)
        self.temporal = None if ours.temporal is None else conv3d(ours.temporal)
        self.project = None if ours.project is None else conv3d(ours.project)
        self.project_norm = None if ours.project_norm is None else nn.BatchNorm3d(len(ours.project_norm.weight))

    def forward(self, x_BCTHW: Tensor, inner_BCTHW: Tensor) -> Tensor:
        shortcut, y, last = x_BCTHW.relu(), inner_BCTHW, len(self.convs) - 1
        if self.project is not None:
            shortcut = self.project_norm(self.project(shortcut))
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = y.relu_() if i < last else y
            y = self.temporal(y) if self.temporal is not None and i == last - 1 else y
        return shortcut + y


def conv3d(ours: nn.Conv2d | TemporalFilter) -> nn.Conv3d:
    """The layer as a Conv3d over (T, H, W) that gives the same numbers."""
    if isinstance(ours, TemporalFilter):
        weight = ours.weight.detach()[..., None, None]
        made = nn.Conv3d(weight.shape[1], weight.shape[0], (3, 1, 1), padding=(1, 0, 0), bias=ours.bias is not None)
    else:
        weight = ours.weight.detach().unsqueeze(2)
        side, stride, padding = ours.kernel_size[0], ours.stride[0], ours.padding[0]
        made = nn.Conv3d(
            weight.shape[1],
            weight.shape[0],
            (1, side, side),
            (1, stride, stride),
            (0, padding, padding),
            bias=ours.bias is not None,
        )
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=ours.weight.requires_grad)
    if ours.bias is not None:
        made.bias = nn.Parameter(ours.bias.detach().clone(), requires_grad=ours.bias.requires_grad)
    return made


def made(variant: str, config: Config, device: torch.device) -> TwoStream:
    """The network of a variant, the same weights in each, on the device as the trainer puts it there."""
    network = build("joint", config, 101)
    assert isinstance(network, TwoStream)
    if variant == REFERENCE:
        return Plain(network).to(device)
    network.to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    if OURS[variant][1]:
        compile_forward(network)
    return network


def clips(config: Config, count: int, device: torch.device) -> Batch:
    """Clips of noise."""
    draw = torch.Generator().manual_seed(1)
    side, data = config.data.crop, config.data
    rgb, flow = (
        (torch.rand(count, data.frames, channels, side, side, generator=draw) * 255).to(device)
        for channels in (3, 2 * data.stack)
    )
    labels = torch.arange(count, device=device) % 101
    everyone = tuple(range(count))
    return Batch(rgb_BTCHW=rgb, flow_BTCHW=flow, labels_B=labels, positions=everyone, valid=(True,) * count)


@torch.no_grad()
def must_agree(config: Config, batch: Batch, device: torch.device) -> float:
    """The largest difference of scores between the reference and ours in training, over the largest score.

    In float64: a network as drawn amplifies what float32 rounds, and TF32 rounds more.
    """
    ours = made("ours, float32", config, device).double().train()
    both = []
    assert batch.rgb_BTCHW is not None
    assert batch.flow_BTCHW is not None
    rgb, flow = batch.rgb_BTCHW.double(), batch.flow_BTCHW.double()
    for network in (Plain(ours).to(device).double().train(), ours):
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        both.append(torch.cat([maps.flatten() for maps in network(rgb, flow)]))
    found = float((both[0] - both[1]).abs().max() / both[1].abs().max())
    if found > 1e-8:
        raise SystemExit(f"the reference is not the same network: scores differ by {found:.1e} of the largest")
    return found


def works(variant: str, config: Config, batch: Batch, device: torch.device) -> dict[str, Callable[[], None]]:
    """What is timed: a forward as in testing, a step as in training; both wait for the device."""
    network = made(variant, config, device)
    precision = OURS[variant][0] if variant in OURS else "float32"
    optimizer = SGD(parameter_groups(network, config.train.weight_decay), lr=1e-4, momentum=config.train.momentum)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def forward() -> None:
        network.eval()
        with torch.inference_mode(), autocast(device, precision):
            network(batch.rgb_BTCHW, batch.flow_BTCHW)
        wait()

    def train() -> None:
        network.train()
        count, moments_rate = len(batch.positions), config.train.moments_rate
        settings = {"clips": count, "seed": 1, "moments_rate": moments_rate, "clip_norm": 0.0, "precision": precision}
        step(network, [batch], optimizer, **settings)
        wait()

    return {"forward": forward, "train step": train}


def measured(
    timed: dict[str, dict[str, Callable[[], None]]], seconds: float, clock: Callable[[], float]
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each work of each variant, alternating; at least three rounds after one that is not counted."""
    times: dict[str, dict[str, list[float]]] = {name: {work: [] for work in some} for name, some in timed.items()}
    for name, some in timed.items():
        for work, do in some.items():
            begin = time.perf_counter()
            do()
            print(f"  {name}, {work}: {time.perf_counter() - begin:.1f} s at first", file=sys.stderr)
    begin, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - begin < seconds:
        for work in ("forward", "train step"):
            for name, some in timed.items():
                start = clock()
                some[work]()
                times[name][work].append(clock() - start)
        rounds += 1
    return times


def peak_gib(variant: str, config: Config, batch: Batch, device: torch.device) -> float:
    """GiB at most in this process for one training step."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    works(variant, config, batch, device)["train step"]()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Not getrusage's ru_maxrss: a child begins with its parent's.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**20 if found else float("nan")


def machine(device: torch.device) -> str:
    """The machine in a line, with what decides how float32 is multiplied."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    tf32 = f"TF32 convolutions {'on' if torch.backends.cudnn.allow_tf32 else 'off'}"
    tf32 += f", matrix products {'on' if torch.backends.cuda.matmul.allow_tf32 else 'off'}"
    rule = tf32 if device.type == "cuda" else "no TF32 on a CPU"
    threads, load_average = torch.get_num_threads(), os.getloadavg()[0]
    precision = torch.get_float32_matmul_precision()
    return f"{name}, torch {torch.__version__}, {threads} threads, load {load_average:.1f}; {rule}; matmul {precision}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="ucf101")
    parser.add_argument("--clips", type=int, default=0, help="default: a sub-batch on a GPU, 1 on the CPU")
    parser.add_argument("--crop", type=int)
    parser.add_argument("--instants", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, after the first round")
    parser.add_argument("--variants", default="", help="parted by ;  default: all on a GPU, float32 on the CPU")
    parser.add_argument("--tf32", choices=["yes", "no"], help="default: as PyTorch comes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--clock", choices=[*CLOCKS], default="wall", help="cpu: with OMP_NUM_THREADS=1")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked.tf32:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = asked.tf32 == "yes"
    given = {"data.crop": asked.crop, "data.frames": asked.instants}
    given |= {f"network.{one}.{what}": getattr(asked, what) for one in ("appearance", "motion") for what in SIZES}
    config = load(Config, asked.config, [f"{key}={value}" for key, value in given.items() if value is not None])
    batch = clips(config, asked.clips or (config.train.sub_batch if device.type == "cuda" else 1), device)
    if asked.memory_of:
        print(peak_gib(asked.memory_of, config, batch, device))
        return
    variants = [one.strip() for one in asked.variants.split(";") if one.strip()] or [REFERENCE, *OURS]
    if not asked.variants and device.type != "cuda":
        variants = [REFERENCE, "ours, float32"]
    if unknown := [one for one in variants if one not in (REFERENCE, *OURS)]:
        raise SystemExit(f"--variants: expected some of {'; '.join((REFERENCE, *OURS))}, found {unknown}")
    if any(OURS.get(one, ("", False))[1] for one in variants) and (missing := missing_compiler(device)):
        print(f"not compiled here: {missing}")
        variants = [one for one in variants if one not in OURS or not OURS[one][1]]
    report(asked, config, batch, variants, device)


def report(asked: argparse.Namespace, config: Config, batch: Batch, variants: list[str], device: torch.device) -> None:
    """Measures, prints the table, and writes it as JSON where asked."""
    print(machine(device))
    count, stream = len(batch.positions), config.network.appearance
    print(
        f"{count} clips of {config.data.frames} x {config.data.crop} x {config.data.crop}, depth {stream.depth},"
        f" width {stream.width}; reference and ours agree to {must_agree(config, batch, device):.0e} in float64"
    )
    times = measured(
        {name: works(name, config, batch, device) for name in variants}, asked.seconds, CLOCKS[asked.clock]
    )
    memory: dict[str, float] = {}
    for name in [] if asked.no_memory else variants:
        command = [sys.executable, "-m", "tests.bench.network", *sys.argv[1:], "--memory-of", name]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        memory[name] = float(found.stdout.split()[-1])
    base = {work: statistics.median(some) for work, some in times[variants[0]].items()}
    print(f"{f'{asked.clock} ms per clip':<26}{'forward':>9}{'quartiles':>18}{'x':>6}", end="")
    print(f"{'train step':>12}{'quartiles':>18}{'x':>6}{'GiB':>7}")
    rows = []
    for name, some in times.items():
        line, row = f"{name:<26}", {"variant": name, "gib": memory.get(name), "rounds": len(some["forward"])}
        for work, wide in (("forward", 9), ("train step", 12)):
            low, middle, high = (1000 * part / count for part in statistics.quantiles(some[work], n=4))
            ratio = base[work] / statistics.median(some[work])
            line += f"{middle:>{wide}.1f}{low:>9.1f} –{high:>7.1f}{ratio:>6.2f}"
            row[work] = {"median_ms": middle, "quartiles_ms": [low, high], "ratio": ratio}
        rows.append(row)
        print(line + (f"{memory[name]:>7.2f}" if name in memory else f"{'':>7}"))
    print(f"{rows[0]['rounds']} rounds; x: {variants[0]} over this; load now {os.getloadavg()[0]:.1f}")
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
