"""The commands on scores of finished tests: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from configs import SettingsError
from configs.cli_errors import OneOf, one_line
from shards.errors import ShardError
from stmul.errors import StmulError

if TYPE_CHECKING:
    from stmul.fusing import Source
    from stmul.results import Results

known_errors = one_line(SettingsError, ShardError, StmulError)
folder_option = click.option("-e", "--experiment-dir", default="experiment", show_default=True, help="Folder of runs.")
GIVEN = "RUN[:HEAD]|FILE.json[:HEAD]"


@click.command()
@click.argument("tests", nargs=-1, required=True, metavar=f"{GIVEN}|FILE.csv...")
@click.option(
    "-w", "--weight", "weights", multiple=True, type=float, help="One for each, in order; all 1 unless given."
)
@click.option(
    "--scale",
    type=OneOf(["deviation", "softmax", "none"]),
    default="deviation",
    show_default=True,
    help="What brings scores of different methods to one scale.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the fused scores: FILE.json.")
@folder_option
@known_errors
def fuse(tests: tuple[str, ...], weights: tuple[float, ...], scale: str, out: Path | None, experiment_dir: str) -> None:
    """Fuse the scores of several TESTS clip by clip; the first, a run or its file, says which clips and labels.

    A CSV holds another method's scores (improved dense trajectories, say): a line `name,CLASS,CLASS,...`, then a line
    for each clip.

    \b
    stmul fuse ucf101-001 idt.csv -w 1 -w 0.5
    stmul fuse ucf101-001:joint ucf101-002:joint -o both.json
    """
    from rich.console import Console

    from stmul import fusing
    from stmul.display import results_table
    from stmul.fusing import read_table
    from stmul.results import measures, write_results

    base, _ = _results(tests[0], experiment_dir)
    sources = [read_table(Path(test)) if test.endswith(".csv") else _source(test, experiment_dir) for test in tests]
    fused = fusing.fuse(base, sources, weights or [1.0] * len(tests), scale)  # type: ignore[arg-type]
    console = Console()
    for source in sources:
        alone = fusing.fuse(base, [source], [1.0], scale)  # type: ignore[arg-type]
        top1 = measures(alone, alone.main)["top1"]
        click.echo(f"{100 * top1:5.1f} %  {source.words}")
    console.print(results_table(fused))
    if out is not None:
        write_results(out, fused)
        click.echo(f"scores    {out}")


@click.command()
@click.argument("one", metavar=GIVEN)
@click.argument("other", metavar=GIVEN)
@folder_option
@known_errors
def compare(one: str, other: str, experiment_dir: str) -> None:
    """Compare two tests on the same clips: top-1 of each, their difference, and whether the clips can tell it from 0.

    \b
    stmul compare ucf101-001 ucf101-002
    stmul compare ucf101-001:joint "ucf101-001:late fusion"
    """
    from stmul import fusing

    (first, head), (second, other_head) = _results(one, experiment_dir), _results(other, experiment_dir)
    found = fusing.compare(first, second, (head, other_head))
    for name, top1, (low, high) in zip((one, other), found.top1, found.intervals, strict=True):
        click.echo(f"{100 * top1:5.1f} %  ({100 * low:.1f} to {100 * high:.1f})  {name}")
    low, high = found.interval
    click.echo(
        f"{100 * found.difference:+5.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), the second over the first"
    )
    click.echo(
        f"{found.only[0]} clips only the first gets right, {found.only[1]} only the second; McNemar's p = {found.p:.3g}"
    )
    sure = "the difference is resolved" if found.resolved else "no difference resolvable"
    click.echo(f"{sure} with {found.clips} clips in {found.groups} groups (paired bootstrap over groups, 95 %)")


def _source(given: str, folder: str) -> Source:
    from stmul.fusing import source_of

    return source_of(*_results(given, folder))


def _results(given: str, folder: str) -> tuple[Results, str]:
    """The newest results of a run, or those in a file, and the head that was named."""
    from stmul.errors import RunError
    from stmul.results import read_results
    from stmul.runs import find_run

    name, _, head = given.rpartition(":") if ":" in given else (given, "", "")
    if name.endswith(".json"):
        return read_results(Path(name)), head
    if name.endswith(".csv"):
        raise SettingsError(f"{name}: a table holds no labels; name a run or its results first")
    run = find_run(Path(folder), name)
    if (path := run.results()) is None:
        raise RunError(f"{run.folder}: no scores yet; make them with: stmul test -i {run.id}")
    return read_results(path), head
