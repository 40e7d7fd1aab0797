"""The report in a real browser: nothing to complain of, nothing too wide, and matrices that zoom. Needs a Chromium."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from stmul.report import write_report
from stmul.report_clips import Film, Strip, shown_clips
from stmul.results import HEADS, HistoryRow, Results, Validation
from tests.stmul.browser import browser

WIDTHS = (400, 1400)


def results(classes, each):
    """Scores of which some are right; names as long as a data set's longest."""
    labels = np.repeat(np.arange(classes, dtype=np.int32), each)
    draws = np.random.default_rng(5)
    heads = {}
    for head in (head for head in HEADS if head != "fused"):
        scores = draws.normal(size=(classes * each, classes)).astype(np.float32)
        scores[np.arange(len(labels)), labels] += 2
        heads[head] = scores
    return Results(
        run="made-001",
        epoch=3,
        dataset="made",
        split=1,
        part="test",
        digest="ab" * 32,
        protocol="dense",
        frames=25,
        mirror=True,
        expected=len(labels),
        classes=tuple(f"class{'WithALongName' * (k % 3)}{k:03d}" for k in range(classes)),
        names=tuple(f"v_SomeVideoWithAName_g{i % 7:02d}_c{i:04d}" for i in range(len(labels))),
        labels=labels,
        heads=heads,
    )


def history():
    plain = HistoryRow(
        stage="joint",
        epoch=1,
        step=20,
        loss=2.0,
        accuracy=0.5,
        lr=0.1,
        clips_per_second=50.0,
        data_wait=0.02,
        seconds=6.0,
        losses={"appearance": 1.2, "motion": 0.8},
        accuracies={"appearance": 0.4, "motion": 0.3},
        memory=2.0,
        validation=Validation(loss=2.2, accuracy=0.4, clips=12),
    )
    return [dataclasses.replace(plain, epoch=epoch, loss=2 / epoch) for epoch in range(1, 6)]


def written(path, classes, each):
    found = results(classes, each)
    buffer = io.BytesIO()
    Image.new("RGB", (850, 128), (90, 140, 60)).save(buffer, "JPEG")
    strips = [Strip(title=f"Strip {i}", picture=buffer.getvalue(), head="motion" if i else "") for i in range(4)]
    film = Film(instants=[f"{i}.0 s" for i in range(5)], strips=strips)
    films = {found.names[clip]: film for side in shown_clips(found) for clip in side}
    settings = "train:\n  note: " + "long " * 80 + "\n"
    write_report(path, results=found, history=history(), config_yaml=settings, films=films, run={"shards": "x" * 200})
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {8: written(folder / "few.html", 8, 6), 101: written(folder / "many.html", 101, 3)}


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


def matrix(tab, selector=""):
    """The matrix that is shown: its place in the window, and the part of its square that is seen."""
    return tab.value(
        """(() => {
          const svg = [...document.querySelectorAll("svg.matrix")].find((one) => one.getClientRects().length);
          svg.scrollIntoView({block: "center"});
          // A box of what is drawn would reach beyond what is seen of it.
          const [x, y, width, height] = ["x", "y", "width", "height"].map((name) =>
            Number(svg.querySelector(".window").getAttribute(name)));
          const on = svg.getScreenCTM();
          const seen = {left: on.e + on.a * x, top: on.f + on.d * y, width: on.a * width, height: on.d * height};
          const cell = svg.querySelector(".cell rect").getBoundingClientRect();
          const names = (at) => [...svg.querySelectorAll(at + " text")].filter((one) => one.style.display !== "none");
          return {left: seen.left, top: seen.top, width: seen.width, height: seen.height, cell: cell.width,
            x: cell.left, y: cell.top,
            rows: names(".rows").map((one) => one.querySelector("title").textContent),
            columns: names(".columns").map((one) => one.querySelector("title").textContent),
            numbers: [...svg.querySelectorAll(".cell text")].filter((one) => one.getClientRects().length).length,
            said: document.querySelector(".zoom output").textContent};
        })()"""
    )


def same(one, other):
    """Whether two looks show the same part in the same place."""
    names = ("left", "top", "width", "height", "cell", "x", "y")
    return all(one[name] == pytest.approx(other[name], abs=0.5) for name in names) and one["rows"] == other["rows"]


def press(tab, value):
    tab.value(f"document.querySelector('.zoom button[value=\"{value}\"]').click()")


@pytest.mark.parametrize("classes", [8, 101])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_page_complains_asks_for_anything_or_is_wider_than_its_window(tab, pages, classes, dark):
    for width in WIDTHS:
        tab.show(width=width, dark=dark)
        tab.requests.clear()
        tab.open(pages[classes])
        found = tab.value("[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]")
        assert max(found[:2]) <= found[2] == width
        # What may scroll does so inside; nothing else reaches beyond the window's edge.
        beyond = """[...document.querySelectorAll("body *")].filter((one) =>
          one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll, label, pre, .pick")
        ).map((one) => one.tagName + "." + one.className)"""
        assert tab.value(beyond) == []
        assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert tab.complaints == []


