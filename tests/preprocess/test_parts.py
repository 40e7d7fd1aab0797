"""Parts built apart and merged, on a shared folder or in a bucket: the bytes of one build, whatever went before."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.build import Progress, build
from preprocess.building.engines import Died, Engine, here, processes
from preprocess.building.parts import build_part, merge
from preprocess.building.places import place_at
from preprocess.building.plan import planned
from preprocess.building.site import named
from preprocess.building.work import Task
from preprocess.building.workers import pinned, worker_count
from preprocess.building.workplace import Share, finished_before, waiting_elsewhere, work_place, workplace
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.datasets import find_dataset, reduced
from preprocess.errors import PreprocessError
from preprocess.record import how_made
from shards.check import problems
from shards.errors import ShardError
from shards.index import index_bytes, index_tar
from shards.split import open_split

SMALL = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), per_shard=1, workers=1)
SIZE = {"width": 40, "height": 30}
build_here = partial(build, engine=here)
part_here = partial(build_part, engine=here)

Folders = Callable[..., Path]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, video_folders: Folders) -> Path:
    """Two classes, four groups: split n tests on group n."""
    return video_folders(tmp_path_factory.mktemp("data") / "small", train=3, frames=3, **SIZE)


@pytest.fixture
def own_root(tmp_path: Path, root: Path) -> Path:
    """The same, to break."""
    return shutil.copytree(root, tmp_path / "small")


@pytest.fixture(scope="module")
def reference(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of split 1, from a build that nothing disturbed."""
    return files(build_here(find_dataset(root), SMALL, tmp_path_factory.mktemp("out")).folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def cut(data: bytes, start: int, stop: int) -> bytes:
    return data[start:stop]


def share(number: int, of: int) -> Share:
    return Share(number=number, of=of)


def stopping_after(count: int) -> Callable[[Progress], None]:
    """Stops a build when it has told so often how far it is."""
    told = []

    def watch(progress: Progress) -> None:
        told.append(progress)
        if len(told) > count:
            raise KeyboardInterrupt

    return watch


def noting_what_is_made() -> tuple[list[str], Engine]:
    """The names of the videos whose records are made, as they are made, and the engine that notes them."""
    made: list[str] = []

    def engine(start: Any, tasks: Any, workers: int) -> Iterator[tuple[int, Any]]:
        for position, result in here(start, tasks, workers):
            if isinstance(tasks[position], Task) and result.how == "made":
                made.append(tasks[position].video.name)
            yield position, result

    return made, engine


# Parts


@given(of=st.integers(1, 11), data=st.data())
@settings(max_examples=5)
def test_parts_in_any_number_and_order_stopped_anywhere_are_the_build(
    root: Path, tmp_path_factory: pytest.TempPathFactory, reference: dict[str, bytes], of: int, data: Any
) -> None:
    out, dataset = tmp_path_factory.mktemp("parts"), find_dataset(root)
    for number in data.draw(st.permutations(range(1, of + 1))):
        if data.draw(st.booleans()):
            with suppress(KeyboardInterrupt):
                part_here(dataset, SMALL, out, share(number, of), stopping_after(data.draw(st.integers(0, 5))))
        part_here(dataset, SMALL, out, share(number, of))
    report = merge(dataset, SMALL, out)
    assert report.how == {"packed by parts": 8}
    assert files(report.folder) == reference
    assert not (out / ".work").exists()


def test_each_part_makes_its_own_shards_and_no_others(root, tmp_path):
    dataset = find_dataset(root)
    names = [named(shard) for shard in planned(dataset, 1)]
    report = part_here(dataset, SMALL, tmp_path, share(2, 3))
    assert (report.shards, report.of_shards, report.how) == (3, 8, {"made": 3})
    assert sorted(path.name for path in (tmp_path / "small/split1").iterdir()) == sorted(names[1::3])
    assert part_here(dataset, SMALL, tmp_path, share(2, 3)).how == {"kept": 3}


def test_parts_run_side_by_side_in_processes_of_their_own(root, tmp_path, reference):
    command = ["preprocess", "shards", "--root", str(root), "--out", str(tmp_path), "--flow", "dis", "--workers", "1"]
    sets = ["--set", "preprocess.rgb.short_side=32", "--set", "preprocess.per_shard=1"]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "stmul", *command, *sets, "--part", f"{number}/2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (1, 2)
    ]
    for number, process in enumerate(running, 1):
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert f"part {number}/2: 4 of 8 shards stand" in said
    merged = subprocess.run(
        [sys.executable, "-m", "stmul", "preprocess", "merge", *command[2:], *sets], capture_output=True, text=True
    )
    assert merged.returncode == 0, merged.stderr
    assert "8 records (8 packed by parts)" in merged.stdout
    found = files(tmp_path / "small/split1")
    del found["settings.yaml"]
    assert found == reference


