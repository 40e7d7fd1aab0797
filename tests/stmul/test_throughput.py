"""Loading is measured by what the trainer calls, and what is said of it follows from the figures."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from shards.split import open_split
from stmul.__main__ import main
from stmul.figures import Decoding, Delivery, Figures, Link, Moving, Pass, Reading, advice, as_tree, verdict
from stmul.throughput import Counted, Kept, ended_at_once, measure, read_pass, training_work

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
QUICK = ["--seconds", "0.02", "--set", "experiment.use_gpu='no'"]


@pytest.fixture(scope="module")
def shards(make_split, tmp_path_factory) -> Path:
    """Ten training and five test videos of the drawn set, 40 x 48 pixels."""
    folder = tmp_path_factory.mktemp("throughput") / "split1"
    make_split(folder, train=10, test=5, width=48, height=40, frames=14)
    return folder


@pytest.fixture
def bench(small, tmp_path):
    """A function that runs the command with the settings of a small training."""
    path = tmp_path / "small.yaml"

    def run(*arguments):
        from configs import dump

        path.write_text(dump(small()), encoding="utf-8")
        return CliRunner().invoke(main, ["shards", "bench", "-c", str(path), *QUICK, *map(str, arguments)])

    return run


# Measuring


def test_each_station_is_measured(shards, small):
    heard = []
    with open_split(shards) as split:
        figures = measure(split, small(), part="train", stage="joint", seconds=0.02, device=CPU, say=heard.append)
    assert [one.threads for one in figures.first_pass] == [one.threads for one in figures.decoding] == [1, 2]
    passes = (*figures.first_pass, *figures.again, *figures.decoding, figures.cutting, figures.delivery)
    assert all(one.clips >= 1 and one.seconds > 0 and one.rate > 0 for one in passes)
    assert figures.delivery.first > 0
    assert (figures.moving, figures.link) == (None, None)
    assert (figures.records, figures.store, figures.flow_scale) == (10, "tar", 1.0)
    passes = ["reading, 1 thread", "reading, 2 threads", "decoding, 1 thread", "decoding, 2 threads"]
    assert heard == [*passes, "cropping", "all together"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stmul-read")]


def test_the_first_pass_reads_no_record_twice(shards, small, monkeypatch):
    seen: list[list[str]] = []

    def watched(split, part, wanted, counted, **options):
        done: list[str] = []
        noted = (done.extend(record for _, record, _ in some) or some for some in wanted)
        seen.append(done)
        return read_pass(split, part, noted, counted, **options)

    monkeypatch.setattr("stmul.throughput.read_pass", watched)
    with open_split(shards) as split:
        measure(split, small(), part="train", stage="joint", seconds=0.2, device=CPU)
    first = seen[0] + seen[2]
    assert len(first) == len(set(first)) >= 4
    assert set(seen[1]) <= set(seen[0])
    assert set(seen[3]) <= set(seen[2])


def test_bytes_are_counted_as_they_are_used_and_as_they_are_read(shards, small):
    with open_split(shards) as split:
        work = training_work(split, small(), "joint", device=torch.device("cpu"))
        counted, kept = Counted(split.store), Kept()
        split.store = counted
        figures = read_pass(split, "train", work.wanted, counted, threads=1, seconds=60, kept=kept)
    used = 0
    with open_split(shards) as split:
        for _, record, chosen in (one for some in work.wanted for one in some):
            row = split.index("train").row(record)
            for place, images in (
                (row.rgb, chosen.frames),
                (row.flow, [2 * p + i for p in chosen.pairs for i in (0, 1)]),
            ):
                used += sum(int(place.ends[i]) - (int(place.ends[i - 1]) if i else 0) for i in images)
    assert figures.clips == 10
    assert figures.used == used == sum(len(j) for some in kept.clips for c in some for j in (*c.rgb, *c.flow))
    assert figures.read >= figures.used
    assert figures.reads >= 1


@pytest.mark.parametrize("stage", ["appearance", "motion"])
def test_a_stream_alone_is_measured_too(shards, small, stage):
    with open_split(shards) as split:
        figures = measure(split, small(), part="train", stage=stage, seconds=0.02, device=CPU)
    decoding = figures.decoding[-1]
    assert decoding.flow_pixels == (0 if stage == "appearance" else decoding.pixels)
    assert figures.delivery.clips >= 1


@pytest.mark.gpu
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_a_gpu_is_measured_with_what_is_moved_there(shards, small, decode):
    config, device = small(f"data.decode={decode}"), torch.device("cuda", 0)
    with open_split(shards) as split:
        figures = measure(split, config, part="train", stage="joint", seconds=0.2, device=device)
    assert (figures.moving is None) == (decode == "gpu")
    assert figures.device == "cuda:0"
    assert figures.decoding[-1].clips >= 1


# The command


def test_the_command_prints_an_aligned_table_and_what_is_the_limit(bench, shards):
    result = bench(shards)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == f"shards    {shards} (tar), train: 10 records"
    assert "clips of 2 instants, 2 in a sub-batch, crops of 32" in lines[1]
    rows = [line for line in lines if re.match(r" (reading, |decoding|cropping|all together)", line)]
    assert len(rows) == 8
    assert len({len(line) for line in rows}) == 1
    assert re.search(r"^limit     (reading|decoding|cropping) is the slowest station", result.output, re.MULTILINE)
    assert "cannot be known" in result.output


def test_other_parts_are_measured_as_testing_reads_them(bench, shards):
    result = bench(shards, "--part", "test", "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "test: 5 records" in result.output
    assert "testing: 3 instants" in result.output
    assert "threads that read and decode: 1" in result.output


def test_figures_are_json_where_that_is_asked_for(bench, shards):
    result = bench(shards, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["limit_again"] in ("reading", "decoding", "cropping")
    assert found["first_pass"][0]["clips_per_second"] > 0
    assert found["again"][1]["threads"] == 2
    assert (found["link"], found["moving"], found["records"]) == (None, None, 10)


def test_a_url_is_measured_with_its_round_trip(bench, shards, serve):
    result = bench(f"{serve(shards.parent).url}/split1")
    assert result.exit_code == 0, result.output
    assert "(remote)" in result.output
    assert re.search(r"large reads +\d+ +\d+\.\d ms a trip", result.output)


def test_the_configuration_is_the_data_sets_own_unless_another_is_named(shards):
    result = CliRunner().invoke(main, ["shards", "bench", str(shards), *QUICK])
    assert result.exit_code == 0, result.output
    assert "\nsettings  demo, " in result.output


def test_one_tar_alone_is_measured(bench, shards):
    result = bench(shards / "train-000000.tar")
    assert result.exit_code == 0, result.output
    assert "train: 2 records" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/none"], "no such folder"),
        (["SHARDS", "--part", "valid"], "--part valid: expected one of test, train"),
        (["SHARDS", "--set", "data.thread=1"], "did you mean data.threads?"),
        (["SHARDS", "--set", "experiment.use_gpu=yes", "--set", "experiment.gpu_id=63"], "experiment.gpu_id"),
    ],
)
def test_mistakes_are_one_line(bench, shards, arguments, said):
    result = bench(*(str(shards) if word == "SHARDS" else word for word in arguments))
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_damage_is_one_line(bench, shards, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in shards.iterdir():
        data = bytearray(path.read_bytes())
        if path.name.startswith("train-") and path.suffix == ".tar":
            data[1536:] = bytes(255 - byte for byte in data[1536:])
        (folder / path.name).write_bytes(data)
    result = bench(folder)
    assert result.exit_code == 1
    assert "checksum" in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_ctrl_c_ends_it_at_once(shards):
    command = [sys.executable, "-m", "stmul", "shards", "bench", str(shards), "--seconds", "600"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        _await_measuring(process.pid)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert (out, error) == ("", "")


def _await_measuring(pid: int) -> None:
    """Returns once Python's own handler of Ctrl-C has given way."""
    deadline, started = time.monotonic() + 150, False
    while time.monotonic() < deadline:
        caught = re.search(r"SigCgt:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
        handled = bool(int(caught[1], 16) >> (signal.SIGINT - 1) & 1)
        if started and not handled:
            time.sleep(0.5)
            return
        started |= handled
        time.sleep(0.02)
    pytest.fail("nothing was measured")


def test_ctrl_c_is_as_before_after_measuring():
    before = signal.getsignal(signal.SIGINT)
    with ended_at_once():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


# What the figures say


def figures(**changes) -> Figures:
    """Decoding is the limit: 2 threads of 2 cores, 100 clips/s; reading 1000, cropping 400; all together 90."""
    reading = Reading(threads=2, clips=1000, seconds=1.0, cpu=2.0, used=500_000_000, read=510_000_000, reads=6000)
    decoding = Decoding(
        threads=2, clips=100, seconds=1.0, cpu=2.0, images=10_500, pixels=1_000_000, flow_pixels=870_000
    )
    given = {
        "location": "data/split1",
        "store": "tar",
        "part": "train",
        "stage": "joint",
        "records": 1000,
        "cores": 2,
        "device": "cpu",
        "flow_scale": 1.0,
        "decode": "cpu",
        "first_pass": (replace(reading, threads=1, clips=500), reading),
        "again": (replace(reading, threads=1, clips=500), reading),
        "decoding": (replace(decoding, threads=1, clips=52, cpu=1.0), decoding),
        "moving": None,
        "cutting": Pass(threads=1, clips=400, seconds=1.0, cpu=1.0),
        "delivery": Delivery(threads=2, clips=90, seconds=1.0, cpu=2.0, first=0.1),
        "link": None,
    }
    return Figures(**(given | changes))


def slower(passes: tuple, clips: int) -> tuple:
    return (*passes[:-1], replace(passes[-1], clips=clips))


def said(one: Figures) -> str:
    return "\n".join([*verdict(one), "--", *advice(one)])


def test_the_slowest_station_is_the_limit():
    one = figures()
    assert (one.limit(again=False), one.limit(again=True)) == ("decoding", "decoding")
    assert "decoding is the slowest station: 100 clips/s (reading 1000, cropping 400)" in said(one)
    assert "deliver 90 clips/s, 90 % of that" in said(one)
    assert "share" not in said(one)
    assert "more cores should help" in said(one)
    assert "87 % of the pixels decoded are flow of full size" in said(one)
    assert "lmdb" not in said(one)
    assert as_tree(one)["limit_first"] == "decoding"
    json.dumps(as_tree(one))


def test_half_size_flow_is_not_advised_twice():
    assert "flow" not in said(figures(flow_scale=0.5))


def test_a_cold_disk_shows_as_a_first_pass_slower_than_the_second():
    one = figures(first_pass=slower(figures().first_pass, 20))
    assert (one.limit(again=False), one.limit(again=True)) == ("reading", "decoding")
    assert "reading is the slowest station the first time: 20 clips/s, 1000 the second" in said(one)
    assert "decoding is the slowest station after that" in said(one)
    assert "50.0 times as fast the second time" in said(one)
    assert "LMDB" in said(one)


def test_a_reading_that_was_slower_the_second_time_is_told_as_it_was():
    one = figures(again=slower(figures().again, 20))
    assert "the first time" not in said(one)
    assert "reading is the slowest station: 20 clips/s" in said(one)
    assert "times as fast the second" not in said(one)


def test_threads_are_advised_where_there_are_cores():
    one = figures(cores=16)
    assert "2 decode on 16 cores: --threads 16" in said(one)


def test_threads_that_do_not_help_are_told_as_such():
    one = figures(decoding=slower(figures().decoding, 60))
    assert "only 1.2 times as fast as one" in said(one)
    busy = figures(decoding=(figures().decoding[0], replace(figures().decoding[1], cpu=0.5)))
    assert "had 25 % of the cores they could use" in said(busy)


def test_a_gpu_can_be_the_place_and_the_transfer_the_limit():
    moving = Moving(threads=1, clips=50, seconds=1.0, cpu=0.5, moved=500_000_000)
    one = figures(device="cuda:0", moving=moving)
    assert one.limit(again=True) == "moving to the GPU"
    assert "flow" in said(one)
    decoding = figures(device="cuda:0", moving=replace(moving, clips=5000))
    assert "--set data.decode=gpu" in said(decoding)
    gpu = figures(device="cuda:0", decode="gpu", decoding=(figures().decoding[0],))
    assert "--set data.decode=cpu" in said(gpu)


def test_cropping_on_the_cpu_can_be_the_limit():
    one = figures(cutting=Pass(threads=1, clips=30, seconds=1.0, cpu=1.0))
    assert "cropping is the slowest station: 30 clips/s" in said(one)
    assert "GPU" in said(one)


def test_a_distance_shows_in_what_large_reads_reach():
    slow = slower(figures().first_pass, 10)
    slow = (slow[0], replace(slow[1], read=5_000_000))
    far = figures(
        first_pass=slow, again=slow, link=Link(round_trip=0.08, bytes=50_000_000, seconds=1.0), store="remote"
    )
    assert "clips are read at 5 MB/s, large pieces at 50" in said(far)
    assert "--threads 4" in said(far)
    narrow = replace(far, link=Link(round_trip=0.08, bytes=5_100_000, seconds=1.0))
    assert "--threads" not in said(narrow)
    assert "closer" in said(narrow)
    assert "LMDB" not in said(narrow)
