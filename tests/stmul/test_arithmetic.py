"""Arithmetic: bfloat16 and compiled networks do what the plain one does, and say so where they cannot be had."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
import torch._inductor.config
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim import SGD

from stmul.arithmetic import as_possible, autocast, averaged, compile_forward, compiling, missing_compiler
from stmul.batchnorm import collected_moments, layers, sub_batches
from stmul.errors import NetworkError
from stmul.evaluate import Networks, evaluate
from stmul.loading import Batch
from stmul.runs import Run
from stmul.schedule import parameter_groups
from stmul.stages import build
from stmul.train import scores, step, train_stage

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgotten():
    """Every test compiles for itself."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Done(NamedTuple):
    """What a step leaves behind."""

    loss: float
    gradient: Tensor
    moments: Tensor
    state: dict[str, Tensor]


def clips(count: int, groups: int, device: torch.device = CPU, instants: int = 2, size: int = 48) -> Batch:
    """Smooth pictures of any brightness and flow about its middle."""
    draw = torch.Generator().manual_seed(3)

    def smooth(channels: int) -> Tensor:
        coarse = torch.rand(count * instants, channels, 6, 6, generator=draw) * 255
        fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
        return fine.unflatten(0, (count, instants)).to(device)

    labels = torch.arange(count, device=device) % 3
    positions = tuple(range(count))
    return Batch(
        rgb_BTCHW=smooth(3),
        flow_BTCHW=smooth(8),
        labels_B=labels,
        positions=positions,
        valid=(True,) * len(positions),
        groups=groups,
    )


def stepped(network, batch, *, backend=None, precision="float32", times=1):
    """Steps of a copy of the network, all with the same batch."""
    network = copy.deepcopy(network).train()
    if backend is not None:
        compile_forward(network, backend=backend)
    optimizer = SGD(parameter_groups(network, 5e-4), lr=0.01)
    settings = {"clips": len(batch.positions), "seed": 1, "moments_rate": 0.5, "clip_norm": 0.0}
    for _ in range(times):
        loss, *_ = step(network, [batch], optimizer, precision=precision, **settings)
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])
    moments = torch.cat([torch.cat([one.running_mean, one.running_sigma]) for one in layers(network)])
    return Done(float(loss), gradient, moments, network.state_dict())


def alike(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten().double(), other.flatten().double(), 0))


def joint(small, *changes, depth=18):
    """A network as after some training: its residual branches are small beside the shortcuts.

    Freshly drawn, a deep ResNet amplifies any rounding: that of its weights to bfloat16 alone turns the gradient of
    one of depth 50 by 70 degrees, torchvision's own too.
    """
    streams = (f"network.{name}={{depth: {depth}, width: 16, dropout: 0.5}}" for name in ("appearance", "motion"))
    network = build("joint", small(*streams, *changes), 3)
    for name, parameter in network.named_parameters():
        if name.endswith("norm3.weight" if depth >= 50 else "norm2.weight"):
            torch.nn.init.constant_(parameter, 0.03)
    return network


def agree(one: Done, other: Done, *, loss: float, gradient: float, moments: float) -> None:
    assert one.loss == pytest.approx(other.loss, rel=loss)
    assert alike(one.gradient, other.gradient) > 1 - gradient
    assert (one.moments - other.moments).norm() <= moments * other.moments.norm()


@pytest.mark.parametrize("depth", [18, 50])
def test_a_step_in_bfloat16_is_nearly_the_step_in_float32(small, depth):
    network, batch = joint(small, depth=depth), clips(8, 2, size=64)
    plain, rough = (stepped(network, batch, precision=one) for one in ("float32", "bfloat16"))
    agree(rough, plain, loss=0.01, gradient=0.01, moments=0.01)
    assert rough.loss != plain.loss
    assert {value.dtype for value in rough.state.values()} == {torch.float32}
    assert rough.gradient.dtype == torch.float32


def test_steps_in_bfloat16_learn(small):
    network, batch = joint(small), clips(4, 2)
    first, last = (stepped(network, batch, precision="bfloat16", times=times) for times in (1, 8))
    assert last.loss < 0.9 * first.loss


def test_moments_scores_and_losses_are_float32_also_where_convolutions_are_not(small):
    network, batch = joint(small).train(), clips(4, 2)
    with sub_batches(network, 2), autocast(CPU, "bfloat16"):
        maps = network(batch.rgb_BTCHW, batch.flow_BTCHW)
        assert {one.dtype for one in maps} == {torch.bfloat16}
        assert {one.dtype for one in scores(network, batch)} == {torch.float32}
    assert collected_moments(network).dtype == torch.float32
    first = network.appearance.norm1.mean_sum / network.appearance.norm1.group_count
    kept = first.bfloat16().float()
    assert (kept != first).any()  # more digits than bfloat16 holds: they were summed in float32


def test_averages_keep_the_precision_of_what_is_finer_than_float32():
    map_BKTHW = torch.rand(2, 3, 1, 4, 5, dtype=torch.float64)
    assert averaged(map_BKTHW, (2, 3, 4)).dtype == torch.float64
    rough = averaged(torch.full((1, 1, 1, 30, 30), 1.0078125, dtype=torch.bfloat16), (2, 3, 4))
    assert float(rough) == pytest.approx(1.0078125, rel=1e-6)