def test_a_build_of_all_goes_on_from_parts_and_a_part_from_a_build(root, tmp_path, reference):
    dataset = find_dataset(root)
    part_here(dataset, SMALL, tmp_path / "1", share(1, 2))
    report = build_here(dataset, SMALL, tmp_path / "1")
    assert report.how == {"kept": 4, "made": 4}
    assert files(report.folder) == reference
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, SMALL, tmp_path / "2", stopping_after(9))
    done = sum(sum(part_here(dataset, SMALL, tmp_path / "2", share(i, 3)).how.values()) for i in (1, 2, 3))
    assert done == 8
    assert files(merge(dataset, SMALL, tmp_path / "2").folder) == reference


def test_another_split_takes_over_what_parts_have_packed_merged_or_not(root, tmp_path):
    alone = files(build_here(find_dataset(root, split=2), SMALL, tmp_path / "alone").folder)
    for merged in (True, False):
        out = tmp_path / f"merged{merged}"
        for number in (1, 2):
            part_here(find_dataset(root), SMALL, out, share(number, 2))
        if merged:
            merge(find_dataset(root), SMALL, out)
        report = build_here(find_dataset(root, split=2), SMALL, out)
        assert report.how == {"taken over": 8}
        assert files(report.folder) == alone
    report = merge(find_dataset(root), SMALL, tmp_path / "mergedFalse")
    assert report.how == {"packed by parts": 8}


def test_parts_take_over_from_another_split_and_share_its_files(root, tmp_path):
    first = build_here(find_dataset(root), SMALL, tmp_path)
    for number in (1, 2):
        assert part_here(find_dataset(root, split=2), SMALL, tmp_path, share(number, 2)).how == {"taken over": 4}
    second = merge(find_dataset(root, split=2), SMALL, tmp_path)
    of_first = {path.stat().st_ino for path in first.folder.glob("*.tar")}
    assert {path.stat().st_ino for path in second.folder.glob("*.tar")} == of_first


def test_a_merge_says_which_shards_and_parts_are_missing_and_computes_nothing(root, tmp_path, monkeypatch):
    dataset = find_dataset(root)
    with pytest.raises(PreprocessError, match=r"8 of 8 shards are missing: .*no part was built with these settings"):
        merge(dataset, SMALL, tmp_path)
    assert not list(tmp_path.iterdir())  # and no folder of its own
    for number in (1, 3):
        part_here(dataset, SMALL, tmp_path, share(number, 3))
    with pytest.raises(PreprocessError, match=r"3 of 8 shards are missing: .*\(not packed\).* Build part 2/3 again"):
        merge(dataset, SMALL, tmp_path)
    part_here(dataset, SMALL, tmp_path, share(2, 3))
    folder = tmp_path / "small/split1"
    names = [named(shard) for shard in planned(dataset, 1)]
    (folder / names[0]).unlink()
    (folder / names[4]).write_bytes(b"x" * (folder / names[4]).stat().st_size)
    with pytest.raises(
        PreprocessError, match=r"2 of 8 .*gone, or not the file.* Build part 1/3 and 2/3 again|1/3, 2/3"
    ):
        merge(dataset, SMALL, tmp_path)
    assert not (folder / "manifest.json").exists()
    assert part_here(dataset, SMALL, tmp_path, share(1, 3)).how == {"kept": 2, "made": 1}
    assert part_here(dataset, SMALL, tmp_path, share(2, 3)).how == {"kept": 2, "made": 1}
    assert merge(dataset, SMALL, tmp_path).manifest.parts["train"].records == 6


