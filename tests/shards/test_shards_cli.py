import io
import subprocess
import sys

import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from shards import display
from shards.cli import shards
from shards.split import open_split
from stmul.__main__ import main


@pytest.fixture(scope="module")
def folder(make_split, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "split1"
    make_split(folder)
    return folder


@pytest.fixture
def damaged(make_split, tmp_path):
    """A split with one flipped byte in a frame of a training record, and that record's name."""
    make_split(tmp_path / "split1")
    with open_split(tmp_path / "split1") as split:
        row = split.index("train").row(3)
        tar = tmp_path / "split1" / split.store.member("train", row, "cls")[0]
    data = bytearray(tar.read_bytes())
    data[row.rgb.offset + 40] ^= 1
    tar.write_bytes(data)
    return tmp_path / "split1", row.name


def run(*arguments, code=0):
    result = CliRunner().invoke(shards, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def words(output):
    return [line.split() for line in output.splitlines()]


def pairs(output):
    """Each word with its right neighbour."""
    return [line[i : i + 2] for line in words(output) for i in range(len(line) - 1)]


def test_show_counts_shards_records_frames_and_classes(folder):
    shown = words(run("show", folder))
    assert ["test", "2", "3"] in [line[:3] for line in shown]
    assert ["train", "3", "6"] in [line[:3] for line in shown]
    for label in range(3):
        assert [str(label), f"class{label}", "1", "2"] in shown
    assert [*"made", "flow", "drawn"][-2:] in [line[1:] for line in shown]


def test_show_says_where_what_and_which(folder):
    shown = run("show", folder)
    with open_split(folder) as split:
        assert f"shards    {folder} (tar)" in shown
        assert f"digest    {split.manifest.digest}" in shown
    assert "data set  drawn, split 1, 3 classes" in shown
    assert "32x24" in shown


def test_show_of_one_part_leaves_the_other_out(folder):
    shown = words(run("show", folder, "--part", "test"))
    assert ["0", "class0", "1"] in shown
    assert "train" not in [line[0] for line in shown if line]


def test_many_classes_stand_side_by_side(make_split, tmp_path):
    make_split(tmp_path / "split1", train=40, classes=40)
    shown = run("show", tmp_path / "split1")
    assert all([str(label), f"class{label}"] in pairs(shown) for label in range(40))
    assert len(shown.splitlines()) < 40


def test_show_of_a_record_names_its_place_and_its_making(folder):
    shown = run("show", folder, "--record", "v_test_1")
    for expected in ("v_test_1, number", "class1 (label 1)", "test-00000", "13 of 13 decoded", "drawn (none) dx 1.0"):
        assert expected in shown


def test_a_sheet_is_a_picture_of_the_record(folder, tmp_path):
    assert "v_train_4" in run("show", folder, "--record", "v_train_4", "--sheet", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 400
    assert "sheet" in run("show", folder, "--part", "test", "--sheet", tmp_path / "first.png")
    assert (tmp_path / "first.png").exists()


def test_show_and_verify_read_urls_tars_and_lmdb_alike(folder, serve, tmp_path):
    url = serve(folder).url
    copied = run("copy", url, tmp_path / "split1.lmdb")
    assert "9 records as lmdb, digest" in copied
    for location in (folder, url, tmp_path / "split1.lmdb"):
        assert "train" in run("show", location)
        assert run("verify", location) == f"{location}: all 9 records are whole\n"
    assert run("verify", folder / "train-000000.tar").endswith("all 2 records are whole\n")
    assert "1 classes" not in run("show", f"{url}/train-000000.tar")


def test_a_copy_and_its_copy_have_the_digest_of_the_first(folder, tmp_path):
    digests = [
        run("copy", folder, tmp_path / "split1.files"),
        run("copy", tmp_path / "split1.files", tmp_path / "again"),
    ]
    assert digests[0].split("digest")[1] == digests[1].split("digest")[1]


def test_verify_names_each_damage_and_ends_with_one(damaged):
    folder, name = damaged
    output = run("verify", folder, code=1)
    assert name in output
    assert "frame 0" in output
    assert output.splitlines()[-1].startswith(f"Error: {folder}: 2 problems")  # the record, and its shard's SHA-256


def test_verify_says_how_to_mend_what_it_names(damaged):
    folder, _ = damaged
    command = f"stmul shards verify {folder} --repair SOURCE"
    assert run("verify", folder, code=1).strip().endswith(command)


def test_repair_says_what_it_mended_and_verify_is_clean_then(damaged, folder):
    broken, _ = damaged
    (broken / "train-000009.tar").write_bytes(b"left")
    (broken / "manifest.json").unlink()
    output = run("verify", broken, "--repair", folder)
    assert ".tar: SHA-256 " in output
    assert f"{broken}/manifest.json: is missing: fetched again" in output
    assert f"{broken}/train-000009.tar: is not in the manifest, and left as it is: delete it" in output
    assert output.splitlines()[-1].startswith(f"{broken}: 2 files mended, 0.")
    (broken / "train-000009.tar").unlink()
    assert run("verify", broken) == f"{broken}: all 9 records are whole\n"
    assert run("verify", broken, "--repair", folder).startswith(f"{broken}: nothing to mend")


def test_copy_refuses_damage_and_leaves_nothing(damaged, tmp_path):
    folder, name = damaged
    assert name in run("copy", folder, tmp_path / "out.lmdb", code=1)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nowhere"], "Error: nowhere: no such folder"),
        (["verify", "nowhere"], "Error: nowhere: no such folder"),
        (["copy", "nowhere", "out.lmdb"], "Error: nowhere: no such folder"),
        (["show", "SPLIT", "--part", "valid"], "has no part 'valid'; it has test, train"),
        (
            ["show", "SPLIT", "--record", "v_tran_1"],
            "no record 'v_tran_1' among 9 of test, train; did you mean v_train_1?",
        ),
        (["show", "SPLIT", "--sheet", "/nowhere/out.png"], "Error: /nowhere/out.png: cannot be written: No such file"),
        (["copy", "SPLIT", "https://user:secret@host/split1"], "https://host/split1: a web server takes no files"),
        (["verify", "nowhere", "--repair", "SPLIT"], "Error: nowhere: no such folder; get the whole split with"),
        (["serve", "nowhere"], "Error: nowhere: cannot be served: No such file"),
        (["show", "pipe:id"], "not a kind of location that is read"),
        (["show", "ftp://user:secret@host/split1"], "Error: ftp://host/split1: not a kind of location"),
    ],
)
def test_what_cannot_be_done_is_told_in_the_last_line(arguments, told, folder):
    output = run(*(str(folder) if argument == "SPLIT" else argument for argument in arguments), code=1)
    assert told in output
    assert output.splitlines()[-1].startswith("Error: ")
    assert output.count("Error") == 1
    assert "secret" not in output


def test_urls_that_do_not_answer_are_told_in_one_line(folder, serve):
    url = serve(folder).url
    assert run("show", f"{url}/split2", code=1).count("\n") == 1
    assert "not there (404)" in run("verify", f"{url}/split2", code=1)
    assert "no permission (403)" in run("copy", f"{url}/forbidden", "out", code=1)


def test_a_sheet_of_another_kind_is_refused_before_anything_is_read():
    assert "expected a name that ends in .png" in run("show", "nowhere", "--sheet", "out.gif", code=2)


def test_work_shows_its_rate_on_a_terminal_and_nothing_where_piped(monkeypatch):
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=100)
        monkeypatch.setattr(display, "Console", lambda console=console, **_: console)
        with display.counting("verify") as progress:
            for done in range(1, 4):
                progress(done, 3)
        assert ("3/3" in file.getvalue()) is terminal


def test_bytes_show_their_rate_and_one_bar_follows_another(monkeypatch):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    with display.moving("look") as looked, display.moving("fetch") as fetched, display.counting("never") as _:
        for progress in (looked, fetched):
            for done in range(0, 3_000_001, 500_000):
                progress(done, 3_000_000)
    shown = file.getvalue()
    assert "3.0/3.0 MB" in shown
    assert "MB/s" in shown
    assert "look" in shown
    assert "fetch" in shown
    assert "never" not in shown


@pytest.mark.parametrize("command", ["show", "verify", "copy", "serve"])
def test_every_command_has_a_sentence_and_an_example(command):
    told = CliRunner().invoke(main, ["shards", command, "--help"]).output
    assert f"stmul shards {command} " in told.split("Options:")[0].split("\n\n", 2)[2]


def test_help_loads_nothing_heavy():
    program = (
        "import sys; from click.testing import CliRunner; from shards.cli import shards;"
        "CliRunner().invoke(shards, ['show', '--help']);"
        "heavy = ('numpy', 'lmdb', 'PIL', 'rich', 'obstore', 'boto3', 'webdataset', 'torch', 'cv2');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
