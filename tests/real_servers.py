"""Servers that others wrote, for reading from afar as users do: seaweedfs for S3, nginx for HTTP.

`weed` and `nginx` are fixtures of the whole session; each server is a process of its own with free ports and a folder
of its own. seaweedfs comes with the `dev` extra. nginx is the machine's, or else Debian's package, unpacked once into
`.venv/nginx` without being installed. A server that cannot be had skips its tests and says why; where CI or
STMUL_REQUIRE_SERVERS is set, it fails them.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).parents[1]
UNPACKED = ROOT / ".venv" / "nginx"
T = TypeVar("T")


class MissingServerError(Exception):
    """A server cannot be installed or does not start; the reason in words."""


def required(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether tests must have their servers: CI and STMUL_REQUIRE_SERVERS say so by anything but 0 and false."""
    return any(environ.get(name, "").lower() not in ("", "0", "false") for name in ("CI", "STMUL_REQUIRE_SERVERS"))


@contextmanager
def asked_for(server: AbstractContextManager[T]) -> Iterator[T]:
    """What `server` gives; where it is missing, its tests are skipped, or fail if they must not be."""
    try:
        running = server.__enter__()
    except MissingServerError as missing:
        _without(str(missing))
    try:
        yield running
    finally:
        server.__exit__(None, None, None)


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


# S3


@dataclass(frozen=True, slots=True)
class Keys:
    """What an S3 user signs with."""

    id: str
    secret: str


OWNER = Keys("AKIDOWNER", "owner-secret-word")  # may do everything
READER = Keys("AKIDREADER", "reader-secret-word")  # may read objects in `videos`, and not list it
IDENTITIES = f"""
{{"identities": [
  {{"name": "anonymous", "actions": ["Read:public"]}},
  {{"name": "owner", "actions": ["Admin", "Read", "List", "Write", "Tagging"],
    "credentials": [{{"accessKey": "{OWNER.id}", "secretKey": "{OWNER.secret}"}}]}},
  {{"name": "reader", "actions": ["Read:videos"],
    "credentials": [{{"accessKey": "{READER.id}", "secretKey": "{READER.secret}"}}]}}
]}}
"""


@dataclass(frozen=True, slots=True)
class Weed:
    """A running seaweedfs: everyone may read objects in `public`, nobody but the owner lists anything."""

    url: str

    def client(self, keys: Keys = OWNER) -> Any:
        """A boto3 client with `keys`."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=keys.id,
            aws_secret_access_key=keys.secret,
        )

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """Copies the files of `folder`; its s3:// address."""
        client = self.client()
        for path in sorted(folder.iterdir()):
            client.upload_file(str(path), bucket, f"{prefix}/{path.name}")
        return f"s3://{bucket}/{prefix}"


