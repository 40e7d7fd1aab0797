"""The report: one file that asks for nothing, says what the results say, and lets nothing through unescaped."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from stmul import plots
from stmul.report import write_report
from stmul.report_clips import Film, ReportError, Strip, shown_clips
from stmul.results import HEADS, HistoryRow, Results, Validation

PNG = b"\x89PNG\r\n\x1a\nrest"
NASTY = "<script>alert('x')</script>&\"quoted\""
VOID = {"meta", "input", "img", "link", "br"}


RUN = tuple(head for head in HEADS if head != "fused")


def made(classes=3, each=4, heads=RUN, names=None):
    """Results whose joint head hits everything but the last class."""
    clips = classes * each
    labels = np.repeat(np.arange(classes, dtype=np.int32), each)
    noise = np.arange(clips * classes, dtype=np.float32).reshape(clips, classes) % 7 / 700
    right = noise.copy()
    right[np.arange(clips), np.where(labels == classes - 1, 0, labels)] += 2 + np.arange(clips, dtype=np.float32) / 10
    return Results(
        run="drawn-001",
        epoch=3,
        dataset="drawn",
        split=1,
        part="test",
        digest="ab" * 32,
        protocol="dense",
        frames=25,
        mirror=True,
        expected=clips + 1,
        classes=names or tuple(f"class {k:03d}" for k in range(classes)),
        names=tuple(f"v_{i:04d}" for i in range(clips)),
        labels=labels,
        heads={head: right if head == "joint" else noise for head in heads},
    )


def history(epochs=3, **changes):
    return [
        HistoryRow(
            **{
                "stage": stage,
                "epoch": epoch,
                "step": 20 * epoch,
                "loss": 2.0 / epoch**2,
                "accuracy": 1 - 0.5**epoch,
                "lr": 0.1 / epoch,
                "clips_per_second": 50.0,
                "data_wait": 0.02,
                "seconds": 6.0,
                **changes,
            }
        )
        for stage in ("appearance", "motion", "joint")
        for epoch in range(1, epochs + 1)
    ]


def film(picture=PNG):
    strips = [Strip(title="Frames", picture=picture), Strip(title="Motion, for running", picture=PNG, head="motion")]
    return Film(instants=("0.1 s", "0.5 s"), strips=strips)


def page(path, results, rows=(), config="train:\n  seed: 1\n", films=None, run=None, unseen=""):
    write_report(
        path, results=results, history=rows, config_yaml=config, films=films or {}, run=run or {}, unseen=unseen
    )
    return path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every start tag, and whether the end tags match."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory):
    """A page with everything on it."""
    results = made()
    films = {results.names[clip]: film() for side in shown_clips(results) for clip in side}
    path = tmp_path_factory.mktemp("report") / "report.html"
    return page(path, results, history(), films=films, run={"device": "two cores"})


def test_the_page_is_one_file_that_asks_for_nothing_and_runs_one_script_of_its_own(whole_page):
    found = Elements(whole_page)
    assert not found.open
    tags = [tag for tag, _ in found.seen]
    assert not {"link", "iframe", "object"} & set(tags)
    (script,) = re.findall(r"<script>(.*?)</script>", whole_page, re.DOTALL)
    assert tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [attrs["content"] for tag, attrs in found.seen if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [name for _, attrs in found.seen for name in attrs if name.startswith("on")]
    links = [value for _, attrs in found.seen for name, value in attrs.items() if name in {"src", "href", "xlink:href"}]
    assert links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links)
    assert "url(http" not in whole_page


@pytest.mark.parametrize("classes", [1, 2, 8, 51, 101])
def test_any_number_of_classes_has_a_page(tmp_path, classes):
    assert not Elements(page(tmp_path / "report.html", made(classes, 2))).open


def test_ids_are_given_once(whole_page):
    found = Elements(whole_page)
    ids = [attrs["id"] for _, attrs in found.seen if "id" in attrs]
    assert len(ids) == len(set(ids)) > 4


def test_equal_input_gives_equal_bytes(tmp_path):
    first = page(tmp_path / "one.html", made(), history(2))
    assert page(tmp_path / "two.html", made(), history(2)) == first


def test_the_page_says_what_the_results_say(whole_page):
    found = Elements(whole_page).text()
    for words in (
        "drawn, split 1",
        "run drawn-001 , epoch 3",
        "12 of 13 test clips scored",
        "1 clip could not be scored",
        "66.7 %",  # the joint head: two classes of three
        "39.1 to 86.2",
        "33.3 % one of 3 classes",
        "class 002 → class 000 4 of 4",
        "two cores",
        "ab" * 32,
        "seed: 1",
    ):
        assert words in found


def test_a_page_without_log_or_pictures_or_a_joint_network_is_still_a_page(tmp_path):
    found = Elements(page(tmp_path / "report.html", made(heads=("motion alone",)))).text()
    assert "no training log" in found
    assert "motion alone" in found
    assert "late fusion" not in found


def test_no_name_or_setting_gets_through_unescaped(tmp_path):
    results = dataclasses.replace(made(names=(NASTY, "b", "c")), run=NASTY, dataset=NASTY)
    names = (NASTY, *results.names[1:])
    results = dataclasses.replace(results, names=names)
    nasty = Film(instants=(NASTY,), strips=[Strip(title=NASTY, picture=PNG)])
    text = page(tmp_path / "report.html", results, config=NASTY, run={NASTY: NASTY}, films={NASTY: nasty}, unseen=NASTY)
    found = Elements(text)
    assert "<script>alert" not in text
    assert NASTY in found.text()
    assert [tag for tag, _ in found.seen].count("script") == 1


@pytest.mark.parametrize(("classes", "numbers"), [(20, True), (21, False)])
def test_a_confusion_matrix_has_numbers_where_there_is_room(tmp_path, classes, numbers):
    text = page(tmp_path / "report.html", made(classes))
    assert ("numbers are percent of the row" in text) == numbers
    assert (re.search(r'text-anchor="middle">\d+</text>', text) is not None) == numbers


def test_the_clips_shown_are_the_surest_and_the_least_sure_of_different_classes():
    results = made()
    best, worst = shown_clips(results, best=4)
    assert best == [7, 3, 8]  # margins grow along the record; the last class is missed everywhere
    assert shown_clips(results)[0] == [7, 3]
    assert results.labels[worst[0]] == 2
    assert not set(best) & set(worst)
    for side in (best, worst):
        assert len({int(results.labels[clip]) for clip in side}) == len(side)


def test_a_missed_clip_shows_its_own_class_after_the_first_three(tmp_path):
    scores = np.array([[5, 4, 3, 2, 1], [0, 9, 0, 0, 0]], np.float32)
    results = made(5, 1)
    labels = np.array([4, 1], np.int32)
    results = dataclasses.replace(results, names=("far", "near"), labels=labels, heads={"joint": scores})
    text = page(tmp_path / "report.html", results)
    assert re.findall(r'class="guess true"><span class="name" title="(class \d+)"', text) == ["class 001", "class 004"]


def test_pictures_are_embedded_whole(tmp_path):
    results = made()
    clip = results.names[shown_clips(results)[0][0]]
    text = page(tmp_path / "report.html", results, films={clip: film(b"\xff\xd8\xff" + bytes(300))})
    (data,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert base64.b64decode(data) == b"\xff\xd8\xff" + bytes(300)


def test_what_is_no_picture_is_refused_and_no_page_is_left(tmp_path):
    results = made()
    clip = results.names[shown_clips(results)[0][0]]
    with pytest.raises(ReportError, match=f"picture of clip '{clip}': expected a PNG or JPEG file, found b'GIF89a'"):
        page(tmp_path / "report.html", results, films={clip: film(b"GIF89a")})
    assert list(tmp_path.iterdir()) == []


def test_a_clip_says_what_each_head_takes_it_for_and_shows_its_strips(whole_page):
    found = Elements(whole_page).text()
    assert re.search(r"late fusion: class 00\d", found)
    assert found.count("Motion, for running") == 5  # two of the surest, one of each of three classes of the others
    assert "0.1 s 0.5 s" in found
    assert "Grad-CAM" in found


def test_a_page_without_maps_says_why(tmp_path):
    results = made()
    still = Film(instants=("0.1 s",), strips=[Strip(title="Frames", picture=PNG)])
    found = Elements(
        page(tmp_path / "report.html", results, films={results.names[11]: still}, unseen="no checkpoint is left")
    ).text()
    assert "What the streams looked at is not shown: no checkpoint is left" in found
    assert "Grad-CAM" not in found


@pytest.mark.parametrize("changes", [{"loss": float("nan")}, {"loss": 0.0}, {"seconds": 0.0, "clips_per_second": 0.0}])
@pytest.mark.parametrize("epochs", [1, 2])
def test_odd_trainings_have_curves_too(changes, epochs):
    rows = history(epochs, **changes)
    for svg in (plots.stage_curves(rows[:epochs], 0.5), *plots.speed_curves(rows)):
        assert svg.startswith("<svg")
        assert svg.endswith("</svg>")


def heads(epochs=4, validation=(0.2, 0.5, 0.5, 0.4)):
    """Rows of a joint stage with what newer logs tell."""
    rows = [row for row in history(epochs) if row.stage == "joint"]
    return [
        dataclasses.replace(
            row,
            losses={"appearance": 1.5 / row.epoch, "motion": 0.5 / row.epoch},
            accuracies={"appearance": 0.4, "motion": 0.3},
            memory=2.5,
            validation=Validation(loss=1.0, accuracy=part, clips=17),
        )
        for row, part in zip(rows, validation, strict=True)
    ]


def test_heads_held_out_clips_and_memory_have_curves_where_the_log_tells_of_them(tmp_path):
    plain = [row for row in history(4) if row.stage == "joint"]
    rows = heads()
    for line in ("appearance", "motion"):
        assert f"var(--{line})" not in plots.stage_curves(plain, 0.5)
        assert f"var(--{line})" in plots.stage_curves(rows, 0.5)
    assert len(plots.speed_curves(plain)) == 2
    assert "GPU memory at most, GiB" in plots.speed_curves(rows)[2]
    found = Elements(page(tmp_path / "report.html", made(), rows)).text()
    assert "both (loss: sum) appearance head motion head held out" in found
    assert "Held out: 17 clips" in found
    assert "held out" not in Elements(page(tmp_path / "old.html", made(), plain)).text().lower()


def test_the_best_epoch_is_the_earliest_of_those_that_are_best_on_what_was_held_out():
    assert plots.best_epoch(heads()) == 1
    assert plots.best_epoch([row for row in history(2) if row.stage == "joint"]) is None
    sometimes = [dataclasses.replace(row, validation=None) if row.epoch < 4 else row for row in heads()]
    assert plots.best_epoch(sometimes) == 3
    assert plots.stage_curves(sometimes, 0.5).startswith("<svg")


def test_the_loss_has_a_logarithmic_axis_where_it_falls_far():
    rows = [row for row in history(2) if row.stage == "joint"]
    assert "logarithmic" not in plots.stage_curves(rows, 0.5)
    assert "logarithmic" in plots.stage_curves([row for row in history(9) if row.stage == "joint"], 0.5)


def test_curves_take_their_colours_and_their_font_from_the_page():
    for svg in (*plots.speed_curves(history()), plots.stage_curves(history()[:3], 0.5)):
        assert not re.search(r"#[0-9a-f]{6}", svg.lower())
        assert "font-family" not in svg
        assert "var(--ink)" in svg