def test_the_index_of_noted_rows_is_that_of_the_shards_and_everything_is_whole(root, tmp_path):
    settings = SMALL.model_copy(update={"per_shard": 2})
    for number in (1, 2):
        part_here(find_dataset(root), settings, tmp_path, share(number, 2))
    folder = merge(find_dataset(root), settings, tmp_path).folder
    with open_split(folder) as split:
        assert list(problems(split)) == []
    for part in ("train", "test"):
        tars = sorted(folder.glob(f"{part}-*.tar"))
        rows = []
        for shard, tar in enumerate(tars):
            found = index_tar(partial(cut, tar.read_bytes()), tar.stat().st_size, shard, tar.name)
            rows += [replace(row, record=len(rows) + record) for record, row in enumerate(found)]
        assert b"".join(index_bytes(rows, len(tars))) == (folder / f"{part}.index").read_bytes()


def test_a_merge_twice_is_a_merge(root, tmp_path, reference):
    part_here(find_dataset(root), SMALL, tmp_path, share(1, 1))
    assert merge(find_dataset(root), SMALL, tmp_path).new
    again = merge(find_dataset(root), SMALL, tmp_path)
    assert not again.new
    assert files(again.folder) == reference
    late = part_here(find_dataset(root), SMALL, tmp_path, share(1, 1), rebuild=True)
    assert late.how == {}
    assert files(again.folder) == reference


def test_failures_of_parts_are_noted_by_part_and_put_together(own_root, tmp_path):
    for path in sorted(own_root.rglob("*.avi"))[:3]:
        path.write_bytes(b"")
    dataset = find_dataset(own_root)
    single = build_here(dataset, SMALL, tmp_path / "single")
    failed = sum(len(part_here(dataset, SMALL, tmp_path, share(number, 2)).failures) for number in (1, 2))
    assert failed == 3
    folder = tmp_path / "small/split1"
    by_part = [path.read_text().splitlines() for path in sorted(folder.glob("failures-*-of-2.jsonl"))]
    assert sum(map(len, by_part)) == 3
    assert not (folder / "failures.jsonl").exists()
    with pytest.raises(PreprocessError, match="3 broken videos, at most 2"):
        merge(dataset, SMALL.model_copy(update={"failures": 2}), tmp_path)
    report = merge(dataset, SMALL, tmp_path)
    assert report.failures == single.failures
    assert files(report.folder) == files(single.folder)


def test_a_video_that_changed_after_its_part_was_built_is_noticed_and_made_again(own_root, tmp_path, write_video):
    dataset = find_dataset(own_root)
    for number in (1, 2):
        part_here(dataset, SMALL, tmp_path, share(number, 2))
    write_video(own_root / "videos/a/v_a_g02_c01.avi", frames=5, seed=99, **SIZE)
    with pytest.raises(PreprocessError, match=r"1 of 8 shards are missing: .*packed of other videos or files"):
        merge(dataset, SMALL, tmp_path)
    how = [part_here(dataset, SMALL, tmp_path, share(number, 2)).how for number in (1, 2)]
    assert sorted(how, key=str) == [{"kept": 3, "made": 1}, {"kept": 4}]
    report = merge(dataset, SMALL, tmp_path)
    assert files(report.folder) == files(build_here(dataset, SMALL, tmp_path / "fresh").folder)


# What must not run side by side


def test_the_same_part_twice_at_a_time_is_refused_and_other_parts_are_not(root, tmp_path):
    refused: list[str] = []

    def watch(progress: Progress) -> None:
        if refused or not progress.done:
            return
        for attempt in (
            lambda: part_here(find_dataset(root), SMALL, tmp_path, share(1, 2)),
            lambda: build_here(find_dataset(root), SMALL, tmp_path),
            lambda: merge(find_dataset(root), SMALL, tmp_path),
            lambda: part_here(find_dataset(root), SMALL, tmp_path, share(1, 3)),
            lambda: part_here(find_dataset(root, split=2), SMALL, tmp_path, share(1, 2)),
        ):
            with pytest.raises(PreprocessError, match="at work here") as caught:
                attempt()
            refused.append(str(caught.value))
        assert part_here(find_dataset(root), SMALL, tmp_path, share(2, 2)).how == {"made": 4}

    assert part_here(find_dataset(root), SMALL, tmp_path, share(1, 2), watch).how == {"made": 4}
    assert len(refused) == 5
    assert "part 1/2 is at work" in refused[0]


