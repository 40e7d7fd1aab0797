"""Commands that are killed within: one process that has imported all forks; each child ends when it is told to.

Reads lines of JSON, [words of `stmul shards`, number]; the child that runs the words is killed (SIGKILL) just before
its `number`th change of the file system: a file opened to be written, renamed, linked or removed, a folder made or
removed. Answers each line with the exit code, negative where it was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "open")


def main() -> None:
    """Answers each line."""
    import shards.combine  # here, so that no child has to
    import shards.display
    import shards.union  # noqa: F401
    from shards.cli import shards as command

    for line in sys.stdin:
        words, number = json.loads(line)
        if (child := os.fork()) == 0:
            _run(command, words, number)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _run(command: Any, words: list[str], number: int) -> None:
    """The command, in the forked process; never returns."""
    silent, left = os.open(os.devnull, os.O_WRONLY), number
    os.dup2(silent, 1)
    os.dup2(silent, 2)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in CHANGES:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = 70
    try:
        command(words, standalone_mode=False)
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
