"""The Triton kernels do what the readable solver does: interpreted on the CPU here, on a GPU where there is one."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from preprocess.tvl1 import tvl1
from preprocess.tvl1.eager import Linearised, Unknowns, solve
from preprocess.tvl1.parameters import Parameters

Problem = tuple[Unknowns, Linearised, Parameters]
Pictures = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Solver = Callable[[list[Problem]], list[Unknowns]]
NAMES = tuple(one.name for one in dataclasses.fields(Unknowns))
SHORT = Parameters(inner=3, outer=2, epsilon=0.02)

INTERPRETED = """
import pickle, sys
from preprocess.tvl1 import gpu_kernels
from preprocess.tvl1.gpu import solve, warped
problems, pictures = pickle.load(open(sys.argv[1], "rb"))
for problem, blocks in problems.values():
    gpu_kernels.BLOCKS = blocks
    solve(*problem)
solved = {name: unknowns for name, ((unknowns, *_), _) in problems.items()}
pickle.dump((solved, warped(*pictures)), open(sys.argv[1], "wb"))
"""

COMPILED = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from preprocess.tvl1 import gpu_kernels, gpu_warp
from preprocess.tvl1.parameters import Parameters
from preprocess.tvl1.gpu import Turn, Workspace, _launch

class AnH100ThatIsNotThere:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

driver.set_active(AnH100ThatIsNotThere())
binaries = {"_step": set(), "_median": set(), "_linearise": set()}
for name in binaries:
    kernel = getattr(gpu_warp if name == "_linearise" else gpu_kernels, name)
    def run(*given, compiled=kernel.run, name=name, grid, warmup, **more):
        binary = compiled(*given, grid=grid, warmup=True, **more)
        binaries[name].add(id(binary))
        assert "sm_90" in binary.asm["ptx"] and binary.metadata.shared <= 4096
    kernel.run = run
for pairs, height, width in ((1, 17, 31), (2, 256, 340), (64, 16, 16)):
    here = Workspace(torch.device("cpu")).fields(pairs, height, width)
    u1, u2, planes = here.u[0][:, 0].contiguous(), here.u[0][:, 1].contiguous(), here.line
    gpu_warp.linearised(u1, planes, u1, u2)
    for turn in (Turn(), Turn(u=1, error=2)):
        _launch(here, pairs, turn, Parameters(inner=2, epsilon=0.01 * (pairs > 1)))
print({name: len(some) for name, some in binaries.items()})
"""


@pytest.fixture(scope="module")
def problems() -> dict[str, Problem]:
    """What is solved here, by name."""
    given = {
        "two tiles across": problem(1, 8, 66, Parameters(inner=2, outer=2, epsilon=0.02)),
        "median of 3": problem(2, 9, 16, Parameters(inner=2, outer=1, epsilon=0, median=3)),
        "no median": problem(1, 8, 17, Parameters(inner=3, outer=1, median=1, tau=0.1, lambda_=0.3, theta=0.5)),
        "two pairs": problem(2, 8, 12, Parameters(inner=3, outer=2, epsilon=0.15)),
        **{f"only the median of {side}": only_the_median(side) for side in (3, 5)},
    }
    given |= {f"pair {pair}": part(given["two pairs"], pair) for pair in range(2)}
    broken = copy.deepcopy(given["two pairs"])
    broken[0].u1[0] = float("nan")
    return given | {"broken": broken, "one block": copy.deepcopy(given["two tiles across"])}


@pytest.fixture(scope="module")
def done(
    problems: dict[str, Problem], pictures: Pictures, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Unknowns], Linearised]:
    """The problems solved and the pictures warped by the kernels, in a process in which Triton interprets them."""
    path = tmp_path_factory.mktemp("triton") / "problems.pickle"
    dealt = {name: (given, 1 if name == "one block" else 1584) for name, given in problems.items()}
    path.write_bytes(pickle.dumps((dealt, pictures)))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", INTERPRETED, str(path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="module")
