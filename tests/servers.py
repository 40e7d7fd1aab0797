"""Servers for the tests of what is read from afar: one process each, started when first wanted."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests import http_server
from tests.processes import free_ports


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], object]]:
    """A function that serves a folder over HTTP until the tests end: `serve(folder).url`."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(http_server.serving(folder))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an empty S3 server."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _await(url)
            yield url
        finally:
            process.terminate()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """A function that sets what `aws configure` would, on a machine that has none of it: `aws(AWS_REGION="...")`."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def configure(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    return configure


def _await(url: str) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        try:
            with urlopen(url, timeout=20):
                return
        except (URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"no server at {url}")
