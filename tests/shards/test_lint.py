"""Lint names every leak, duplicate and odd video, with record, part and remedy; the same each time, near or far."""

import base64
import hashlib
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.cli import shards
from shards.findings import INSTANTS, KINDS, STACK
from shards.format import encode, key_of
from shards.groups import group_of, group_pattern
from shards.lint import lint
from shards.lint_report import strip
from shards.looks import spread_over, to_look_at
from shards.record import Frames, Record, Source
from shards.row import Outline
from shards.split import open_split
from shards.writer import shard_slots, write_split
from tests.conftest import drawn_record, jpeg

PLAIN = 40  # frames: enough for everything


def record(name: str, frames: int = PLAIN, **kind: int) -> Record:
    made = drawn_record(name, frames=frames, seed=len(name), **kind)
    return replace(made, source=Source(sha256=hashlib.sha256(f"{name} {frames}".encode()).hexdigest(), bytes=9))


def pictures(made: Record, rgb: list[np.ndarray] | None = None, levels: int | None = None) -> Record:
    """`made` with other frames, or with flow that is `levels` everywhere."""
    size = {"width": made.rgb.width, "height": made.rgb.height}
    if rgb is not None:
        blobs = [jpeg(picture, quality=90) for picture in rgb]
        made = replace(made, rgb=Frames.of(blobs, **size, components=3, encoder=made.rgb.encoder))
    if levels is not None:
        flow = jpeg(np.full((size["height"], size["width"]), levels, np.uint8), quality=95)
        made = replace(made, flow=Frames.of([flow] * len(made.flow), **size, components=1, encoder=made.flow.encoder))
    return made


def split_of(folder: Path, **parts: list[Record]) -> Path:
    """A split of these records, three classes."""
    stored = {
        part: [
            [(key_of(one.name), encode(one)) for one in some]
            for some in [[by_key[key] for key in keys] for keys in shard_slots(list(by_key), 3)]
        ]
        for part, records in parts.items()
        for by_key in [{key_of(one.name): one for one in records}]
    }
    classes = [f"class{label}" for label in range(3)]
    write_split(folder, dataset="drawn", split=1, classes=classes, made={}, parts=stored)
    return folder


def sound(part: str) -> list[Record]:
    return [record(f"v_{part}{label}_g01_c01", label=label) for label in range(3)]


def found(folder: Path, **options: object) -> list[tuple[str, str, str]]:
    with open_split(folder) as split:
        return [(one.kind, one.part, one.subject) for one in lint(split, **options).findings]


def test_a_sound_split_gives_no_findings(tmp_path):
    assert found(split_of(tmp_path, train=sound("a"), test=sound("b"))) == []