def interpreted(done: tuple[dict[str, Unknowns], Linearised]) -> dict[str, Unknowns]:
    """The problems solved."""
    return done[0]


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """A first picture, a second one with its gradient, and a flow that also leaves the picture, by far too."""
    draw = torch.Generator().manual_seed(1)
    first, *planes = torch.rand(4, 2, 11, 66, generator=draw) * 255
    u1, u2 = torch.randn(2, 2, 11, 66, generator=draw) * 3
    u1[0, 3, 4], u2[0, 5, 60], u2[1, 0, 0] = 1e30, -1e9, 10.5
    return first, torch.stack(planes, dim=1), u1, u2


@pytest.fixture(scope="module")
def on_gpu() -> Solver:
    """Solves problems by the kernels on the GPU, each three times: launched, recorded, replayed."""

    def solved(problems: list[Problem]) -> list[Unknowns]:
        from preprocess.tvl1 import gpu

        answers = []
        for unknowns, line, parameters in problems:
            there = Linearised(**{f.name: getattr(line, f.name).cuda() for f in dataclasses.fields(line)})
            thrice = []
            for _ in range(3):
                found = Unknowns(**{name: getattr(unknowns, name).cuda() for name in NAMES})
                gpu.solve(found, there, parameters)
                thrice.append(Unknowns(**{name: getattr(found, name).cpu() for name in NAMES}))
            for one, other in pairwise(thrice):
                must_equal(one, other)
            answers.append(thrice[0])
        return answers

    return solved


def problem(pairs: int, height: int, width: int, parameters: Parameters = SHORT, *, seed: int = 0) -> Problem:
    """Noise, each pair quieter than the one before, so that they end at different iterations."""
    draw = torch.Generator().manual_seed(seed)
    loudness = 0.3 ** torch.arange(pairs, dtype=torch.float32)[:, None, None]

    def noise(scale: float) -> torch.Tensor:
        return torch.randn(pairs, height, width, generator=draw) * scale * loudness

    gx, gy = noise(8), noise(8)
    unknowns = Unknowns(u1=noise(1), u2=noise(1), p11=noise(0.3), p12=noise(0.3), p21=noise(0.3), p22=noise(0.3))
    return unknowns, Linearised(gx=gx, gy=gy, grad=gx * gx + gy * gy, rho_c=noise(20)), parameters


def eager(given: Problem) -> Unknowns:
    """What the readable solver makes of it."""
    unknowns = copy.deepcopy(given[0])
    solve(unknowns, *given[1:])
    return unknowns


def only_the_median(side: int) -> Problem:
    """No data term and no dual variables: what is left of a pass in which nothing moves is its median."""
    unknowns, line, _ = problem(1, 7, 66)
    still = Linearised(**{f.name: torch.zeros_like(line.gx) for f in dataclasses.fields(line)})
    duals = {name: torch.zeros_like(line.gx) for name in NAMES[2:]}
    return Unknowns(u1=unknowns.u1, u2=unknowns.u2, **duals), still, Parameters(inner=1, outer=1, median=side)


def part(given: Problem, pair: int) -> Problem:
    """The problem of one pair alone."""
    one = slice(pair, pair + 1)
    unknowns, line = (
        type(x)(**{f.name: getattr(x, f.name)[one].clone() for f in dataclasses.fields(x)}) for x in given[:2]
    )
    return unknowns, line, given[2]