def test_parts_of_other_settings_are_refused_unless_they_begin_anew(root, tmp_path):
    dataset, other = find_dataset(root), SMALL.model_copy(update={"flow": Flow(method="farneback")})
    part_here(dataset, SMALL, tmp_path, share(1, 2))
    with pytest.raises(PreprocessError, match=r"parts .* were begun otherwise .*'dis' then, 'farneback' now"):
        part_here(dataset, other, tmp_path, share(2, 2))
    with pytest.raises(PreprocessError, match="parts of this split were begun otherwise"):
        part_here(dataset, SMALL.model_copy(update={"per_shard": 2}), tmp_path, share(2, 2))
    with pytest.raises(PreprocessError, match=r"4 shards there .* not finished, .*'dis' then, 'farneback' now.*lost"):
        build_here(dataset, other, tmp_path)
    with pytest.raises(PreprocessError, match=r"4 shards there .* not finished"):
        merge(dataset, other, tmp_path)
    assert len(list((tmp_path / "small/split1").glob("*.tar"))) == 4
    for number in (1, 2):
        assert part_here(dataset, other, tmp_path, share(number, 2), rebuild=True).how == {"made": 4}
    report = merge(dataset, other, tmp_path)
    assert files(report.folder) == files(build_here(dataset, other, tmp_path / "fresh").folder)


def test_records_that_wait_for_other_settings_are_named_with_the_command_that_removes_them(root, tmp_path):
    dataset, other = find_dataset(root), SMALL.model_copy(update={"flow": Flow(method="farneback")})
    settings = SMALL.model_copy(update={"per_shard": 3})
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, settings, tmp_path, stopping_after(2))
    (left,) = waiting_elsewhere(tmp_path, "small", how_made(other))
    assert any("'dis' then, 'farneback' now" in one for one in left.differences)
    assert (left.files, left.shards) == (1, 0)
    assert left.bytes == sum(path.stat().st_size for path in Path(left.location).rglob("*.record"))
    assert build_here(dataset, other, tmp_path).how == {"made": 8}
    subprocess.run(left.command, shell=True, check=True)
    assert waiting_elsewhere(tmp_path, "small", how_made(other)) == []


def test_a_smaller_build_does_not_replace_what_a_larger_one_has_finished(root, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build_here(find_dataset(root), SMALL, tmp_path, stopping_after(16))
    fewer = reduced(find_dataset(root), limit=1)
    before = files(tmp_path / "small/split1")
    with pytest.raises(PreprocessError, match=r"hold . records of a build of more videos .*--rebuild: .* lost"):
        build_here(fewer, SMALL, tmp_path)
    assert files(tmp_path / "small/split1") == before
    assert build_here(find_dataset(root), SMALL, tmp_path / "x").new
    report = build_here(fewer, SMALL, tmp_path, rebuild=True)
    assert files(report.folder) == files(build_here(fewer, SMALL, tmp_path / "fresh").folder)


def test_another_data_set_whose_name_begins_alike_is_left_alone(root, tmp_path):
    longer = replace(find_dataset(root), name="small-6")
    part_here(longer, SMALL, tmp_path, share(1, 2))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / ".work").rglob("*")}
    other = SMALL.model_copy(update={"flow": Flow(method="farneback")})
    assert waiting_elsewhere(tmp_path, "small", how_made(other)) == []
    build_here(find_dataset(root), other, tmp_path, rebuild=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / ".work").rglob("*")} == before
    assert part_here(longer, SMALL, tmp_path, share(1, 2)).how == {"kept": 4}


def test_records_that_an_earlier_version_finished_are_found(root, tmp_path):
    dataset, settings = replace(find_dataset(root), strata={}), SMALL.model_copy(update={"per_shard": 8})
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, settings, tmp_path, stopping_after(4))
    records = list((tmp_path / ".work").rglob("*.record"))
    for path in records:
        path.rename(path.parent.parent / path.name)
    assert len(records) == 3
    assert build_here(dataset, settings, tmp_path).how == {"kept": 3, "made": 5}


def test_what_a_running_build_of_other_settings_works_on_is_not_offered_for_removal(root, tmp_path):
    with workplace(tmp_path, "small", 2, how_made(SMALL)) as place:
        place.write("ab/one.record", b"1")
        assert waiting_elsewhere(tmp_path, "small", {"other": 1}) == []
    assert len(waiting_elsewhere(tmp_path, "small", {"other": 1})) == 1


