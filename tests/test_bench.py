"""The loader's benchmark runs on drawn shards, and refuses to time what does something else than the others."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import load
from shards.split import open_split
from stmul.config import Config
from tests.bench.loader import main
from tests.bench.measure import Case, Times, ratio, rounds, spread, timed
from tests.bench.tables import as_markdown, goals, tables
from tests.bench.wanted import Answer, Wanted, expected, must_agree, wanted_clips

SMALL = ("data.frames=3", "data.stack=4", "data.crop=32", "data.stride=[2, 6]", "train.sub_batch=2")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., object]) -> Path:
    """Five training videos of 60 frames and more: stacks overlap in some clips and not in others."""
    folder = tmp_path_factory.mktemp("bench") / "split1"
    make_split(folder, train=5, test=1, frames=60, width=48, height=40)
    return folder


@pytest.fixture(scope="module")
def answers(shards: Path) -> tuple[tuple[Wanted, ...], dict[int, Answer]]:
    """The first clips and their pixels."""
    config = load(Config, "ucf101", SMALL)
    with open_split(shards) as split:
        wanted = wanted_clips(split, config, 8)
        return wanted, {clip.position: expected(split, clip, config.data.crop) for clip in wanted}


def test_every_variant_delivers_the_same_pixels_and_every_table_holds_finite_numbers(shards, tmp_path):
    out = tmp_path / "figures" / "drawn"
    given = {"--shards": shards, "--half": shards, "--clips": 4, "--repeats": 1, "--peers": "none", "--out": out}
    arguments = [str(part) for option in given.items() for part in option]
    report = main(arguments + [part for setting in SMALL for part in ("--set", setting)])  # compares pixels, then times
    per_flow = {(variant.name, end) for variant in report.variants["full"] for end in variant.ends}
    assert len(report.times) == 2 * 2 * len(per_flow)  # one and two threads, two sizes of flow
    assert all(
        math.isfinite(value) and value > 0
        for times in report.times.values()
        for one in times
        for value in (one.cpu, one.wall)
    )
    for _, some in tables(report):
        assert some
        assert all(float(row[column]) > 0 for row in some for column in (1, 3, 5, 6, 7) if row[column])
    assert {goal.verdict for goal in goals(report)} <= {"holds", "does not hold"}
    page = out.with_suffix(".md").read_text()
    assert page == as_markdown(report, "drawn.svg")
    assert str(tmp_path) not in page
    assert "<svg" in out.with_suffix(".svg").read_text()


def test_the_clips_share_frames_and_do_not_and_are_mirrored_and_are_not(answers):
    wanted, _ = answers
    assert {len(clip.instants.pairs) < clip.instants.flow.size for clip in wanted} == {True, False}
    assert {clip.view.mirror for clip in wanted} == {True, False}


@pytest.mark.parametrize("end", ["decoded", "ready"])
@pytest.mark.parametrize("stream", [0, 1])
def test_a_variant_with_other_pixels_is_refused(answers, end, stream):
    right = {position: pixels[end] for position, pixels in answers[1].items()}

    def shown(change):
        for position, pixels in right.items():
            changed = [one.copy() for one in pixels]
            changed[stream] = change(changed[stream]) if position == 1 else changed[stream]
            yield position, *changed

    must_agree("right", end, shown(lambda levels: levels), answers[1], by_cv2=False)
    with pytest.raises(SystemExit, match="grey levels"):
        must_agree("mirrored", end, shown(lambda levels: 255 - levels), answers[1], by_cv2=False)
    with pytest.raises(SystemExit, match="shape"):
        must_agree("short", end, shown(lambda levels: levels[1:]), answers[1], by_cv2=False)


def test_a_variant_that_leaves_a_clip_out_or_gives_one_twice_is_refused(answers):
    pixels = answers[1]
    for positions in ([*range(7)], [0, *range(8)], [*range(1, 8)]):
        shown = ((position, *pixels[position]["decoded"]) for position in positions)
        with pytest.raises(SystemExit, match="each once"):
            must_agree("some", "decoded", shown, pixels, by_cv2=False)


def test_ratios_are_taken_within_a_round():
    slow, fast = (Case(variant=name, flow="full", end="decoded", threads=1) for name in ("slow", "fast"))
    # The machine is ten times as slow in the second round; separate medians would not show that it is twice each time.
    found = {
        slow: [Times(cpu=cpu, wall=cpu) for cpu in (2.0, 20.0, 2.0)],
        fast: [Times(cpu=cpu, wall=cpu) for cpu in (1.0, 10.0, 1.0)],
    }
    assert ratio(found, slow, fast) == 2.0
    assert ratio(found, slow, Case(variant="absent", flow="full", end="decoded", threads=1)) is None


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=9))
def test_the_median_lies_between_the_quartiles_and_these_among_the_values(values):
    low, middle, high = spread(values)
    assert min(values) <= low <= middle <= high <= max(values)


def test_a_round_that_is_not_counted_comes_first_and_every_case_has_its_turn_in_each():
    cases = [Case(variant=name, flow="full", end="decoded", threads=1) for name in "abc"]
    order: list[str] = []

    def run(case: Case) -> Times:
        order.append(case.variant)
        return Times(cpu=float(len(order)), wall=1.0)

    found = rounds(cases, run, repeats=2, progress=lambda text: None)
    assert "".join(order) == "cbaabccba"
    assert {case.variant: [one.cpu for one in times] for case, times in found.items()} == {
        "a": [4.0, 9.0],
        "b": [5.0, 8.0],
        "c": [6.0, 7.0],
    }


def test_cpu_time_counts_what_worker_processes_do_and_not_what_they_have_done():
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        pool.apply(busy, (0.3,))
        at_rest = timed(lambda: None, clips=1)
        at_work = timed(lambda: pool.apply(busy, (0.3,)), clips=1)
    assert at_rest.cpu < 100
    assert at_work.cpu >= 290


def busy(seconds: float) -> None:
    """Uses a processor for so long."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