def must_equal(found: Unknowns, expected: Unknowns, tolerance: float = 0.0) -> None:
    for name in NAMES:
        one, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(
            one, other, rtol=0, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def iterations(given: Problem) -> list[int]:
    """After how many iterations each pair ends, from the readable solver run with ever higher limits."""
    unknowns, line, parameters = given
    assert parameters.outer == 1
    ended = [parameters.inner] * len(unknowns.u1)
    final = eager(given)
    for count in reversed(range(1, parameters.inner)):
        some = eager((unknowns, line, dataclasses.replace(parameters, inner=count)))
        for pair in range(len(ended)):
            if torch.equal(some.u1[pair], final.u1[pair]):
                ended[pair] = count
    return ended


@pytest.mark.parametrize("name", ["two tiles across", "median of 3", "no median", "two pairs"])
def test_the_kernels_do_what_the_readable_solver_does(problems, interpreted, name):
    must_equal(interpreted[name], eager(problems[name]), tolerance=5e-6)


def test_each_pair_ends_by_itself_and_gives_the_bytes_that_it_gives_alone(problems, interpreted):
    unknowns, line, parameters = problems["two pairs"]
    once = unknowns, line, dataclasses.replace(parameters, outer=1)
    assert len(set(iterations(once))) == 2  # or else the next lines say little
    for name in NAMES:
        alone = torch.cat([getattr(interpreted[f"pair {pair}"], name) for pair in range(2)])
        assert torch.equal(getattr(interpreted["two pairs"], name), alone), name


def test_how_tiles_are_dealt_to_blocks_changes_no_byte(interpreted):
    must_equal(interpreted["one block"], interpreted["two tiles across"])


def test_a_pair_that_holds_no_numbers_harms_no_other(interpreted):
    for name in NAMES:
        assert torch.equal(getattr(interpreted["broken"], name)[1:], getattr(interpreted["two pairs"], name)[1:])
    assert interpreted["broken"].u1[0].isnan().any()


@pytest.mark.parametrize("side", [3, 5])
def test_the_median_is_opencvs(problems, interpreted, side):
    name = f"only the median of {side}"
    for part_of_u in ("u1", "u2"):
        found, given = (getattr(one, part_of_u)[0].numpy() for one in (interpreted[name], problems[name][0]))
        np.testing.assert_array_equal(found, cv2.medianBlur(given, side))


def test_pictures_are_warped_as_opencv_warps_them(done, pictures):
    first, planes, u1, u2 = (one.numpy() for one in pictures)
    x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in (66, 11)))
    found = {f.name: getattr(done[1], f.name).numpy() for f in dataclasses.fields(done[1])}
    for pair in range(2):
        places = x + u1[pair].clip(-1e4, 1e4), y + u2[pair].clip(-1e4, 1e4)  # OpenCV's own bound is 2^31
        level, gx, gy = (cv2.remap(plane, *places, cv2.INTER_CUBIC) for plane in planes[pair])
        np.testing.assert_allclose(found["gx"][pair], gx, atol=1e-3)
        np.testing.assert_allclose(found["gy"][pair], gy, atol=1e-3)
        np.testing.assert_allclose(found["grad"][pair], gx**2 + gy**2, rtol=1e-4, atol=1e-1)
        near = (np.abs(u1[pair]) < 100) & (np.abs(u2[pair]) < 100)
        rho_c = level - gx * u1[pair] - gy * u2[pair] - first[pair]
        np.testing.assert_allclose(found["rho_c"][pair][near], rho_c[near], atol=2e-2)


def test_the_median_of_25_is_right_for_whatever_grows_along_rows_and_columns():
    """By the 0-1 principle: after its sorting the kernel looks at three diagonals only."""
    patterns = [ones for ones in product(range(6), repeat=5) if list(ones) == sorted(ones)]
    assert len(patterns) == 252
    for ones in patterns:
        grid = np.array([[column >= 5 - count for column in range(5)] for count in ones])
        low, middle, high = ([grid[i, s - i] for i in range(5) if 0 <= s - i < 5] for s in (3, 4, 5))
        assert sorted([max(low), sorted(middle)[2], min(high)])[1] == (grid.sum() >= 13)


def test_a_pass_is_launched_then_recorded_then_replayed_and_forgotten_with_its_memory(monkeypatch):
    from preprocess.tvl1 import gpu
    from preprocess.tvl1.gpu import Turn, Workspace

    done: list[str] = []

    class Graph:
        def replay(self) -> None:
            done.append("replay")

    def recorded(*_: object) -> Graph:
        done.append("record")
        return Graph()

    monkeypatch.setattr(gpu, "_launch", lambda *_: done.append("launch"))
    monkeypatch.setattr(gpu, "_recorded", recorded)
    workspace = Workspace(torch.device("cpu"))
    here = workspace.fields(4, 20, 30)
    workspace.device = torch.device("cuda")
    turns = [Turn()]
    for _ in range(4):
        turns.append(workspace.run(here, 4, turns[-1], Parameters(inner=30)))
    assert turns == [Turn(), Turn(u=1), Turn(), Turn(u=1), Turn()]  # the median takes turns, thirty iterations do not
    assert done == ["launch", "launch", "record", "replay", "record", "replay"]
    workspace.run(here, 2, Turn(), Parameters(inner=30))  # fewer pairs run: another pass
    assert done[6:] == ["launch"]
    workspace.device = torch.device("cpu")
    again = workspace.fields(2, 16, 24)
    assert again.u[0].data_ptr() == here.u[0].data_ptr()
    assert workspace.recorded
    workspace.fields(8, 20, 30)
    assert not workspace.recorded


