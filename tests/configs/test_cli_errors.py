from typing import Literal

import click
import pytest
from click.testing import CliRunner

from configs import Named, Settings, SettingsError, load
from configs.cli_errors import OneOf, one_line


class KnownError(Exception):
    """One of a family that is told in a line."""


class NarrowError(KnownError):
    """A member of it."""


def run(error: Exception):
    @click.command()
    @click.argument("word")
    @one_line(KnownError, SettingsError)
    def command(word):
        """Says a word."""
        raise error

    return CliRunner().invoke(command, ["hello"])


@pytest.mark.parametrize(("error", "code"), [(KnownError, 1), (NarrowError, 1), (SettingsError, 2)])
def test_known_errors_are_one_line_and_a_code(error, code):
    result = run(error("here is what was found"))
    assert (result.output, result.exit_code) == ("Error: here is what was found\n", code)


def test_notes_of_an_error_stand_below_it():
    error = KnownError("damaged")
    error.add_note("while reading the second shard")
    assert run(error).output == "Error: damaged\nwhile reading the second shard\n"


def test_an_error_without_words_is_called_by_its_name():
    assert run(NarrowError()).output == "Error: NarrowError\n"


def test_other_errors_keep_their_traceback():
    assert isinstance(run(ZeroDivisionError("by zero")).exception, ZeroDivisionError)


def test_what_a_command_hands_back_and_its_name_stay():
    @one_line(KnownError)
    def double(number: int) -> int:
        """Twice the number."""
        return 2 * number

    assert (double(3), double.__name__, double.__doc__) == (6, "double", "Twice the number.")


@pytest.mark.parametrize(("said", "hint"), [("soft", "; did you mean softmax?"), ("xyz", "")])
def test_a_wrong_choice_is_told_with_the_nearest_word(said, hint):
    @click.command()
    @click.option("--scale", type=OneOf(["deviation", "softmax"]))
    def command(scale: str) -> None:
        """Says what it was told."""
        click.echo(scale)

    wrong = CliRunner().invoke(command, ["--scale", said])
    assert wrong.exit_code == 2
    assert wrong.output.endswith(f"{said!r} is not one of 'deviation', 'softmax'{hint}\n")
    assert CliRunner().invoke(command, ["--scale", "softmax"]).output == "softmax\n"


def test_a_mistake_in_an_option_is_told_as_the_option():
    class Flow(Settings):
        method: Literal["tvl1", "dis"] = "tvl1"

    class Root(Settings):
        flow: Flow = Flow()

    with pytest.raises(SettingsError) as told:
        load(Root, None, [Named("--flow", "flow.method", "tvl")])
    assert str(told.value) == "--flow tvl: flow.method: expected 'tvl1' or 'dis', found 'tvl'; did you mean tvl1?"
    assert load(Root, None, ["flow.method=tvl1", Named("--flow", "flow.method", "dis")]).flow.method == "dis"
    assert str(Named("--partial", "preprocess.partial", True)) == "preprocess.partial=true"