@contextmanager
def seaweedfs(folder: Path, program: str | None = None) -> Iterator[Weed]:
    """A seaweedfs whose data lie in `folder`. Raises MissingServerError where it is not installed or does not start."""
    own = Path(sys.executable).parent
    program = program or shutil.which("weed", path=f"{own}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise MissingServerError("seaweedfs (weed) is not installed. Install it with: make setup-dev")
    (folder / "s3.json").write_text(IDENTITIES)
    (folder / "data").mkdir(exist_ok=True)
    ports = free_ports(10)
    url = f"http://127.0.0.1:{ports[0]}"
    named = ("s3", "master", "volume", "filer", "admin")
    options = [f"-{name}.port={port}" for name, port in zip(named, ports[:5], strict=True)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(named, ports[5:], strict=True)]
    command = [program, "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-master.telemetry=false", "-volume.preStopSeconds=0", f"-s3.config={folder / 's3.json'}"]
    command += [f"-{name}.localSocket={folder / name}.sock" for name in ("s3", "filer")]
    command += ["-bucket=videos,public"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
    with _running(command, folder, f"{url}/healthz", environ={**quiet, "HOME": str(folder)}):
        server = Weed(url)
        _await_buckets(server, folder / "log")
        yield server


def _await_buckets(server: Weed, log: Path) -> None:
    """Waits for the buckets, which are made a moment after the server says that it is well."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    for _ in range(100):
        try:
            if {"videos", "public"} <= {bucket["Name"] for bucket in server.client().list_buckets()["Buckets"]}:
                return
        except (BotoCoreError, ClientError):
            pass
        time.sleep(0.1)
    raise MissingServerError(f"seaweedfs has not made its buckets within 10 s. Its log:\n{_end_of(log)}")


# HTTP


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx. `at("plain")` is the address under which it serves `folder`, in one of the ways below.

    plain     as it comes: ranges, ETag                private   401 unless signed in as reader:secret
    forbidden 403                                      slow      512 KiB a second for each answer
    whole     without ranges                           untagged  ranges, no ETag
    busy      503 beyond 40 requests a second          hasty     429 beyond 40 requests a second
    moved     301 to plain, on the same scheme         upgraded  301 to https://
    elsewhere 301 to another host, which writes down in `told` the Authorization it was sent
    """

    url: str
    folder: Path
    told: Path

    def at(self, way: str) -> str:
        return f"{self.url}/{way}"


CONFIGURATION = """
daemon off;
pid {own}/nginx.pid;
error_log {own}/log;
worker_processes 1;
{user}
events {{ worker_connections 512; }}
http {{
  access_log off;
  gzip off;
  types {{ }}
  default_type application/octet-stream;
  log_format told "$http_authorization";
  client_body_temp_path {own}/body;
  proxy_temp_path {own}/proxy;
  fastcgi_temp_path {own}/fastcgi;
  uwsgi_temp_path {own}/uwsgi;
  scgi_temp_path {own}/scgi;
  limit_req_zone $server_port zone=busy:1m rate=40r/s;
  limit_req_zone $server_port zone=hasty:1m rate=40r/s;
  server {{
    listen 127.0.0.1:{port};
    location /plain/ {{ alias {folder}/; }}
    location /private/ {{ alias {folder}/; auth_basic shards; auth_basic_user_file {own}/users; }}
    location /forbidden/ {{ return 403; }}
    location /slow/ {{ alias {folder}/; limit_rate 512k; }}
    location /whole/ {{ alias {folder}/; max_ranges 0; }}
    location /untagged/ {{ alias {folder}/; etag off; }}
    location /busy/ {{ alias {folder}/; limit_req zone=busy burst=4 nodelay; limit_req_status 503; }}
    location /hasty/ {{ alias {folder}/; limit_req zone=hasty burst=4 nodelay; limit_req_status 429; }}
    location ~ ^/moved/(.*)$ {{ return 301 http://127.0.0.1:{port}/plain/$1; }}
    location ~ ^/upgraded/(.*)$ {{ return 301 https://127.0.0.1:{port}/plain/$1; }}
    location ~ ^/elsewhere/(.*)$ {{ return 301 http://127.0.0.1:{other}/$1; }}
  }}
  server {{
    listen 127.0.0.1:{other};
    access_log {own}/told told;
    location / {{ alias {folder}/; }}
  }}
}}
"""


@contextmanager
def nginx_server(own: Path, program: Callable[[], tuple[Path, str]] | None = None) -> Iterator[Nginx]:
    """An nginx whose files lie in `own`. Raises MissingServerError where it cannot be had or does not start."""
    path, libraries = (program or nginx_program)()
    port, other = free_ports(2)
    folder = own / "served"
    folder.mkdir(exist_ok=True)
    (own / "users").write_text("reader:{SSHA}" + _salted("secret") + "\n")
    user = "user root;" if os.geteuid() == 0 else ""  # its workers would otherwise be nobody, who may not read here
    written = CONFIGURATION.format(own=own, folder=folder, port=port, other=other, user=user)
    (own / "nginx.conf").write_text(written)
    command = [str(path), "-p", str(own), "-e", str(own / "log"), "-c", str(own / "nginx.conf")]
    environ = {**os.environ, "LD_LIBRARY_PATH": libraries} if libraries else dict(os.environ)
    server = Nginx(f"http://127.0.0.1:{port}", folder, own / "told")
    with _running(command, own, server.at("plain/"), environ=environ):
        yield server


def _salted(password: str) -> str:
    """The password as nginx keeps it in a file of users."""
    salt = b"salt"
    return base64.b64encode(hashlib.sha1(password.encode() + salt, usedforsecurity=False).digest() + salt).decode()


def nginx_program() -> tuple[Path, str]:
    """nginx, and where libraries lie that the machine lacks. Raises MissingServerError where it cannot be had."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
    if found is not None:
        return Path(found), ""
    UNPACKED.parent.mkdir(exist_ok=True)
    with UNPACKED.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests' processes want it at the same time; one fetches it
        if not UNPACKED.is_dir():
            partial = UNPACKED.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _unpack_nginx(partial)
            partial.rename(UNPACKED)
    return UNPACKED / "usr" / "sbin" / "nginx", _libraries(UNPACKED)


def _unpack_nginx(folder: Path) -> None:
    """Debian's nginx below `folder`, and those of its libraries that the machine lacks."""
    program = folder / "usr" / "sbin" / "nginx"
    for package in ("nginx-light", "nginx"):  # which of the two holds the program depends on the release
        depends = _unpack(package, folder)
        if program.is_file():
            break
    else:
        raise MissingServerError("neither nginx-light nor nginx holds /usr/sbin/nginx")
    if "not found" in _words(["ldd", str(program)]):
        for library in re.findall(r"\blib[a-z0-9.+-]+", depends):
            _unpack(library, folder)
    if missing := re.findall(r"(\S+) => not found", _words(["ldd", str(program)], libraries=_libraries(folder))):
        raise MissingServerError(f"nginx lacks {', '.join(missing)}")


def _unpack(package: str, folder: Path) -> str:
    """Unpacks a package of the machine's Debian into `folder`; what it depends on."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise MissingServerError(f"nginx is not installed, and without {tool} it cannot be fetched. Install nginx")
    fetched = folder / "fetched"
    fetched.mkdir(exist_ok=True)
    lists = folder / "lists"  # of our own, where the machine's are missing or out of date
    own = [f"-oDir::State::Lists={lists}", f"-oDir::Cache={folder / 'cache'}", "-oDebug::NoLocking=1"]
    try:
        if lists.is_dir():
            _words(["apt-get", *own, "download", package], cwd=fetched)
        else:
            try:
                _words(["apt-get", "download", package], cwd=fetched)
            except MissingServerError:
                (lists / "partial").mkdir(parents=True)
                _words(["apt-get", *own, "update"])
                _words(["apt-get", *own, "download", package], cwd=fetched)
    except MissingServerError as missing:
        raise MissingServerError(f"nginx is not installed and cannot be fetched: {missing}") from None
    (archive,) = fetched.glob(f"{package}_*.deb")
    _words(["dpkg", "-x", str(archive), str(folder)])
    return _words(["dpkg", "-f", str(archive), "Depends"])


def _libraries(folder: Path) -> str:
    return os.pathsep.join(sorted({str(path.parent) for path in folder.glob("usr/lib/*/*.so*")}))


def _words(command: Sequence[str], *, cwd: Path | None = None, libraries: str = "") -> str:
    """What a command prints. Raises MissingServerError where it fails or takes minutes."""
    environ = {**os.environ, "LC_ALL": "C", **({"LD_LIBRARY_PATH": libraries} if libraries else {})}
    try:
        done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingServerError(f"{' '.join(command)}: {error}") from None
    if done.returncode:
        raise MissingServerError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


# Processes


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def _running(command: Sequence[str], folder: Path, url: str, *, environ: Mapping[str, str]) -> Iterator[None]:
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
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], program: str, url: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise MissingServerError(f"{program} ended with code {code}. Its log:\n{_end_of(log)}")
        try:
            with urlopen(url, timeout=5):
                return
        except HTTPError as error:
            error.close()
            if error.code < 500:  # it serves: that a folder may not be listed is an answer too
                return
        except (URLError, OSError):
            pass
        time.sleep(0.05)
    raise MissingServerError(f"{program} does not answer within a minute. Its log:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] or "(empty)"
