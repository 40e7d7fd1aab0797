"""nginx, serving a folder in the ways that web servers do: the machine's, or else Debian's, unpacked once.

`.venv/nginx` holds what was unpacked; nothing is installed, and no rights are needed.
"""

from __future__ import annotations

import base64
import datetime
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from urllib.request import urlopen

from tests.processes import MissingServerError, free_ports, running

UNPACKED = Path(__file__).parents[1] / ".venv" / "nginx"


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx. `at("plain")` is the address under which it serves `folder`, in one of the ways below.

    plain     as it comes: ranges, ETag                private   401 unless signed in as reader:secret
    forbidden 403                                      slow      512 KiB a second for each answer
    whole     without ranges                           untagged  ranges, no ETag
    busy      503 beyond 40 requests a second          hasty     429 beyond 40 requests a second
    moved     301 to plain                             elsewhere 301 to another host, by http://
    upgraded  301 to plain, by https://

    `secure("plain")` is the same by https://, for those who trust `certificate`. The other host writes down in `told`
    what reaches it.
    """

    url: str
    secure_url: str
    other_url: str
    folder: Path
    told: Path
    certificate: Path

    def at(self, way: str) -> str:
        return f"{self.url}/{way}"

    def secure(self, way: str) -> str:
        return f"{self.secure_url}/{way}"

    def reached(self) -> list[str]:
        """What the other host was asked so far: of each request its Authorization, - where there is none, and path."""
        with urlopen(f"{self.other_url}/mark"):  # answered in turn, so that what came before it is written by then
            pass
        return [line for line in self.told.read_text().splitlines() if not line.endswith(" /mark")]


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
  log_format told "$http_authorization $request_uri";
  client_body_temp_path {own}/body;
  proxy_temp_path {own}/proxy;
  fastcgi_temp_path {own}/fastcgi;
  uwsgi_temp_path {own}/uwsgi;
  scgi_temp_path {own}/scgi;
  limit_req_zone $server_port zone=busy:1m rate=40r/s;
  limit_req_zone $server_port zone=hasty:1m rate=40r/s;
  ssl_certificate {own}/certificate.pem;
  ssl_certificate_key {own}/key.pem;
  server {{
    listen 127.0.0.1:{port};
    listen 127.0.0.1:{secure} ssl;
    location /plain/ {{ alias {folder}/; }}
    location /private/ {{ alias {folder}/; auth_basic shards; auth_basic_user_file {own}/users; }}
    location /forbidden/ {{ return 403; }}
    location /slow/ {{ alias {folder}/; limit_rate 512k; }}
    location /whole/ {{ alias {folder}/; max_ranges 0; }}
    location /untagged/ {{ alias {folder}/; etag off; }}
    location /busy/ {{ alias {folder}/; limit_req zone=busy burst=4 nodelay; limit_req_status 503; }}
    location /hasty/ {{ alias {folder}/; limit_req zone=hasty burst=4 nodelay; limit_req_status 429; }}
    location ~ ^/moved/(.*)$ {{ return 301 $scheme://$http_host/plain/$1; }}
    location ~ ^/elsewhere/(.*)$ {{ return 301 http://127.0.0.1:{other}/$1; }}
    location ~ ^/upgraded/(.*)$ {{ return 301 https://127.0.0.1:{secure}/plain/$1; }}
  }}
  server {{
    listen 127.0.0.1:{other};
    access_log {own}/told told;
    location / {{ alias {folder}/; }}
    location = /mark {{ return 204; }}
  }}
}}
"""


@contextmanager
def nginx_server(own: Path, program: Callable[[], tuple[Path, str]] | None = None) -> Iterator[Nginx]:
    """An nginx whose files lie in `own`. Raises MissingServerError where it cannot be had or does not start."""
    path, libraries = (program or nginx_program)()
    port, secure, other = free_ports(3)
    folder = own / "served"
    folder.mkdir(exist_ok=True)
    (own / "users").write_text("reader:{SSHA}" + _salted("secret") + "\n")
    _write_certificate(own)
    user = "user root;" if os.geteuid() == 0 else ""  # its workers would otherwise be nobody, who may not read here
    settings = {"own": own, "folder": folder, "port": port, "secure": secure, "other": other, "user": user}
    (own / "nginx.conf").write_text(CONFIGURATION.format(**settings))
    command = [str(path), "-p", str(own), "-e", str(own / "log"), "-c", str(own / "nginx.conf")]
    environ = {**os.environ, "LD_LIBRARY_PATH": libraries} if libraries else dict(os.environ)
    urls = f"http://127.0.0.1:{port}", f"https://127.0.0.1:{secure}", f"http://127.0.0.1:{other}"
    server = Nginx(*urls, folder, own / "told", own / "certificate.pem")
    with running(command, own, server.at("plain/"), environ=environ):
        yield server


def _write_certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1 that is its own authority, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


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
    for package in ("nginx", "nginx-light"):  # which of the two holds the program depends on the release
        depends = _unpack(package, folder)
        if program.is_file():
            break
    else:
        raise MissingServerError("neither nginx nor nginx-light holds /usr/sbin/nginx")
    if "not found" in _words(["ldd", str(program)]):
        for library in re.findall(r"\blib[a-z0-9.+-]+", depends):
            _unpack(library, folder)
    if missing := re.findall(r"(\S+) => not found", _words(["ldd", str(program)], libraries=_libraries(folder))):
        raise MissingServerError(f"nginx lacks {', '.join(missing)}")
    for name in ("fetched", "lists", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)


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
                _words(["apt-get", *own, "-oAPT::Update::Error-Mode=any", "update"])
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
