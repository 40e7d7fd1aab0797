"""The one command: `stmul`, also `python -m stmul`. Commands are found by name and loaded when they are used."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from copy import copy
from types import ModuleType

import click

COMMANDS = {
    "preprocess": ("preprocess.cli:preprocess", "Build shards out of videos or extracted frames."),
    "shards": ("shards.cli:shards", "Look at shards, verify and copy them."),
    "train": ("stmul.cli:train", "Train the network on shards, stage by stage."),
    "test": ("stmul.cli:test", "Score a trained network on the test clips."),
    "predict": ("stmul.predict_cli:predict", "Say what is done in videos, by a trained network."),
    "export": ("stmul.export_cli:export", "Write a trained network as ONNX, or for torch.export, checked."),
    "fuse": ("stmul.scores_cli:fuse", "Fuse the scores of several tests, or of other methods."),
    "compare": ("stmul.scores_cli:compare", "Compare two tests clip by clip, and say whether the difference is real."),
    "report": ("stmul.cli:report", "Write a run's report: one HTML page."),
    "summary": ("stmul.cli:summary", "Print the network's parameters, multiply-adds and memory."),
    "import-matconvnet": ("stmul.cli:import_matconvnet", "Turn the authors' networks into ones of ours."),
    "configs": ("stmul.cli:configurations", "List the shipped configurations, or print one in full."),
}
# Commands of a group whose package knows nothing of the package that the command is in.
JOINED = {"shards": {"bench": "stmul.bench_cli:bench"}}
RECORDS = "preprocess.in_memory"  # makes records of videos that are to be scored


class Lazy(click.Group):
    """A group whose commands are imported when they are called, so that `--help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = _loaded(COMMANDS[name][0])
        if name in JOINED:
            assert isinstance(command, click.Group)
            group = copy(command)
            group.commands = {**command.commands, **{word: _loaded(place) for word, place in JOINED[name].items()}}
            return group
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from configs import nearest

            ctx.fail(f"No such command {args[0]!r}{nearest(args[0], list(COMMANDS))}")
        return super().resolve_command(ctx, args)


def _loaded(place: str) -> click.Command:
    module, _, attribute = place.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    return command


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stmul")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Spatiotemporal Multiplier Networks: two-stream video action recognition, trained from streaming shards.

    \b
    stmul preprocess shards --dataset drawn
    stmul train -c demo
    stmul test
    """
    ctx.obj = records


def records() -> ModuleType:
    """What makes records of videos, loaded when it is first needed: here alone do `stmul` and `preprocess` meet."""
    return importlib.import_module(RECORDS)


def command() -> None:
    """Runs `stmul` and ends the process at its end, also where a request to a server hangs."""
    try:
        main()
    except SystemExit as ended:
        hands = sys.modules.get("shards.stores.hands")
        if hands is None or not hands.at_work(0.3):
            raise
        code = ended.code
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)


if __name__ == "__main__":
    command()