def test_words_stand_out_from_what_is_behind_them_light_and_dark(tab, pages):
    """Contrast of 4.5 and more (WCAG 2.2, 1.4.3), for text and for text that steps back."""
    tab.show(width=1400)
    grounds = []
    for dark in (False, True):
        tab.show(width=1400, dark=dark)
        tab.open(pages[8])
        colours = tab.value(
            """["--ink", "--muted", "--panel", "--page"].map((name) => {
              const one = document.createElement("i");
              one.style.color = `var(${name})`;
              document.body.append(one);
              return getComputedStyle(one).color.match(/[0-9]+/g).map(Number);
            })"""
        )
        ink, muted, *behind = map(luminance, colours)
        grounds.append(behind)
        for text in (ink, muted):
            for ground in behind:
                bright, dim = max(text, ground), min(text, ground)
                assert (bright + 0.05) / (dim + 0.05) >= 4.5
    assert min(grounds[0]) > max(grounds[1])


def luminance(rgb):
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("classes", [8, 101])
def test_buttons_zoom_in_and_out_and_show_the_whole_again(tab, pages, classes):
    tab.show(width=1400)
    tab.open(pages[classes])
    whole = matrix(tab)
    assert len(whole["rows"]) == len(whole["columns"]) == classes
    for _ in range(3):
        press(tab, "+")
    near = matrix(tab)
    assert near["cell"] > 2.5 * whole["cell"]
    assert 0 < len(near["rows"]) < classes
    assert near["width"] <= whole["width"] + 1  # never beyond the picture
    press(tab, "-")
    assert whole["cell"] < matrix(tab)["cell"] < near["cell"]
    press(tab, "0")
    assert same(matrix(tab), whole)
    assert tab.complaints == []


def test_cells_show_numbers_once_there_is_room_for_them(tab, pages):
    tab.show(width=1400)
    tab.open(pages[101])
    assert matrix(tab)["numbers"] == 0
    for _ in range(5):
        press(tab, "+")
    assert matrix(tab)["numbers"] > 0
    press(tab, "0")
    assert matrix(tab)["numbers"] == 0


def test_the_wheel_zooms_about_the_pointer_once_the_matrix_was_clicked(tab, pages):
    tab.show(width=1400)
    tab.open(pages[101])
    tab.value("document.documentElement.style.overflow = 'hidden'")  # the page itself is not to turn away meanwhile
    before = matrix(tab)
    x, y = before["left"] + 0.7 * before["width"], before["top"] + 0.3 * before["height"]
    tab.mouse("mouseMoved", x, y)
    told = matrix(tab)["said"]
    tab.mouse("mouseWheel", x, y, deltaX=0, deltaY=-400)
    assert same(matrix(tab), before)  # the page's own wheel until then
    tab.click(x, y)
    tab.mouse("mouseWheel", x, y, deltaX=0, deltaY=-600)
    after = matrix(tab)
    assert after["cell"] > 2 * before["cell"]
    tab.mouse("mouseMoved", x, y + 0.01)
    assert matrix(tab)["said"] == told  # what was under the pointer still is
    assert " taken for " in told


def test_a_zoomed_matrix_is_dragged_and_all_heads_show_the_same_part(tab, pages):
    tab.show(width=1400)
    tab.open(pages[101])
    for _ in range(3):
        press(tab, "+")
    before = matrix(tab)
    x, y = before["left"] + before["width"] / 2, before["top"] + before["height"] / 2
    tab.mouse("mousePressed", x, y, button="left", clickCount=1)
    tab.mouse("mouseMoved", x + 40, y - 30, button="left", buttons=1)
    tab.mouse("mouseReleased", x + 40, y - 30, button="left", clickCount=1)
    after = matrix(tab)
    assert after["x"] - before["x"] == pytest.approx(40, abs=1)
    assert after["y"] - before["y"] == pytest.approx(-30, abs=1)
    tab.value("document.getElementById('pick1').click()")
    other = matrix(tab)
    assert (other["rows"], other["columns"]) == (after["rows"], after["columns"])
    assert tab.value("document.querySelectorAll('.sheets > figure')[0].getClientRects().length") == 1


def test_keys_zoom_and_move_a_matrix_that_has_the_focus(tab, pages):
    tab.show(width=1400)
    tab.open(pages[101])
    whole = matrix(tab)
    tab.value("[...document.querySelectorAll('svg.matrix')].find((one) => one.getClientRects().length).focus()")
    for key in ("+", "+", "+"):
        tab.key(key)
    near = matrix(tab)
    assert near["cell"] > 2 * whole["cell"]
    tab.key("ArrowRight")
    assert matrix(tab)["columns"][0] > near["columns"][0] or matrix(tab)["x"] < near["x"]
    tab.key("0")
    assert matrix(tab)["cell"] == pytest.approx(whole["cell"])


def test_without_scripts_the_page_reads_as_well(tab, pages):
    """Scripts are off, so that the page is looked at by the browser's own account of it."""
    tab.show(width=1400, scripts=False)
    try:
        tab.open(pages[8])
        tab.ask("DOM.enable")
        root = tab.ask("DOM.getDocument", depth=0)["root"]["nodeId"]

        def box(selector):
            node = tab.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
            try:
                return tab.ask("DOM.getBoxModel", nodeId=node)["model"]
            except Exception:
                return None

        assert box(".zoom") is None
        assert box(".sheets > :nth-child(4)")["height"] > 300
        assert box(".sheets > :nth-child(1)") is None
        tab.ask(
            "DOM.scrollIntoViewIfNeeded",
            nodeId=tab.ask("DOM.querySelector", nodeId=root, selector=".tabs > :nth-child(1)")["nodeId"],
        )
        left, top, _, _, right, bottom, *_ = box(".tabs > :nth-child(1)")["content"]
        tab.click((left + right) / 2, (top + bottom) / 2)
        assert box(".sheets > :nth-child(1)")["height"] > 300  # tabs are plain radio buttons
    finally:
        tab.show(width=1400)
