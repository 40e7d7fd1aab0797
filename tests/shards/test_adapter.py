import gc
import subprocess
import sys
import warnings

import msgpack
import pytest
import webdataset

from shards.adapter import as_webdataset, frames
from shards.errors import CorruptRecordError, UnreachableError
from shards.format import MEMBERS, decode, key_of
from shards.split import open_split


@pytest.fixture
def folder(make_split, tmp_path):
    make_split(tmp_path / "split1")
    return tmp_path / "split1"


def plain(*tars, decoded=False):
    """The samples of `tars`, as plain webdataset reads them. It leaves files for the collector to close."""
    pipeline = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(pipeline.decode() if decoded else pipeline)
        gc.collect()
    return samples


def members_of(samples):
    return {sample["__key__"]: {member: sample[member] for member in MEMBERS} for sample in samples}


def test_plain_webdataset_reads_the_members_that_were_written(folder):
    samples = members_of(plain(*sorted(folder.glob("train-*.tar"))))
    with open_split(folder) as split:
        expected = {
            row.key: {member: bytes(data) for member, data in split.members("train", row).items()}
            for row in split.index("train")
        }
    assert samples == expected
    assert len(samples) == 6


def test_decode_of_plain_webdataset_gives_the_label_and_leaves_the_rest(folder):
    tars = sorted(folder.glob("train-*.tar"))
    for decoded, sample in zip(plain(*tars, decoded=True), plain(*tars), strict=True):
        assert decoded["cls"] == int(decoded["__key__"].removeprefix("v_train_")) % 3
        assert [decoded[member] for member in MEMBERS[1:]] == [sample[member] for member in MEMBERS[1:]]


def test_the_adapter_hands_out_what_plain_webdataset_does_in_its_order(folder):
    ours, theirs = list(as_webdataset(folder)), plain(*sorted(folder.glob("train-*.tar")))
    assert members_of(ours) == members_of(theirs)
    assert [sample["__key__"] for sample in ours] == [sample["__key__"] for sample in theirs]


def test_stages_of_webdataset_follow_the_adapter(folder):
    metadata = webdataset.handle_extension("msgpack", msgpack.unpackb)
    pipeline = as_webdataset(folder, "test").decode(metadata).to_tuple("cls", "index.msgpack").batched(2)
    labels = [(int(label), header["label"]) for batch in pipeline for label, header in zip(*batch, strict=True)]
    assert sorted(labels) == [(0, 0), (1, 1), (2, 2)]
    assert len(list(as_webdataset(folder).with_epoch(4))) == 4


def test_an_url_gives_the_samples_of_the_folder(folder, serve):
    url = serve(folder).url
    assert members_of(as_webdataset(url)) == members_of(as_webdataset(folder))
    tar = "train-000001.tar"
    assert members_of(as_webdataset(f"{url}/{tar}")) == members_of(plain(folder / tar))


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share_the_shards_without_loss_or_repeat(folder, workers, monkeypatch):
    keys = []
    for worker in range(workers):
        monkeypatch.setenv("WORKER", str(worker))
        monkeypatch.setenv("NUM_WORKERS", str(workers))
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
        keys += [sample["__key__"] for sample in as_webdataset(folder)]
    assert sorted(keys) == sorted(f"v_train_{i}" for i in range(6))


def test_frames_are_the_images_of_the_record(folder, make_record):
    for sample in as_webdataset(folder):
        rgb, flow = frames(sample)
        record = decode({member: sample[member] for member in MEMBERS})
        assert rgb == [bytes(record.rgb[i]) for i in range(len(record.rgb))]
        assert flow == [bytes(record.flow[i]) for i in range(len(record.flow))]
        assert len(flow) == 2 * (len(rgb) - 1)


def test_a_damaged_byte_is_named_and_not_handed_out(folder):
    tar = folder / "train-000000.tar"
    with open_split(folder) as split:
        row = next(row for row in split.index("train") if row.shard == 0)
    data = bytearray(tar.read_bytes())
    data[row.rgb.offset + 20] ^= 1
    tar.write_bytes(data)
    with pytest.raises(CorruptRecordError, match=f"{row.name}.*video.rgb.mjpeg"):
        list(as_webdataset(folder))


def test_a_command_as_a_url_is_refused_and_not_run(tmp_path):
    with pytest.raises(UnreachableError, match="not a kind of location"):
        as_webdataset(f"pipe:touch {tmp_path}/done")
    assert not (tmp_path / "done").exists()


def test_an_unknown_part_is_named(folder):
    with pytest.raises(UnreachableError, match="has no part 'valid'; it has test, train"):
        list(as_webdataset(folder, "valid"))


def test_keys_of_odd_names_come_through_plain_webdataset(tmp_path, make_record):
    from shards.format import encode
    from shards.writer import write_shard

    name = "a.b%c/" + "#;@[x]" * 18  # needs an extended header
    write_shard(tmp_path / "train-000000.tar", [(key_of(name), encode(make_record(name)))])
    (sample,) = plain(tmp_path / "train-000000.tar")
    assert sample["__key__"] == key_of(name)
    assert decode({member: sample[member] for member in MEMBERS}).name == name


def test_importing_the_adapter_loads_neither_webdataset_nor_torch():
    program = (
        "import sys, shards.adapter; print([m for m in ('webdataset', 'torch', 'cv2', 'obstore') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
