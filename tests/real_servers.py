"""Servers that others wrote, for reading from afar as users do: seaweedfs for S3, nginx for HTTP.

`weed` and `nginx` are fixtures of the whole session: each server has free ports and a folder of its own. A server that
cannot be had skips its tests and says why; where CI or STMUL_REQUIRE_SERVERS is set, it fails them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NoReturn, TypeVar

import pytest

from tests.nginx import Nginx, nginx_server
from tests.processes import MissingServerError
from tests.seaweedfs import Weed, seaweedfs

T = TypeVar("T")


def required(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether tests must have their servers: CI and STMUL_REQUIRE_SERVERS say so by anything but 0 and false."""
    return any(environ.get(name, "").lower() not in ("", "0", "false") for name in ("CI", "STMUL_REQUIRE_SERVERS"))


@contextmanager
def asked_for(server: AbstractContextManager[T]) -> Iterator[T]:
    """What `server` gives; where it is missing, its tests are skipped, or fail if they must not be."""
    with ExitStack() as stack:
        running, reason = None, ""
        try:
            running = stack.enter_context(server)
        except MissingServerError as missing:
            reason = str(missing)
        yield _without(reason) if running is None else running


def _without(reason: str) -> NoReturn:
    if required():
        pytest.fail(f"{reason} (CI or STMUL_REQUIRE_SERVERS is set: these tests must run)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """An S3 server with the buckets `videos` and `public`."""
    with asked_for(seaweedfs(tmp_path_factory.mktemp("weed"))) as running:
        yield running


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """A web server of what is put into its `folder`."""
    with asked_for(nginx_server(tmp_path_factory.mktemp("nginx"))) as running:
        yield running