def odd(kind: str) -> Record:
    """A record that has `kind` to be found."""
    name, draws = f"v_{kind.replace(' ', '')}_g09_c01", np.random.default_rng(5)
    noise = [draws.integers(0, 255, (3, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(PLAIN)]
    black, grey = np.full((24, 32, 3), 9, np.uint8), np.full((24, 32, 3), 90, np.uint8)
    made = record(name)
    bounded = np.full((24, 32), 130, np.uint8)
    bounded[:8, :8] = 255
    return {
        "short": record(name, frames=STACK - 1),
        "few instants": record(name, frames=INSTANTS - 1),
        "black": pictures(made, [black] * PLAIN, 127),
        "one colour": pictures(made, [grey + 2 * t for t in range(PLAIN)], 130),
        "still": pictures(made, noise[:1] * PLAIN, 127),
        "no flow": pictures(made, noise, 127),
        "clipped": pictures(made, levels=0),
        "repeats": pictures(made, [noise[t // 2] for t in range(PLAIN)], 130),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["short", "few instants", "black", "one colour", "still", "no flow", "clipped", "repeats"]
)
def test_an_odd_video_is_named_with_its_part(tmp_path, kind):
    one = odd(kind)
    expected = [(kind, "test", one.name)]
    if kind == "clipped":
        expected.append(("clipped part", "test", "all records"))
    assert found(split_of(tmp_path, train=sound("a"), test=[*sound("b"), one])) == expected


def test_frames_that_all_repeat_the_first_are_still_whatever_their_flow(tmp_path):
    frozen = pictures(odd("still"), levels=130)
    assert found(split_of(tmp_path, train=sound("a"), test=[*sound("b"), frozen])) == [("still", "test", frozen.name)]


def test_a_video_that_is_alike_in_several_ways_is_named_once(tmp_path):
    one, other = record("one"), record("other", frames=41)
    folder = split_of(tmp_path, train=[*sound("a"), one, other], test=[*sound("b"), one, other])
    assert sorted(found(folder)) == [("twins across", "test", "one"), ("twins across", "test", "other")]


def test_lengths_are_told_apart_where_stacks_and_instants_become_whole(tmp_path):
    lengths = (1, STACK - 1, STACK, INSTANTS - 1, INSTANTS)
    some = [record(f"v_{frames}", frames=frames) for frames in lengths]
    folder = split_of(tmp_path, train=[*sound("a"), *some], test=sound("b"))
    kinds = {subject: kind for kind, _, subject in found(folder, sample=0)}
    assert kinds == {
        "v_1": "short",
        f"v_{STACK - 1}": "short",
        f"v_{STACK}": "few instants",
        f"v_{INSTANTS - 1}": "few instants",
    }


def test_the_same_pictures_in_two_parts_are_an_error_and_within_one_a_warning(tmp_path):
    twin, other = record("v_x_g05_c01"), record("v_y_g06_c01", label=1)
    copies = [replace(twin, name="v_z_g07_c01"), replace(other, name="w_y_g08_c01", label=2, class_name="class2")]
    folder = split_of(tmp_path, train=[*sound("a"), twin, other, copies[1]], test=[*sound("b"), copies[0]])
    with open_split(folder) as split:
        across, inside = lint(split, sample=0).findings
    assert (across.kind, across.part, across.subject) == ("twins across", "test", "v_z_g07_c01")
    assert "v_x_g05_c01 (train)" in across.what
    assert (inside.kind, inside.part) == ("twins inside", "train")
    assert "in 2 classes" in inside.what


def test_one_source_file_and_one_name_in_two_parts_are_found_where_pictures_differ(tmp_path):
    one, again = record("v_x_g05_c01"), record("v_y_g06_c01", frames=PLAIN + 1)
    same_name = record("v_same", frames=PLAIN + 2)
    folder = split_of(
        tmp_path,
        train=[*sound("a"), one, same_name],
        test=[*sound("b"), replace(again, source=one.source), record("v_same", frames=PLAIN + 3)],
    )
    with open_split(folder) as split:
        findings = lint(split).findings
    assert [one.what.partition(" v_")[0] for one in findings] == ["made from the same file as", "the same name as"]
    assert {one.kind for one in findings} == {"twins across"}


def test_a_group_on_both_sides_is_an_error_and_a_group_on_one_side_is_not(tmp_path):
    train = [*sound("a"), record("v_Golf_g03_c01"), record("v_Golf_g03_c02", frames=41), record("v_golf_g04_c01")]
    folder = split_of(tmp_path, train=train, test=[*sound("b"), record("v_golf_g03_c03", frames=42)])
    with open_split(folder) as split:
        (leak,) = lint(split).findings
    assert (leak.kind, leak.part, leak.subject) == ("leak", "test", "v_golf_g03_c03")
    assert "2 in train, 1 in test" in leak.what


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("v_Archery_g01_c02", "v_archery_g01"),
        ("v_HandStandPushups_g25_c07", "v_handstandpushups_g25"),
        ("Pirates_5_wave_h_nm_np1_fr_med_8", "Pirates_5_wave"),
        ("20060723sfjffbartsinger_wave_f_cm_np10_ba_goo_0", "20060723sfjffbartsinger_wave"),
        ("-dQw4w9WgXc_000010_000020", "-dQw4w9WgXc"),
        ("golf__dQw4w9WgXcQ_000010_000020", "dQw4w9WgXcQ"),
        ("holiday 2021", ""),
    ],
)
def test_names_tell_their_group(name, group):
    assert group_of(name) == group


def test_a_pattern_of_ones_own_tells_groups(tmp_path):
    folder = split_of(tmp_path, train=[*sound("a"), record("cam3-1")], test=[*sound("b"), record("cam3-22")])
    assert found(folder) == []
    assert [kind for kind, _, _ in found(folder, groups=group_pattern("^(cam[0-9]+)"))] == ["leak"]


@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_official_lists_have_no_group_on_both_sides(split, real_lists):
    parts = real_lists(split)
    groups = {part: {group_of(name) for name in names} for part, names in parts.items()}
    assert all(groups.values())
    assert "" not in groups["train"] | groups["test"]
    assert not groups["train"] & groups["test"]


@pytest.fixture(params=["ucf101", "hmdb51"])
def real_lists(request):
    """A function that gives the names of each part of an official split."""
    root = Path(__file__).parents[2].parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(f"no lists in {root}")

    def lines(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if line.strip()]

    def ucf101(split: int) -> dict[str, list[str]]:
        return {
            part: [Path(line.split()[0]).stem for line in lines(root / f"ucf101-lists/{part}list0{split}.txt")]
            for part in ("train", "test")
        }

    def hmdb51(split: int) -> dict[str, list[str]]:
        files = (root / "hmdb51/testTrainMulti_7030_splits").glob(f"*_test_split{split}.txt")
        named = [line.split() for file in files for line in lines(file)]
        return {p: [Path(n).stem for n, flag in named if flag == f] for p, f in (("train", "1"), ("test", "2"))}

    return {"ucf101": ucf101, "hmdb51": hmdb51}[request.param]


def test_a_class_without_records_and_one_with_few_are_named(tmp_path):
    train = [record(f"v_{i:02}", frames=PLAIN + i, label=int(i > 1)) for i in range(22)]
    folder = split_of(tmp_path, train=train, test=sound("b"))
    assert found(folder, sample=0) == [("class", "train", "class2"), ("balance", "train", "class0")]


def test_a_damaged_record_is_an_error_that_hides_no_other(tmp_path):
    folder = split_of(tmp_path, train=sound("a"), test=[*sound("b"), odd("clipped")])
    with open_split(folder) as split:
        row = split.index("test").row(2)
        place, start, _ = split.store.member("test", row, "video.rgb.mjpeg")
    data = bytearray((folder / place).read_bytes())
    data[start + 5 : start + row.rgb.size] = bytes(row.rgb.size - 5)
    (folder / place).write_bytes(data)
    kinds = {kind: subject for kind, _, subject in found(folder)}
    assert kinds == {"damage": row.name, "clipped": "v_clipped_g09_c01", "clipped part": "all records"}


def test_what_is_found_does_not_depend_on_threads_or_place(tmp_path, serve, monkeypatch):
    folder = split_of(
        tmp_path / "split1", train=[*sound("a"), odd("short"), odd("still")], test=[*sound("b"), odd("black")]
    )
    near = found(folder)
    assert len(near) == 3
    monkeypatch.setattr("shards.looks.cores", lambda: 7)
    assert found(folder) == near
    assert found(f"{serve(tmp_path).url}/split1") == near


outlines = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 10**6), st.integers(0, 10**6)), min_size=1).map(
    lambda rows: [
        Outline(record=i, key=str(i), label=0, frames=n, width=8, height=8, rgb_size=rgb, flow_size=flow, rgb_tables=0)
        for i, (n, rgb, flow) in enumerate(rows)
    ]
)