def test_parts_do_not_replace_shards_that_others_could_take_over(root, tmp_path):
    build_here(find_dataset(root), SMALL, tmp_path)
    fewer = reduced(find_dataset(root), limit=2)
    with pytest.raises(PreprocessError, match="build it once without --part"):
        part_here(fewer, SMALL, tmp_path, share(1, 2), rebuild=True)
    assert build_here(fewer, SMALL, tmp_path, rebuild=True).how == {"taken over": 6}


# Another plan in the same folder


@pytest.mark.parametrize("stop", [None, 4, 9, 12])
def test_packed_shards_of_another_plan_are_taken_over_before_they_are_replaced(root, tmp_path, stop):
    dataset, other = find_dataset(root), SMALL.model_copy(update={"per_shard": 3})
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, SMALL, tmp_path, stopping_after(14))
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            build_here(dataset, other, tmp_path, stopping_after(stop))
    report = build_here(dataset, other, tmp_path)
    assert report.how.get("made", 0) <= 2
    assert files(report.folder) == files(build_here(dataset, other, tmp_path / "fresh").folder)
    assert not (tmp_path / ".work").exists()


@pytest.mark.parametrize("stop", [2, 7, 11, 13, 16])
def test_a_rebuild_stopped_anywhere_computes_nothing_twice(own_root, tmp_path, write_video, stop):
    settings = SMALL.model_copy(update={"per_shard": 2})
    build_here(find_dataset(own_root), settings, tmp_path)
    write_video(own_root / "videos/a/v_a_g02_c01.avi", frames=4, seed=99, **SIZE)
    dataset = find_dataset(own_root)
    made, engine = noting_what_is_made()

    with suppress(KeyboardInterrupt):
        build(dataset, settings, tmp_path, stopping_after(stop), rebuild=True, engine=engine)
    report = build(dataset, settings, tmp_path, rebuild=True, engine=engine)
    assert made == ["v_a_g02_c01"]
    assert files(report.folder) == files(build_here(dataset, settings, tmp_path / "fresh").folder)


def test_a_rebuild_leaves_shards_alone_that_hold_no_changed_record(own_root, tmp_path, write_video):
    settings, most = SMALL.model_copy(update={"per_shard": 2}), list[int]()
    folder = build_here(find_dataset(own_root), settings, tmp_path).folder
    before = {path.name: path.stat().st_ino for path in folder.glob("*.tar")}
    write_video(own_root / "videos/a/v_a_g02_c01.avi", frames=4, seed=99, **SIZE)

    def watch(progress: Progress) -> None:
        most.append(len(list((tmp_path / ".work").rglob("*.record"))))

    dataset = find_dataset(own_root)
    report = build_here(dataset, settings, tmp_path, watch, rebuild=True)
    assert report.how == {"made": 1, "taken over": 7}
    changed = [name for name, inode in before.items() if (folder / name).stat().st_ino != inode]
    assert len(changed) == 1
    assert max(most) <= settings.per_shard
    assert files(folder) == files(build_here(dataset, settings, tmp_path / "fresh").folder)


@pytest.mark.parametrize("damaged", ["changed", "other"])
def test_a_rebuild_makes_damaged_records_again_wherever_they_are(own_root, tmp_path, write_video, damaged):
    settings = SMALL.model_copy(update={"per_shard": 2})
    folder = build_here(find_dataset(own_root), settings, tmp_path).folder
    write_video(own_root / "videos/a/v_a_g02_c01.avi", frames=4, seed=99, **SIZE)
    dataset = find_dataset(own_root)
    of_changed = next(named(shard) for shard in planned(dataset, 2) if "v_a_g02_c01" in shard.keys)
    for path in folder.glob("*.tar"):
        if (path.name == of_changed) == (damaged == "changed"):
            content = bytearray(path.read_bytes())
            content[-4000 if damaged == "other" else 1536 + 600] ^= 1
            path.write_bytes(content)
    report = build_here(dataset, settings, tmp_path, rebuild=True)
    assert files(report.folder) == files(build_here(dataset, settings, tmp_path / "fresh").folder)
    assert sum(report.how.values()) == 8