@pytest.mark.parametrize("inner", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("median", [1, 5])
def test_turns_are_those_of_the_launches(monkeypatch, inner, median):
    from preprocess.tvl1 import gpu
    from preprocess.tvl1.gpu import Turn, Workspace

    here, parameters = Workspace(torch.device("cpu")).fields(1, 3, 5), Parameters(inner=inner, median=median)
    newest = {"u": here.u[0], "p": here.p[0], "error": here.errors[0]}

    def median_pass(source, target, running, error, side):
        assert source is newest["u"]
        assert error.data_ptr() == newest["error"].data_ptr()
        newest["u"] = target

    def step_pass(*, old, new, errors, place, **_):
        assert old[0] is newest["u"]
        assert old[1] is newest["p"]
        assert errors[0].data_ptr() == newest["error"].data_ptr()
        assert len({one.data_ptr() for one in errors}) == 3
        assert (here.u[place % 2] is new[0], here.p[place // 2] is new[1]) == (True, True)
        newest.update(u=new[0], p=new[1], error=errors[1])

    monkeypatch.setattr(gpu, "median_pass", median_pass)
    monkeypatch.setattr(gpu, "step_pass", step_pass)
    turn = Turn()
    for _ in range(4):
        gpu._launch(here, 1, turn, parameters)
        turn = gpu._turn_after(turn, parameters)
        assert here.u[turn.u] is newest["u"]
        assert here.p[turn.p] is newest["p"]
        assert here.errors[turn.error].data_ptr() == newest["error"].data_ptr()


@pytest.mark.slow
def test_the_kernels_compile_for_an_h100_each_to_one_binary_for_all_sizes_and_batches():
    """Another binary might sum a tile in another order. No GPU is needed to compile for one."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'_step': 1, '_median': 1, '_linearise': 1}"


def test_without_a_gpu_it_says_so():
    from preprocess.tvl1.gpu import pairs_at_once, solve, why_unusable

    if os.environ.get("TRITON_INTERPRET") != "1":
        assert why_unusable(torch.device("cpu")) == "the device is cpu, not cuda"
        with pytest.raises(ValueError, match="the device is cpu"):
            solve(*problem(1, 16, 16))
    assert pairs_at_once(torch.device("cpu"), 256, 340) >= 1


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 256, 340), (5, 131, 175), (64, 105, 139), (3, 16, 16)])
def test_on_a_gpu_the_kernels_do_what_the_readable_solver_does(on_gpu, shape):
    given = problem(*shape, Parameters(inner=30, outer=3, epsilon=0.02))
    [found] = on_gpu([given])
    must_equal(found, eager(given), tolerance=1e-3)


@pytest.mark.gpu
def test_on_a_gpu_a_pair_gives_the_bytes_that_it_gives_alone(on_gpu):
    given = problem(7, 131, 175, Parameters(epsilon=0.02))
    together, *alone = on_gpu([given, *(part(given, pair) for pair in range(7))])
    for name in NAMES:
        assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in alone])), name


@pytest.mark.gpu
def test_on_a_gpu_whole_pairs_agree_with_opencv_and_with_themselves_alone():
    draw = np.random.default_rng(2)
    noise = draw.integers(0, 256, (6, 264, 348), dtype=np.uint8)
    pictures = np.stack([cv2.GaussianBlur(one, (0, 0), 2.0) * 3 % 251 for one in noise])
    first, second = pictures[:, 4:-4, 4:-4], pictures[:, 3:-5, 2:-6]  # by two pixels and one, which all find
    together = tvl1(first, second, device="cuda")
    for one, other, found in zip(first, second, together, strict=True):
        np.testing.assert_array_equal(tvl1(one[None], other[None], device="cuda")[0], found)
        one, other = np.ascontiguousarray(one), np.ascontiguousarray(other)
        opencv = cv2.optflow.DualTVL1OpticalFlow_create().calc(one, other, None)
        assert np.linalg.norm(found - opencv, axis=-1).mean() < 0.05