@given(outlines, st.integers(0, 120))
def test_a_sample_has_each_record_once_and_no_more_than_asked_for(rows, count):
    even, suspect = to_look_at(rows, count)
    chosen = [*even, *suspect]
    assert len(chosen) == len(set(chosen)) <= count or len(chosen) == len(rows) <= count
    assert set(chosen) <= set(range(len(rows)))


@pytest.mark.parametrize("place", [0, 77, 199])
def test_a_sample_has_what_is_suspect_by_its_size(place):
    def rows(**odd: int) -> list[Outline]:
        usual = {"rgb_size": 9000, "flow_size": 9000}
        return [
            Outline(record=i, key=str(i), label=0, frames=9, width=8, height=8, rgb_tables=i, **(usual | of_one))
            for i in range(200)
            for of_one in [odd if i == place else {}]
        ]

    for one in (rows(rgb_size=100), rows(flow_size=90000)):
        even, suspect = to_look_at(one, 20)
        assert place in {*even, *suspect}
        assert len(even) == 10


@given(st.integers(1, 40), st.integers(0, 400))
def test_instants_are_spread_over_a_record_each_once(count, among):
    numbers = spread_over(count, among).tolist()
    assert len(numbers) == min(count, among)
    assert numbers == sorted(set(numbers))
    assert all(0 <= number < among for number in numbers)