def test_scores_in_bfloat16_are_nearly_those_in_float32(small, split):
    networks = Networks(joint=joint(small).eval())
    plain, rough = (
        evaluate(networks, split, small(f"evaluate.precision={one}"), device=CPU) for one in ("float32", "bfloat16")
    )
    for head, expected in plain.heads.items():
        assert rough.heads[head].dtype == expected.dtype
        assert 0 < abs(rough.heads[head] - expected).max() < 0.03 * abs(expected).max()


def test_a_compiled_step_is_the_step_and_is_compiled_once(small):
    network, batch = joint(small), clips(4, 2)
    plain = stepped(network, batch, times=3)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = stepped(network, batch, backend=counter, times=3)
    assert counter.frame_count == 1
    agree(compiled, plain, loss=1e-5, gradient=1e-6, moments=1e-6)
    assert list(compiled.state) == list(plain.state) == list(network.state_dict())
    for name, value in plain.state.items():
        torch.testing.assert_close(compiled.state[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_compiled_network_scores_frames_of_any_size_alike(small):
    network = build("motion", small(), 3).eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = copy.deepcopy(network)
    compile_forward(compiled, sizes_vary=True, backend=counter)
    with torch.inference_mode():
        for height, width in ((40, 48), (40, 64), (40, 72), (40, 56)):
            flow_BTCHW = torch.rand(1, 3, 8, height, width) * 255
            torch.testing.assert_close(compiled(flow_BTCHW), network(flow_BTCHW), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 2


@torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")})
def test_without_a_compiler_one_line_says_so_and_the_settings_are_the_uncompiled_ones(small):
    said = []
    config = as_possible(small("train.compile=true"), "train", CPU, said.append)
    assert config == small()
    (line,) = said
    assert "\n" not in line
    assert line.startswith("compile   not possible here (InvalidCxxCompiler: No working C++ compiler found")
    assert "going on uncompiled" in line
    assert "apt install g++" in line
    assert as_possible(config, "train", CPU, said.append) is config
    assert len(said) == 1


@torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")})
def test_a_compiler_that_is_lost_on_the_way_ends_the_training_with_what_to_do(small, split, tmp_path):
    config = small("train.compile=true")
    with pytest.raises(NetworkError, match=r"(?s)cannot be compiled: .*--set train\.compile=false"):
        train_stage("motion", build("motion", config, 3), config, split, Run(tmp_path / "run"), **quiet(CPU))


def test_other_errors_are_not_taken_for_the_compilers():
    with pytest.raises(RuntimeError, match="out of memory"), compiling("train.compile"):
        raise RuntimeError("out of memory")


def quiet(device, rows=None):
    rows = [] if rows is None else rows
    return {"device": device, "watch": lambda progress: None, "log": rows.append, "stop": lambda: False}


def trained(config, split, folder, device):
    """The losses of each epoch of the joint stage."""
    rows: list[dict] = []
    network = build("joint", config, 3).to(device, memory_format=torch.channels_last)
    assert train_stage("joint", network, config, split, Run(folder), **quiet(device, rows))
    assert not any("_orig_mod" in name for name in network.state_dict())
    return [row["loss"] for row in rows]


FAST = ("train.compile=true", "train.precision=bfloat16")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_training_compiled_and_in_bfloat16_is_nearly_the_plain_one_and_the_same_again(small, split, tmp_path):
    assert missing_compiler(CPU) == ""
    plain = trained(small(), split, tmp_path / "plain", CPU)
    fast = trained(small(*FAST), split, tmp_path / "fast", CPU)
    again = trained(small(*FAST), split, tmp_path / "again", CPU)
    assert fast == again
    assert fast == pytest.approx(plain, rel=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")
def test_steps_with_the_compilers_own_kernels_are_the_steps_and_learn(small):
    """With dropout: the compiled one draws what the plain one draws."""
    network, batch = joint(small), clips(4, 2)
    first, plain = stepped(network, batch), stepped(network, batch, times=8)
    compiled = stepped(network, batch, backend="inductor", times=8)
    agree(compiled, plain, loss=1e-3, gradient=1e-3, moments=1e-4)
    assert compiled.loss < 0.9 * first.loss


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("backend", [None, "inductor"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_a_step_in_bfloat16_or_compiled_is_nearly_the_plain_one(small, backend, precision):
    device = torch.device("cuda")
    network = joint(small, depth=50).to(device, memory_format=torch.channels_last)
    batch = clips(8, 2, device, size=64)
    plain, fast = stepped(network, batch), stepped(network, batch, backend=backend, precision=precision)
    agree(fast, plain, loss=0.01, gradient=0.01, moments=0.01)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
def test_on_a_gpu_training_compiled_and_in_bfloat16_is_nearly_the_plain_one(small, split, tmp_path):
    device = torch.device("cuda")
    assert missing_compiler(device) == ""
    plain = trained(small(), split, tmp_path / "plain", device)
    assert trained(small(*FAST), split, tmp_path / "fast", device) == pytest.approx(plain, rel=0.05)