def test_a_damaged_shard_whose_records_are_gone_is_made_again(root, tmp_path, reference):
    dataset = find_dataset(root)
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, SMALL, tmp_path, stopping_after(9))
    packed = sorted((tmp_path / "small/split1").glob("*.tar"))
    content = bytearray(packed[0].read_bytes())
    content[1536 + 600] ^= 1
    packed[0].write_bytes(content)
    packed[1].unlink()
    report = build_here(dataset, SMALL, tmp_path)
    assert files(report.folder) == reference


def test_the_records_of_a_damaged_shard_that_are_whole_are_taken_from_it(root, tmp_path):
    dataset, settings = find_dataset(root), SMALL.model_copy(update={"per_shard": 2})
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, settings, tmp_path, stopping_after(5))
    (packed,) = sorted((tmp_path / "small/split1").glob("*.tar"))
    content = bytearray(packed.read_bytes())
    content[1536 + 600] ^= 1
    packed.write_bytes(content)
    made, engine = noting_what_is_made()

    report = build(dataset, settings, tmp_path, engine=engine)
    assert len(made) in (7, 6)
    assert files(report.folder) == files(build_here(dataset, settings, tmp_path / "fresh").folder)


def test_videos_that_were_not_written_since_are_not_read_again(own_root, tmp_path, monkeypatch, reference):
    monkeypatch.setattr("preprocess.building.schedule.SURE", -1e9)
    dataset = find_dataset(own_root)
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, SMALL, tmp_path, stopping_after(9))
    packed = len(list((tmp_path / "small/split1").glob("*.tar")))
    seen: list[Any] = []

    def engine(start: Any, tasks: Any, workers: int) -> Iterator[tuple[int, Any]]:
        seen.extend(task for task in tasks if isinstance(task, Task))
        yield from here(start, tasks, workers)

    report = build(dataset, SMALL, tmp_path, engine=engine)
    assert packed >= 3
    assert len(seen) == 8 - packed
    assert report.how == {"kept": report.how["kept"], "made": 8 - report.how["kept"]}
    assert files(report.folder) == reference


def test_what_is_finished_is_counted_also_when_it_is_packed(root, tmp_path):
    dataset = find_dataset(root)
    videos = [video for part in dataset.parts.values() for video in part]
    assert finished_before(tmp_path, "small", how_made(SMALL), videos) == 0
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, SMALL, tmp_path, stopping_after(8))
    kept = build_here(dataset, SMALL, tmp_path / "x").how
    before = finished_before(tmp_path, "small", how_made(SMALL), videos)
    assert before == build_here(dataset, SMALL, tmp_path).how["kept"] > 1
    assert kept == {"made": 8}


# What goes wrong


def test_workers_that_keep_dying_end_the_build_in_words():
    with pytest.raises(PreprocessError, match=r"keep dying: 4 in a row, the last exit code 3; .*--workers 1"):
        list(processes(partial(eval, "eval"), ["__import__('os')._exit(3)"] * 5, 1))


def test_a_worker_knows_its_slot():
    named = "__import__('multiprocessing').current_process().name"
    assert {name for _, name in processes(partial(eval, "eval"), [named] * 6, 2)} <= {"worker-0", "worker-1"}
    killed = [named, "__import__('os')._exit(3)", named]
    results = dict(processes(partial(eval, "eval"), killed, 1))
    assert results == {0: "worker-0", 1: Died("exit code 3"), 2: "worker-0"}


def test_tasks_that_are_appended_are_done_too_and_first():
    for engine in (here, partial(processes)):
        tasks, order = ["1", "2", "3"], []
        for position, result in engine(partial(eval, "eval"), tasks, 1):
            order.append(result)
            if position == 0:
                tasks += ["10", "20"]
        assert sorted(order) == [1, 2, 3, 10, 20]
        assert order.index(3) > order.index(10)


def test_an_output_folder_that_vanishes_is_an_error_and_is_not_made_anew(root, tmp_path):
    out = tmp_path / "out"

    def watch(progress: Progress) -> None:
        if progress.stage == "videos" and progress.done == 1:
            shutil.rmtree(out)

    with pytest.raises(ShardError, match="the folder is gone"):
        build_here(find_dataset(root), SMALL.model_copy(update={"per_shard": 2}), out, watch)
    assert not out.exists()


