"""What the terminal shows of the tests of several splits."""

from __future__ import annotations

from rich.table import Table

from stmul import splits
from stmul.splits import OverSplits


def means_table(found: OverSplits) -> Table:
    """Each head's top-1 by split, and the means over splits of top-1, top-5 and mean class."""
    first = found.tests[0]
    shown = Table(
        title=f"{first.dataset}, {first.part}: mean over splits {', '.join(map(str, found.splits))}",
        caption=f"chance {100 / len(first.classes):.1f} %; the last three columns are means over the splits",
        title_justify="left",
        caption_justify="left",
    )
    for number, column in enumerate(splits.header(found)):
        shown.add_column(column, justify="right" if number else "left")
    for row in splits.table(found):
        shown.add_row(*row)
    return shown
