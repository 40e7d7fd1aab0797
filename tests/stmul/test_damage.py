"""A damaged clip fails, or is left out in its place: outside loss, statistics and accuracy, and listed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch.optim import SGD

from shards.errors import CorruptRecordError, TruncatedShardError
from shards.format import encode, key_of
from shards.record import Frames
from shards.split import open_split
from shards.writer import write_split
from stmul.damage import NAME, Damaged
from stmul.errors import TrainingError
from stmul.evaluate import Networks, evaluate
from stmul.loading import Batch, evaluation_clips, training_batch, training_stream
from stmul.runs import Run
from stmul.schedule import parameter_groups
from stmul.stages import build
from stmul.train import step, train_stage

CPU = torch.device("cpu")
BAD = 3  # the record that is damaged


def flip(split, part: str = "train", record: int = BAD, stream: str = "rgb") -> str:
    """Changes a byte of every frame of a record's stream; gives its video's name."""
    row = split.index(part).row(record)
    place = getattr(row, stream)
    blob, offset = split.store.place(part, row, stream)
    with (split.folder / blob).open("r+b") as file:
        for end in place.ends.tolist():
            file.seek(offset + end - 5)
            byte = file.read(1)[0]
            file.seek(offset + end - 5)
            file.write(bytes([byte ^ 0x55]))
    return row.name


def batches(config, split, steps=5, skip=None):
    with training_stream(split, config, "joint", pinned=False, skip=skip) as stream:
        for _ in range(steps):
            for loaded in stream.step():
                yield training_batch(loaded.to(CPU), config, config.train.joint, "joint")


def trained(config, split, folder):
    network, rows = build("joint", config, 3), []
    folder.mkdir(exist_ok=True)
    train_stage(
        "joint",
        network,
        config,
        split,
        Run(folder),
        device=CPU,
        watch=lambda _: None,
        log=rows.append,
        stop=lambda: False,
    )
    return network, rows


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_damage_fails_unless_it_may_be_skipped(small, split, tmp_path, stream):
    name = flip(split, stream=stream)
    with pytest.raises(CorruptRecordError, match=f"record {BAD} \\({name}\\), {stream}"):
        trained(small(), split, tmp_path / "run")


@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_the_place_of_a_damaged_clip_is_kept_and_all_others_are_as_they_were(small, split, stream):
    config, told = small(), []
    whole = list(batches(config, split))
    flip(split, stream=stream)
    left = list(batches(config, split, skip=lambda row, error: told.append(row.record)))
    record_at = {
        position: valid for batch in left for position, valid in zip(batch.positions, batch.valid, strict=True)
    }
    assert sum(not valid for valid in record_at.values()) == 2  # 20 positions: each of ten records twice
    assert set(told) == {BAD}  # reading is ahead of what is used
    for one, other in zip(whole, left, strict=True):
        assert one.positions == other.positions
        assert torch.equal(one.labels_B, other.labels_B)
        for slot, valid in enumerate(other.valid):
            if valid:
                assert torch.equal(one.rgb_BTCHW[slot], other.rgb_BTCHW[slot])
                assert torch.equal(one.flow_BTCHW[slot], other.flow_BTCHW[slot])
            else:
                assert (other.rgb_BTCHW[slot] == 128).all()
                assert (other.flow_BTCHW[slot] == 128).all()


def test_a_frame_that_is_no_picture_though_its_bytes_are_as_written_is_skipped_too(small, make_record, tmp_path):
    records = [make_record(f"v_{i}", width=48, height=40, frames=14, label=i % 3) for i in range(6)]
    cut = [bytes(records[2].rgb[i])[:-40] for i in range(14)]
    records[2] = replace(records[2], rgb=Frames.of(cut, width=48, height=40, components=3, encoder={}))
    part = [[(key_of(record.name), encode(record)) for record in records]]
    classes = ["class0", "class1", "class2"]
    write_split(tmp_path / "s", dataset="drawn", split=1, classes=classes, made={}, parts={"train": part, "test": part})
    told = []
    with open_split(tmp_path / "s") as split:
        with pytest.raises(CorruptRecordError, match="v_2: a RGB frame of 48x40"):
            list(batches(small(), split, steps=2))
        found = list(batches(small(), split, steps=3, skip=lambda row, error: told.append(row.name)))
    assert set(told) == {"v_2"}
    assert sum(not valid for batch in found for valid in batch.valid) == 2


def test_what_a_cut_shard_lacks_is_skipped(small, split):
    shard = split.folder / "train-000004.tar"
    rows = [row for row in split.index("train") if row.shard == 4]
    with shard.open("r+b") as file:
        file.truncate(rows[-1].rgb.offset)
    with pytest.raises(TruncatedShardError):
        list(batches(small(), split))
    told = set()
    list(batches(small(), split, skip=lambda row, error: told.add(row.record)))
    assert told == {rows[-1].record}


def test_a_clip_left_out_counts_for_nothing_in_a_step(small, split):
    config = small("network.motion.dropout=0.0")
    one = next(batches(config, split))
    valid = (False, True)
    spoilt = replace(one, valid=valid, rgb_BTCHW=one.rgb_BTCHW.clone(), flow_BTCHW=one.flow_BTCHW.clone())
    spoilt.rgb_BTCHW[0] = 200
    alone = Batch(
        rgb_BTCHW=one.rgb_BTCHW[1:],
        flow_BTCHW=one.flow_BTCHW[1:],
        labels_B=one.labels_B[1:],
        positions=one.positions[1:],
        valid=(True,),
    )
    network = build("joint", config, 3).train().double()  # as drawn it amplifies what float32 rounds
    results = []
    for batch in (spoilt, alone):
        copied = copy.deepcopy(network)
        optimizer = SGD(parameter_groups(copied, 5e-4), lr=0.1)
        settings = {"clips": 4, "seed": 1, "moments_rate": 0.1, "clip_norm": 0.0}
        loss, right, count, *_ = step(copied, [batch], optimizer, **settings)
        assert count == 1
        results.append((float(loss), int(right), copied.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9)
    assert results[0][1] == results[1][1]
    for name, value in results[0][2].items():
        torch.testing.assert_close(value, results[1][2][name], rtol=1e-8, atol=1e-9, msg=name)


def test_a_sub_batch_of_damaged_clips_alone_changes_nothing_but_by_momentum_and_decay(small, split):
    config = small("network.motion.dropout=0.0")
    one = next(batches(config, split))
    network = build("joint", config, 3).train()
    before = copy.deepcopy(network.state_dict())
    optimizer = SGD(parameter_groups(network, 0.0), lr=0.1)
    settings = {"clips": 4, "seed": 1, "moments_rate": 0.1, "clip_norm": 0.0}
    loss, right, count, *_ = step(network, [replace(one, valid=(False, False))], optimizer, **settings)
    assert (float(loss), int(right), count) == (0.0, 0, 0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_training_with_damage_is_listed_goes_on_and_is_counted_right(small, split, tmp_path):
    name = flip(split)
    network, rows = trained(small("data.damage=skip"), split, tmp_path / "run")
    (line,) = (tmp_path / "run" / NAME).read_text().splitlines()  # met twice, told once
    assert json.loads(line)["name"] == name
    assert "checksum" in json.loads(line)["error"]
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    again, rows_again = trained(small("data.damage=skip", "data.threads=1"), split, tmp_path / "again")
    assert [row["loss"] for row in rows] == [row["loss"] for row in rows_again]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())


def test_too_much_damage_ends_the_training_and_says_where_it_is_listed(small, split, tmp_path):
    for record in (1, 4, 6):
        flip(split, record=record)
    with pytest.raises(TrainingError, match=r"3 videos are damaged, data.damage_limit is 2.*damaged\.jsonl"):
        trained(small("data.damage=skip", "data.damage_limit=2"), split, tmp_path / "run")
    assert len((tmp_path / "run" / NAME).read_text().splitlines()) == 3


def test_damage_of_earlier_sessions_counts_and_half_a_line_does_not(split, tmp_path):
    row, error = split.index("train").row(0), CorruptRecordError("why")
    first = Damaged(tmp_path, 5)
    first(row, error)
    with (tmp_path / NAME).open("a") as file:
        file.write('{"name": "v_')
    second = Damaged(tmp_path, 5)
    assert len(second) == 1
    second(row, error)
    assert len(second) == 1
    second(split.index("train").row(1), error)
    assert len(Damaged(tmp_path, 5)) == 2  # the new line does not join the half one


def test_an_evaluation_never_leaves_a_clip_out(small, split):
    config = small("data.damage=skip")
    name = flip(split, part="test", record=2)
    with pytest.raises(CorruptRecordError, match=name):
        list(evaluation_clips(split, "test", config))
    with pytest.raises(CorruptRecordError, match=name):
        evaluate(Networks(joint=build("joint", config, 3)), split, config, device=CPU)