def test_a_library_of_flow_that_is_not_the_one_of_the_build_stops_it(root, tmp_path):
    dataset = find_dataset(root)
    other = SMALL.model_copy(update={"flow": SMALL.flow.model_copy(update={"library": "opencv 1.0"})})
    with pytest.raises(PreprocessError, match=r"expected opencv 1.0"):
        build_here(dataset, other, tmp_path)
    assert pinned(SMALL, dataset).flow.library.startswith("opencv ")


def test_a_node_that_would_make_other_records_stops_the_build(root, tmp_path, monkeypatch):
    def engine(start: Any, tasks: Any, workers: int) -> Iterator[tuple[int, Any]]:
        monkeypatch.setattr("preprocess.record.jpeg_library", lambda: "simplejpeg 0.0.1")
        yield from here(start, tasks, workers)

    with pytest.raises(
        PreprocessError, match=r"would make other records .*rgb.library: .* then, 'simplejpeg 0.0.1' now"
    ):
        build(find_dataset(root), SMALL, tmp_path, engine=engine)


def test_at_most_four_processes_share_a_gpu(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("preprocess.building.workers.gpus", lambda flow: 2)
    assert worker_count(Preprocess()) == 8
    assert worker_count(Preprocess(workers=3)) == 3
    assert worker_count(Preprocess(), flow=False) == 64


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3", "-1/2"])
def test_a_part_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="expected i/n with i from 1 to n"):
        Preprocess(part=wrong)


def test_a_part_is_read_as_it_is_written():
    assert Share.parse("") is None
    assert str(Share.parse(Preprocess(part="3/16").part)) == "3/16"


# A bucket


@pytest.fixture
def bucket(s3_server: str, aws: Callable[..., None], request: pytest.FixtureRequest) -> str:
    """The address of a folder in a new bucket."""
    aws(AWS_ENDPOINT_URL=s3_server, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="hush", AWS_REGION="us-east-1")
    name = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    boto3.resource("s3").create_bucket(Bucket=name)
    return f"s3://{name}/data"


def in_bucket(address: str) -> dict[str, bytes]:
    place = place_at(address)
    return {name: place.read(name) or b"" for name in place.names()}


def test_a_build_into_a_bucket_is_the_build(root, bucket, tmp_path):
    dataset, settings = replace(find_dataset(root), strata={}), SMALL.model_copy(update={"per_shard": 8})
    report = build(dataset, settings, bucket)  # in processes: places travel
    assert report.location == f"{bucket}/small/split1"
    assert in_bucket(report.location) == files(build_here(dataset, settings, tmp_path).folder)
    assert [name for name in place_at(bucket).names() if not name.startswith("small/split1/")] == []
    assert not build_here(dataset, settings, bucket).new
    other = settings.model_copy(update={"flow": Flow(method="farneback")})
    with pytest.raises(PreprocessError, match=r"holds other shards .*--rebuild"):
        build_here(dataset, other, bucket)


@pytest.mark.slow
def test_a_stopped_build_and_parts_into_a_bucket_go_on_and_are_the_build(root, bucket, reference):
    dataset = find_dataset(root)
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, SMALL, bucket, stopping_after(7))
    assert place_at(f"{bucket}/small/split1").read("manifest.json") is None
    assert "kept" in part_here(dataset, SMALL, bucket, share(1, 2)).how
    with pytest.raises(PreprocessError, match=r"Build part 2/2 again|without --part"):
        merge(dataset, SMALL, bucket)
    part_here(dataset, SMALL, bucket, share(2, 2))
    report = merge(dataset, SMALL, bucket)
    assert in_bucket(report.location) == reference
    assert [name for name in place_at(bucket).names() if not name.startswith("small/split1/")] == []
    with open_split(report.location) as split:
        assert list(problems(split)) == []
    second = build_here(find_dataset(root, split=2), SMALL, bucket)
    assert second.how == {"taken over": 8}
    waiting = work_place(bucket, "small", {"other": 1})
    waiting.write("made.json", json.dumps({"other": 1}).encode())
    waiting.write("ab/one.record", b"123")
    (left,) = waiting_elsewhere(bucket, "small", how_made(SMALL))
    assert (left.files, left.bytes) == (1, 3)
    assert left.command == f"aws s3 rm --recursive {left.location}"
