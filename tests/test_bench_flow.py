"""The benchmark of optical flow: its drawn flow is exact, its differences mean what they say, and it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import flow
from tests.bench.flow_drawn import MOTIONS, Motion, drawn, drawn_pairs, end_point_error
from tests.bench.flow_found import Agreement, Rate, batches_agree, difference, faster
from tests.bench.flow_pairs import NAMED, Pair, named_pairs
from tests.bench.flow_tables import Report, as_markdown, goals, picture, worst
from tests.bench.flow_ways import OPENCV, OURS, opencv_tvl1

SMALL = (48, 64)


@given(x=st.floats(-6, 6), y=st.floats(-6, 6), zoom=st.floats(0.9, 1.1), turn=st.floats(-5, 5), seed=st.integers(0, 99))
def test_the_second_picture_shows_where_the_flow_ends_what_the_first_shows_where_it_begins(x, y, zoom, turn, seed):
    known = drawn(
        Motion(name="any", shift=(x, y), zoom=zoom, turn=turn), 40, 60, texture="smooth", sharpness=0.7, seed=seed
    )
    rows, columns = np.nonzero(known.judged_HW)
    if not len(rows):
        return
    ends = np.stack([columns, rows], axis=-1) + known.flow_HW2[rows, columns]
    assert ends.min() >= 0
    assert (ends.max(axis=0) <= (59, 39)).all()
    there = cv2.remap(known.pair.second, ends[None].astype(np.float32), None, cv2.INTER_CUBIC)[0, :, 0]
    shown = known.pair.first[rows, columns, 0]
    assert np.abs(there.astype(float) - shown).mean() < 2.5  # what interpolation between whole levels costs


def test_flow_that_is_known_has_no_error_and_a_pixel_off_has_one():
    known = drawn(MOTIONS[0], *SMALL, texture="smooth", sharpness=0.7, seed=1)
    assert end_point_error(known.flow_HW2, known) == 0
    assert end_point_error(known.flow_HW2 + np.array([0.6, 0.8]), known) == pytest.approx(1)


def test_opencv_finds_the_drawn_flow():
    known = drawn(MOTIONS[1], 96, 128, texture="smooth", sharpness=0.7, seed=1)
    assert end_point_error(opencv_tvl1(*known.pair.gray), known) < 0.15
    other_way = dataclasses.replace(known, pair=Pair(name="back", first=known.pair.second, second=known.pair.first))
    assert end_point_error(opencv_tvl1(*other_way.pair.gray), known) > 1


def test_each_named_pair_is_named_once():
    assert len({name for name, _ in NAMED}) == len(NAMED) >= 50


def test_missing_videos_are_said(tmp_path):
    with pytest.raises(SystemExit, match=f"{len(NAMED)} of the {len(NAMED)} videos are not below it"):
        named_pairs(tmp_path, len(NAMED), lambda text: None)


def test_a_batch_that_gives_other_bytes_is_refused():
    pairs = [one.pair for one in drawn_pairs(24, 32)][:3]
    calls: list[str] = []

    def alone(pair: Pair, device: str = "cpu") -> np.ndarray:
        calls.append(pair.name)
        return flow.ours(pair, device) + (np.float32(1e-6) if len(calls) == 3 else np.float32(0))

    with pytest.raises(SystemExit, match="in a batch of 3 the flow is another than alone"):
        batches_agree(pairs, alone, "cpu")
    assert len(calls) == 3


def test_faster_is_the_median_of_the_ratios_within_rounds():
    found = {OPENCV: Rate(seconds=(2, 20, 4), pairs=4), OURS: Rate(seconds=(1, 10, 1), pairs=4)}
    assert faster(found, OURS) == 2
    assert faster(found | {OURS: Rate(seconds=(1, 1, 1), pairs=1)}, OURS) is None


def agreements(offsets: Sequence[float]) -> list[Agreement]:
    pair = Pair(name="v", first=np.zeros((*SMALL, 3), np.uint8), second=np.zeros((*SMALL, 3), np.uint8))
    field = np.zeros((*SMALL, 2), np.float32)
    return [
        Agreement(
            pair=pair,
            opencv=field,
            ours=field + np.float32([off, 0]),
            noisy=field,
            again=(0.0, 0.01),
            levels_off=0.0,
        )
        for off in offsets
    ]


def test_agreement_is_judged_by_the_worse_of_opencvs_own_differences(tmp_path):
    near, far = agreements([0.0399, 0.0401])
    assert near.within
    assert not far.within
    assert difference(far.ours, far.opencv) == pytest.approx(0.0401)
    assert worst([near, far])[0] is far
    picture([near, far], tmp_path / "worst.png")
    assert (tmp_path / "worst.png").read_bytes().startswith(b"\x89PNG")
    report = Report(
        day="2026-01-02",
        machine="a machine",
        load=(0, 0),
        ways=[],
        agreement={"cpu": [near, far]},
        batched={},
        known={},
        rates={},
        size=(64, 48),
    )
    assert [goal.verdict for goal in goals(report)][:5] == [
        "does not hold",  # a mean of 0.04
        "does not hold",
        "holds",
        "does not hold",
        "holds",
    ]
    assert "![The worst pairs](worst.png)" in as_markdown(report, "worst.png")


def test_it_runs_on_drawn_pairs_and_writes_a_page(tmp_path: Path):
    out = tmp_path / "figures" / "flow"
    given = ["--drawn", "--size", "48", "40", "--timed", "2", "--repeats", "1", "--ways", "DIS, OpenCV"]
    report = flow.main([*given, "--out", str(out)])
    assert set(report.rates) == {OPENCV, OURS, "DIS, OpenCV"}
    assert all(second > 0 for rate in report.rates.values() for second in rate.seconds)
    assert len(report.known) == 2 * len(MOTIONS)
    assert all(np.isfinite(error) for errors in report.known.values() for error in errors.values())
    assert report.batched == {"cpu": 12}
    page = out.with_suffix(".md").read_text()
    assert page == as_markdown(report, "")
    assert str(tmp_path) not in page
