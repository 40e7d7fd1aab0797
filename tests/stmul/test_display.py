"""What is shown while clips are scored."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from stmul.display import counting, pace


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
