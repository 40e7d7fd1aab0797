"""Settings: what is read is what was said, and what is wrong is one clear line that names its source and its place."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import click
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

import configs
from configs import Settings, SettingsError, dump, load, nearest
from configs.cli_errors import one_line
from stmul.config import Config


class Recipe(Settings):
    epochs: PositiveInt
    rates: tuple[PositiveFloat, ...]
    kind: Literal["steps", "cosine"] = "steps"


class Train(Settings):
    other_names: ClassVar[Mapping[str, str]] = {"lr": "joint.rates"}

    batch: PositiveInt = 8
    part: PositiveInt = 4
    fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    verbose: bool = False
    joint: Recipe = Recipe(epochs=20, rates=(1e-2, 1e-3), kind="cosine")

    @model_validator(mode="after")
    def parts_fill_the_batch(self) -> Self:
        if self.batch % self.part:
            raise ValueError(f"batch {self.batch} is not a multiple of part {self.part}")
        return self


class Data(Settings):
    shards: str = ""
    use: Literal["auto", "yes", "no"] = "auto"
    stride: tuple[int, int] = (5, 35)
    mean: tuple[float, float, float] = (1.0, 2.0, 3.0)
    names: tuple[str, ...] = ()
    parameters: dict[str, float] = {}  # noqa: RUF012  (pydantic copies it)


class Root(Settings):
    train: Train = Train()
    data: Data = Data()


@pytest.fixture
def said(tmp_path):
    """Writes a file of settings and gives its path."""

    def write(text, name="mine.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def refusal(source=None, *overrides, root=Root) -> str:
    with pytest.raises(SettingsError) as caught:
        load(root, source, overrides)
    return str(caught.value)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["yes", "no", "on", "null", "~", "", "1e-3", "001", "0x1f", "2024-01-01", ".inf", "-1", "<<", "-", "a:", "\x85"]
)
numbers = st.floats(allow_nan=False, allow_infinity=False)


few = st.lists(words, max_size=3)


@given(shards=words, names=few, mean=st.tuples(numbers, numbers, numbers), rate=st.floats(1e-9, 1e9))
def test_what_is_dumped_is_what_is_loaded(tmp_path_factory, shards, names, mean, rate):
    tree = Root(
        data=Data(shards=shards, names=tuple(names), mean=mean, parameters={"tau": rate}),
        train=Train(joint=Recipe(epochs=3, rates=(rate,))),
    )
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(tree), encoding="utf-8")
    assert load(Root, path) == tree


@given(shards=words, names=few)
def test_what_is_dumped_reads_the_same_to_any_yaml_reader(shards, names):
    tree = yaml.safe_load(dump(Root(data=Data(shards=shards, names=tuple(names)))))
    assert (tree["data"]["shards"], tree["data"]["names"]) == (shards, names)


def roots() -> list[type[Settings]]:
    preprocess = importlib.import_module("preprocess.config")
    kinds = [kind for kind in vars(preprocess).values() if isinstance(kind, type) and issubclass(kind, Settings)]
    return [Config, *(kind for kind in kinds if "preprocess" in kind.model_fields)]


@pytest.mark.parametrize("root", roots(), ids=lambda root: root.__name__)
@pytest.mark.parametrize("name", configs.names())
def test_every_shipped_configuration_loads_and_survives_a_round_trip(name, root, tmp_path):
    tree = load(root, name)
    (tmp_path / "full.yaml").write_text(dump(tree), encoding="utf-8")
    assert load(root, tmp_path / "full.yaml") == tree


def test_a_setting_that_changes_leaves_its_neighbours_at_their_defaults(said):
    assert load(Root, None, ["train.joint.epochs=3"]).train.joint == Recipe(epochs=3, rates=(1e-2, 1e-3), kind="cosine")
    assert load(Root, said("train: {joint: {kind: steps}}")).train.joint.epochs == 20
    deeper = load(Config, None, ["network.motion.depth=101"])
    assert deeper.network.motion.dropout == Config().network.motion.dropout > 0


def test_overrides_go_on_top_of_the_file_in_their_order(said):
    path = said("train: {batch: 16, part: 2}")
    assert load(Root, path, ["train.batch=12"]).train == Train(batch=12, part=2)
    assert load(Root, path, ["train.batch=6", "train.batch=10"]).train.batch == 10


def test_the_file_is_not_touched_by_loading(said):
    path = said("train: {batch: 16}")
    load(Root, path, ["train.batch=4"])
    assert path.read_text() == "train: {batch: 16}"


@pytest.mark.parametrize("number", ["1e-3", "0.001", "1E-3", "+1e-3", "1.0e-3"])
def test_a_number_in_any_notation_is_a_number(said, number):
    assert load(Root, said(f"train: {{joint: {{rates: [{number}]}}}}")).train.joint.rates == (1e-3,)
    assert load(Root, None, [f"train.joint.rates=[{number}]"]).train.joint.rates == (1e-3,)
    assert load(Root, None, [f"data.parameters.tau={number}"]).data.parameters == {"tau": 1e-3}


@pytest.mark.parametrize("word", ["yes", "no", "auto"])
def test_yes_and_no_are_words_where_words_are_wanted_and_switches_where_switches_are(said, word):
    assert load(Root, said(f"data: {{use: {word}}}")).data.use == word
    assert load(Root, None, [f"data.use={word}"]).data.use == word
    if word != "auto":
        assert load(Root, said(f"train: {{verbose: {word}}}")).train.verbose is (word == "yes")


@pytest.mark.parametrize("text", ["001", "2024", "1e5", "a: b", "[x]", "", "null", "s3://bucket/key", "a=b", "'q'"])
def test_text_given_on_the_command_line_is_taken_as_it_stands(text):
    assert load(Root, None, [f"data.shards={text}"]).data.shards == text.strip("'")


def test_an_empty_file_and_an_empty_section_say_nothing(said):
    assert load(Root, said("")) == Root()
    assert load(Root, said("train:\ndata: {stride: [1, 2]}\n")) == Root(data=Data(stride=(1, 2)))


def test_sections_of_other_commands_are_left_alone_and_unknown_ones_refused(said):
    assert load(Root, said("preprocess: {anything: [1, 2]}\nnetwork: 5\n")) == Root()
    path = said("trian: {batch: 4}\n")
    assert refusal(path) == f"{path}: trian: no such setting; did you mean train?"
    assert refusal(None, "preprocess.split=2") == (
        "--set preprocess.split=2: another command reads preprocess; this one reads data, train"
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.bacth=3", "no such setting; did you mean train.batch?"),
        ("train.lr=3", "no such setting; did you mean train.joint.rates?"),
        ("train.rates=[1]", "no such setting; did you mean train.joint.rates?"),
        ("batch=3", "no such setting; did you mean train.batch?"),
        ("train.qqq=3", "no such setting; train has batch, part, fraction, verbose, joint"),
        ("zzz=3", "no such setting; there are train, data"),
        ("zzz.y=3", "zzz: no such setting; there are train, data"),
        ("train.batch=fast", "expected a whole number, found 'fast'"),
        ("train.batch=1.5", "expected a whole number, found 1.5"),
        ("train.batch=true", "expected a number, found True"),
        ("train.batch=0", "expected a number greater than 0, found 0"),
        ("train.batch.x=3", "train.batch: expected a whole number, found {'x': 3}"),
        ("train.batch=2024-13-45", "expected a whole number, found '2024-13-45'"),
        ("train.fraction=1", "expected a number less than 1, found 1"),
        ("train.fraction=.nan", "expected a finite number, found nan"),
        ("train.verbose=maybe", "expected true or false, found 'maybe'"),
        ("train=5", "expected a section, found 5"),
        ("train.joint=cosine", "expected a section, found 'cosine'"),
        ("train.joint.rates=0.1", "expected a list, found 0.1"),
        ("train.joint.rates=[1, -2]", "train.joint.rates.1: expected a number greater than 0, found -2"),
        ("train.joint.kind=cosin", "expected 'steps' or 'cosine', found 'cosin'; did you mean cosine?"),
        ("data.stride=[5]", "expected a list of 2, found [5]"),
        ("data.stride=[5, 6, 7]", "expected a list of 2, found [5, 6, 7]"),
        ("data.mean=[1]", "expected a list of 3, found [1]"),
        ("data.mean=[.inf, 1, 1]", "data.mean.0: expected a finite number, found inf"),
        ("data.names=[a, 2]", "data.names.1: expected text, found the value 2; write it in quotes"),
        ("data.parameters=3", "expected a section, found 3"),
        ("train.batch=6", "train: batch 6 is not a multiple of part 4"),
        ("train.batch", "expected key=value, for example train.seed=1"),
        ("=3", "expected key=value, for example train.seed=1"),
    ],
)
def test_a_wrong_override_is_one_line_that_says_what_was_expected(override, line):
    assert refusal(None, override) == f"--set {override}: {line}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {bacth: 3}", "train.bacth: no such setting; did you mean train.batch?"),
        ("train: {batch: fast}", "train.batch: expected a whole number, found 'fast'"),
        ("train: {batch: 6}", "train: batch 6 is not a multiple of part 4"),
        ("train: {joint: {kind: none}}", "train.joint.kind: expected 'steps' or 'cosine', found 'none'"),
        ("data: {shards: 7}", "data.shards: expected text, found the value 7; write it in quotes"),
        ("data: {stride: [1, 2, 3]}", "data.stride: expected a list of 2, found [1, 2, 3]"),
        ("train: {5: 3}", "train.5: expected a name, found 5"),
        ("5: 3", "5: expected a name, found 5"),
        ("[a, b]", "expected sections (preprocess, network, data, train, evaluate, experiment), found list"),
        ("a b", "expected sections (preprocess, network, data, train, evaluate, experiment), found str"),
        ("train: {batch: 3", "not readable as YAML: line 1, column 17: expected ',' or '}', but got '<stream end>'"),
        ("train:\n  batch: 8\n  batch: 4", "not readable as YAML: line 3, column 3: batch stands twice"),
        ("train: !!python/object:os.system {}", "not readable as YAML: line 1, column 8: could not determine a"),
        ("train: \x01", "not readable as YAML: "),
        ("extends: [a]", "extends: expected a name or a path, found ['a']"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_file(said, text, line):
    path = said(text)
    message = refusal(path)
    assert message.startswith(f"{path}: {line}")
    assert "\n" not in message


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path):
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    assert refusal(tmp_path / "picture.yaml").startswith(f"{tmp_path}/picture.yaml: not readable as YAML: ")


def test_each_mistake_has_its_own_line(said):
    path = said("train: {batch: fast, joint: {kind: x}}\nfoo: 1\n")
    assert [line.removeprefix(f"{path}: ").partition(":")[0] for line in refusal(path).splitlines()] == [
        "train.batch",
        "train.joint.kind",
        "foo",
    ]


def test_the_override_is_blamed_where_it_is_at_fault_and_the_file_where_it_is(said):
    good, bad = said("train: {batch: 16}", "good.yaml"), said("train: {batch: 6}", "bad.yaml")
    assert refusal(good, "train.part=5") == "--set train.part=5: train: batch 16 is not a multiple of part 5"
    assert refusal(bad, "train.verbose=yes").startswith(f"{bad}: train: batch 6")
    assert refusal(good, "train.part=3", "data.use=no", "train.batch=4") == (
        "--set train.part=3, --set train.batch=4: train: batch 4 is not a multiple of part 3"
    )
    assert refusal(good, "train.batch=4", "train.batch=x") == "--set train.batch=x: expected a whole number, found 'x'"


def test_a_long_value_is_cut_in_the_message():
    assert len(refusal(None, f"train.batch=[{','.join('5' * 500)}]").partition("found ")[2]) <= 80


def test_a_file_extends_a_shipped_one_or_one_beside_it(said):
    said("train: {batch: 16, joint: {epochs: 7}}\ndata: {shards: below}", "base.yaml")
    top = said("extends: base.yaml\ntrain: {part: 2, joint: {kind: steps}}", "top.yaml")
    tree = load(Root, top)
    assert tree.train == Train(batch=16, part=2, joint=Recipe(epochs=7, rates=(1e-2, 1e-3), kind="steps"))
    assert tree.data.shards == "below"
    if "ucf101" in configs.names():
        assert load(Config, said("extends: ucf101")) == load(Config, "ucf101")


def test_a_mistake_is_blamed_on_the_file_that_holds_it(said):
    base = said("train: {batch: fast}", "base.yaml")
    top = said("extends: base.yaml\ntrain: {part: slow}", "top.yaml")
    assert refusal(top).splitlines() == [
        f"{base}: train.batch: expected a whole number, found 'fast'",
        f"{top}: train.part: expected a whole number, found 'slow'",
    ]


def test_a_file_that_extends_itself_is_refused(said):
    said("extends: two.yaml", "one.yaml")
    two = said("extends: one.yaml", "two.yaml")
    assert refusal(two).endswith("two.yaml: extends itself, by way of two.yaml, one.yaml")


def test_an_unknown_name_suggests_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "FOLDER", tmp_path)
    (tmp_path / "ucf101.yaml").write_text("train: {batch: x}")
    assert refusal("ucf11") == "no configuration named 'ucf11'; did you mean ucf101? (shipped: ucf101)"
    assert refusal("ucf101") == "configs/ucf101.yaml: train.batch: expected a whole number, found 'x'"
    missing = tmp_path / "none" / "mine.yaml"
    assert refusal(missing).startswith(f"{missing}: no readable configuration file (No such file or directory; shipped")
    assert refusal(f"{tmp_path}/").startswith(f"{tmp_path}: no readable configuration file (Is a directory; shipped")


@pytest.mark.parametrize(
    ("error", "code", "output"),
    [
        (SettingsError("train.batch: wrong"), 2, "Error: train.batch: wrong\n"),
        (KeyError("one"), 1, "Error: 'one'\n"),
        (LookupError(), 1, "Error: LookupError\n"),
    ],
)
def test_a_known_error_ends_a_command_with_its_message_and_no_traceback(error, code, output):
    @click.command()
    @one_line(SettingsError, LookupError)
    def command() -> None:
        """Fails."""
        raise error

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.output) == (code, output)
    error.add_note("while reading")
    assert CliRunner().invoke(command).output == f"{output}while reading\n"


def test_an_unknown_error_keeps_its_traceback_and_no_error_changes_nothing():
    @one_line(LookupError)
    def divide(by: int) -> float:
        """One over a number."""
        return 1 / by

    assert divide(2) == 0.5
    assert divide.__doc__ == "One over a number."
    with pytest.raises(ZeroDivisionError):
        divide(0)


def test_settings_do_not_change_once_made():
    with pytest.raises(ValueError, match="frozen"):
        Root().train = Train()


@given(st.text(max_size=8), st.lists(st.text(max_size=8), max_size=5))
def test_the_nearest_word_is_one_of_the_words_or_none(word, known):
    hint = nearest(word, known)
    assert hint == "" or hint in {f"; did you mean {one}?" for one in known}
    assert nearest("same", ["other", "same"]) == "; did you mean same?"
