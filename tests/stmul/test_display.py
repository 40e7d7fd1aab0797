"""What is shown while a network trains, and while clips are scored."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stmul.display import WIDTH, counting, in_words, pace, training_display
from stmul.meter import Progress

LARGEST = Progress(
    stage="appearance",
    step=37253,
    steps=74500,
    epoch=50.0,
    loss=9.23,
    accuracy=1.0,
    clips_per_second=1234.5,
    data_wait=0.12,
    losses={"appearance": 4.615, "motion": 0.0321},
    memory=71.25,
    left=123456.7,
)


def steps(count, stage="joint", **measured):
    return [
        Progress(
            stage=stage,
            step=step,
            steps=count,
            epoch=step / 10,
            loss=2.5,
            accuracy=0.25,
            clips_per_second=31.4,
            data_wait=0.004,
            losses={"appearance": 1.5, "motion": 1.0},
            left=60.0 * (count - step),
            **measured,
        )
        for step in range(1, count + 1)
    ]


def shown(all_steps, **terminal):
    """What a console gets, without what moves its cursor."""
    out = io.StringIO()
    with training_display(Console(file=out, **terminal)) as watch:
        for step in all_steps:
            watch(step)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n").splitlines()


def test_all_measures_of_a_large_training_stand_in_one_line_of_a_hundred_letters():
    words = in_words(LARGEST, WIDTH - 23)
    assert words == "ETA 34h17  loss 4.62+0.032  top-1 100.0 %  1234 clips/s  wait 12 %  71.2 GiB"
    (line,) = shown([LARGEST])
    assert line == f"appearance 37253/74500 {words}"
    assert len(line) <= WIDTH
    assert any(line.rstrip().endswith("71.2 GiB") for line in shown([LARGEST], force_terminal=True, width=100))


@given(
    st.floats(0, 1e9),
    st.floats(0, 1e5),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.integers(0, 10**6),
    st.sampled_from([30, 80, 100, 200]),
)
def test_no_line_is_wider_than_a_hundred_letters_or_the_terminal(left, loss, pace, memory, skipped, width):
    step = Progress(
        stage="motion",
        step=5,
        steps=5,
        epoch=1.0,
        loss=loss,
        accuracy=1.0,
        clips_per_second=pace,
        data_wait=1.0,
        losses={"motion": loss},
        memory=memory,
        skipped=skipped,
        left=left,
    )
    assert all(len(line) <= WIDTH for line in shown([step]))
    assert len(in_words(step, width)) <= max(width, 14)


def test_a_pipe_gets_ten_lines_with_every_measure_and_what_was_validated():
    found = {"loss": 1.25, "accuracy": 0.5, "clips": 12}
    every = steps(40)
    lines = shown([*every[:-1], *steps(40, skipped=3, validation=found)[-1:]])
    assert len(lines) == 11
    assert lines[0] == "joint             4/40 ETA 36:00  loss 1.50+1.00  top-1 25.0 %  31.4 clips/s  wait 0 %"
    assert lines[9].endswith("wait 0 %  3 skipped")
    assert lines[10] == "joint      epoch 4: top-1 50.0 % of 12 clips held out, loss 1.250"


def test_a_terminal_gets_a_line_for_each_stage_and_one_for_each_validation():
    found = {"loss": 1.25, "accuracy": 0.5, "clips": 12}
    lines = shown([*steps(3, "motion"), *steps(3, validation=found)[:1], *steps(3)[1:]], force_terminal=True, width=100)
    assert sum("epoch 0: top-1 50.0 % of 12 clips held out" in line for line in lines) == 1
    last = [line.split() for line in lines[-2:]]
    assert [(words[0], words[2]) for words in last] == [("motion", "100"), ("joint", "100")]


@pytest.mark.parametrize(
    ("done", "total", "seconds", "words"),
    [
        (1, 3783, 19.5, "0.0513 clips/s, 20:29:09 left"),
        (100, 150, 4.0, "25 clips/s, 0:00:02 left"),
        (150, 150, 4.0, "37.5 clips/s, 0:00:00 left"),
        (0, 150, 0.0, "0 clips/s, 0:00:00 left"),
    ],
)
def test_the_time_left_is_for_the_whole_split_at_the_rate_so_far(done, total, seconds, words):
    assert pace(done, total, seconds, "clips") == words


def test_a_pipe_gets_the_first_count_and_every_tenth_with_rate_and_time_left():
    out = io.StringIO()
    with counting(Console(file=out, force_terminal=False), "clips") as watch:
        for done in range(1, 41):
            watch(done, 40)
    lines = out.getvalue().splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [1, *range(4, 41, 4)]
    assert all("clips/s" in line and line.endswith("left") for line in lines)


def test_a_terminal_gets_a_bar_with_rate_and_time_left():
    out = io.StringIO()
    with counting(Console(file=out, force_terminal=True, width=100), "clips") as watch:
        watch(1, 2)
        watch(2, 2)
    assert "2/2" in out.getvalue()
    assert "clips/s, 0:00:00 left" in out.getvalue()