# The command and its page


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(shards, ["lint", *map(str, words)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_exit_code_says_whether_there_are_errors_or_with_strict_warnings(tmp_path):
    quiet = split_of(tmp_path / "quiet", train=sound("a"), test=sound("b"))
    warned = split_of(tmp_path / "warned", train=sound("a"), test=[*sound("b"), odd("short")])
    noted = split_of(tmp_path / "noted", train=sound("a"), test=[*sound("b"), odd("few instants")])
    leaky = split_of(tmp_path / "leaky", train=sound("a"), test=sound("a"))
    codes = [[run(one)[0], run(one, "--strict")[0]] for one in (quiet, warned, noted, leaky)]
    assert codes == [[0, 0], [0, 1], [0, 0], [1, 1]]


def test_the_command_names_record_part_and_remedy(tmp_path):
    code, text = run(split_of(tmp_path, train=sound("a"), test=[*sound("b"), odd("short")]))
    assert code == 0
    assert "test: v_short_g09_c01: 10 frames" in text
    assert KINDS["short"].advice in text
    assert "0 errors, 1 warning, 0 notes" in text


def test_an_unusable_pattern_is_refused_with_an_example(tmp_path):
    code, text = run(split_of(tmp_path, train=sound("a"), test=sound("b")), "--groups", "(")
    assert code == 1
    assert "not a regular expression" in text
    assert "--groups '" in text


class Page(HTMLParser):
    """What a page holds: its tags that stay open, the pictures, all that it would ask a network for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.pictures, self.asks, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        values = dict(attrs)
        self.asks += [v for k, v in attrs if k in {"src", "href"} and not (v or "").startswith("data:")]
        if tag == "img":
            self.pictures.append(base64.b64decode(values["src"].partition("base64,")[2]))

    def handle_startendtag(self, tag, attrs):
        """<path .../>: nothing stays open."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_asks_for_nothing_escapes_everything_and_shows_pictures(tmp_path):
    nasty = record("v_<script>alert(1)&_g09_c01", frames=STACK - 2)
    folder = split_of(tmp_path / "split1", train=sound("a"), test=[*sound("b"), odd("clipped"), nasty])
    path = tmp_path / "lint.html"
    code, text = run(folder, "--html", path)
    assert code == 0
    assert str(path) in text
    page = Page(path.read_text())
    assert page.open == []
    assert page.asks == []
    assert "v_<script>alert(1)&_g09_c01" in page.words
    sizes = [Image.open(io.BytesIO(picture)).size for picture in page.pictures]
    assert len(sizes) == 2  # of the clipped record, and the wheel
    assert sizes[0][0] > sizes[0][1] > 100
    before = path.read_bytes()
    run(folder, "--html", path)
    assert path.read_bytes() == before


def test_a_page_lists_findings_behind_those_it_shows(tmp_path):
    many = [record(f"v_{i:02}", frames=i + 2) for i in range(STACK - 2)] + [
        record(f"w_{i:02}", frames=STACK + i) for i in range(20)
    ]
    path = tmp_path / "lint.html"
    run(split_of(tmp_path / "split1", train=[*sound("a"), *many], test=sound("b")), "--html", path)
    words = Counter(Page(path.read_text()).words)
    assert all(words[one.name] == 1 for one in many)


def test_a_record_of_one_frame_has_a_picture_without_flow(tmp_path):
    folder = split_of(tmp_path, train=[*sound("a"), record("v_one", frames=1)], test=sound("b"))
    with open_split(folder) as split:
        number = next(row.record for row in split.index("train") if row.name == "v_one")
        assert strip(split, "train", number).shape == (96, 128, 3)
        assert [one.what for one in lint(split).findings] == ["1 frame"]


def test_reading_nothing_but_the_index_finds_what_it_tells(tmp_path):
    folder = split_of(tmp_path, train=[*sound("a"), odd("short")], test=[*sound("b"), odd("black")])
    for tar in folder.glob("*.tar"):
        tar.write_bytes(b"")
    assert found(folder, sample=0) == [("short", "train", "v_short_g09_c01")]
    assert re.fullmatch(r"[\w ]+", " ".join(KINDS))
