"""The summary: its counts are those of formulas and of torchvision's own network, and the tables hold them."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from click.testing import CliRunner
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from configs import load
from stmul.__main__ import main
from stmul.config import Config
from stmul.memory import blank_clips
from stmul.stages import STREAMS, build
from stmul.summary import META, costs, multiply_adds, parameters, scored, summary_tables, total

ALONE = ("network.operator=none", "network.temporal={units: []}")


def counted(config, *, classes=101, clips=1, instants=None, size=None):
    """What each part takes, and the network's multiply-adds."""
    with META:
        network = build("joint", config, classes).eval()
    frames = blank_clips(config, clips, instants or config.data.frames, size or (config.data.crop,) * 2, META)
    return costs(network, *frames), multiply_adds(network, *frames)


def shown(config, classes=8, width=100):
    """The tables as lines of text."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        for table in summary_tables(config, classes):
            console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("depth", [18, 50, 152])
def test_one_frame_of_one_stream_takes_what_torchvisions_network_takes(depth):
    config = load(Config, None, [f"network.appearance={{depth: {depth}}}", *ALONE, "data.frames=1"])
    found, _ = counted(config, classes=1000)
    with META:
        theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        theirs(torch.zeros(1, 3, 224, 224, device=META))
    appearance = total(found["appearance"].values())
    assert appearance.multiply_adds == counter.get_total_flops() // 2
    assert appearance.multiply_adds / 1e9 == pytest.approx({18: 1.81, 50: 4.09, 152: 11.51}[depth], abs=0.01)
    assert appearance.parameters == sum(parameter.numel() for parameter in theirs.parameters())


def test_a_unit_takes_what_its_convolutions_take(small):
    config = small("network.appearance={depth: 50, width: 16}", "network.motion={depth: 50, width: 16}", "data.crop=64")
    found, _ = counted(config, instants=5)
    positions = 16 * 16 * 5  # of unit 2b at 64 pixels
    first, middle, last, over_time = 64 * 16, 9 * 16 * 16, 16 * 64, 3 * 16 * 16
    assert found["motion"]["2b"].multiply_adds == (first + middle + last + over_time) * positions
    assert found["motion"]["2c"].multiply_adds == (first + middle + last) * positions
    norms = 2 * (16 + 16 + 64)
    assert found["motion"]["2b"].parameters == first + middle + last + over_time + 16 + norms


def test_a_temporal_filter_takes_three_channels_squared_for_each_position_and_instant(small):
    sizes = ("network.appearance={depth: 18, width: 8}", "network.motion={depth: 18, width: 8}", "data.crop=64")
    (with_filters, all_with), (without, all_without) = counted(small(*sizes)), counted(small(*sizes, ALONE[1]))
    added = 0
    for unit, channels, side in (("2b", 8, 16), ("3b", 16, 8), ("4b", 32, 4), ("5b", 64, 2)):
        for stream in STREAMS:
            more = with_filters[stream][unit].multiply_adds - without[stream][unit].multiply_adds
            assert more == 3 * channels**2 * side**2 * 2, (unit, stream)
            added += more
    assert all_with[""] - all_without[""] == added


@pytest.mark.parametrize(
    "changes",
    [
        ALONE,
        ("network.direction=both",),
        ("network.appearance={depth: 50, width: 8}", "network.motion={depth: 101, width: 8}"),
        (
            "network.appearance={depth: 50, width: 8}",
            "network.motion={depth: 50, width: 8}",
            "network.temporal={kind: inflated, units: [2b, 5c]}",
        ),
    ],
    ids=["side by side", "both ways", "different depths", "inflated"],
)
def test_the_parts_are_the_whole(small, changes):
    config = small(*changes)
    found, everything = counted(config)
    with META:
        network = build("joint", config, 101)
    streams = [total(found[stream].values()) for stream in STREAMS]
    assert sum(stream.multiply_adds for stream in streams) == everything[""] > 0
    assert sum(stream.parameters for stream in streams) == parameters(network)


def test_clips_take_their_number_of_times_what_one_takes(small):
    one, three = counted(small(), clips=1), counted(small(), clips=3)
    assert three[1][""] == 3 * one[1][""]


def test_a_dense_test_clip_is_of_whole_frames_and_a_centre_one_of_crops(small):
    dense = scored(small("evaluate.protocol=dense"))
    assert (dense.instants, dense.size, dense.views) == (3, (256, 340), 2)
    centre = scored(small("evaluate.protocol=centre", "evaluate.mirror=false"))
    assert (centre.instants, centre.size, centre.views) == (3, (32, 32), 1)


@pytest.mark.parametrize("name", ["demo", "small", "hmdb51", "ucf101"])
def test_the_tables_of_every_shipped_configuration_are_aligned_and_fit(name):
    lines = shown(load(Config, name), width=100)
    assert max(map(len, lines)) < 85, "room is left: nothing wraps"
    rows = [line for line in lines if re.match(r"(stem|[2-5][a-z]|classifier|all) ", line)]
    assert len({re.match(r"\S+ +\S+ +\S+ +\S+ +\d+\.\d{3}", line).end() for line in rows}) == 1
    assert sum("GMACs" in line for line in lines) == 4


def test_the_paper_s_network_takes_what_the_tables_say():
    text = "\n".join(shown(load(Config, "ucf101"), classes=101))
    assert re.search(r"^2b +0\.083 +1\.285 +0\.083 +1\.285  motion → appearance  centre$", text, re.MULTILINE)
    assert re.search(r"^a clip in training +21\.207 GMACs +24\.550 GMACs +45\.757 GMACs$", text, re.MULTILINE)
    assert re.search(r"^kept for backward, 4 clips +3\.\d\d GiB$", text, re.MULTILINE)
    assert "25 instants of 256 x 340 pixels, and mirrored" in text


def test_streams_of_different_depth_leave_the_units_of_one_empty(small):
    depths = ("network.appearance={depth: 18, width: 8}", "network.motion={depth: 34, width: 8}")
    lines = shown(small(*depths, "network.direction=both"))
    (deeper,) = [line for line in lines if line.startswith("4f")]
    assert re.fullmatch(r"4f {20,}0\.\d{3} +0\.\d{3}", deeper)
    assert sum("both ways" in line for line in lines) == 4


def test_streams_side_by_side_show_neither_gates_nor_filters(small):
    text = "\n".join(shown(small(*ALONE)))
    assert "→" not in text
    assert "injected" not in text
    assert "centre" not in text.replace("test clip, centre", "")


def test_without_momentum_only_gradients_are_kept(small):
    assert "gradients, momentum" in "\n".join(shown(small()))
    assert "momentum" not in "\n".join(shown(small("train.momentum=0")))


def test_the_command_prints_both_tables():
    result = CliRunner().invoke(main, ["summary", "-c", "demo", "--classes", "8"])
    assert result.exit_code == 0, result.output
    assert "8 classes; a clip in training: 2 instants of 64 x 64 pixels" in result.output
    assert "What it takes, in float32" in result.output
