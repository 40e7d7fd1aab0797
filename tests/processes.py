"""Servers as processes of their own: started, waited for, ended."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen


class MissingServerError(Exception):
    """A server cannot be installed or does not start; the reason in words."""


PORTS = range(12_000, 32_000)  # below those that systems hand out: no connection takes one before its server does


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    found: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            if len(found) == count:
                break
            one = held.enter_context(socket.socket())
            with suppress(OSError):  # somebody has it
                one.bind(("127.0.0.1", port))
                found.append(port)
    return found


@contextmanager
def running(command: Sequence[str], folder: Path, url: str, *, environ: Mapping[str, str]) -> Iterator[None]:
    """A server with its log in `folder`, once `url` is answered; ended at the end, or when the tests are killed."""
    guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    with (folder / "log").open("ab") as log:
        try:
            process = subprocess.Popen([*guard, *command], cwd=folder, env=environ, stdout=log, stderr=log)
        except OSError as error:
            raise MissingServerError(f"{command[0]}: {error}") from None
    try:
        _await(process, command[0], url, folder / "log")
        yield
    finally:
        process.terminate()
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], program: str, url: str, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise MissingServerError(f"{program} ended with code {code}. Its log:\n{end_of(log)}")
        try:
            with urlopen(url, timeout=20):
                return
        except HTTPError as error:
            error.close()
            if error.code < 500:  # it serves: that a folder may not be listed is an answer too
                return
        except (URLError, OSError):
            pass
        time.sleep(0.05)
    raise MissingServerError(f"{program} does not answer within three minutes. Its log:\n{end_of(log)}")


def end_of(log: Path) -> str:
    """The last lines of a log."""
    return log.read_text(errors="replace")[-3000:] or "(empty)"
