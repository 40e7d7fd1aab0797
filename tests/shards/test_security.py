"""What a location, a server, a manifest or a tar may make a reader do: read shards from there, and nothing else."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.access import Access
from shards.copy import copy_split
from shards.errors import FormatError, ShardError, UnreachableError
from shards.format import MEMBERS, encode
from shards.manifest import parse_manifest
from shards.split import open_split
from shards.stores import Range, connect
from shards.stores.connect import is_url, place_of
from shards.stores.remote import RemoteStore
from tests import http_server
from tests.conftest import drawn_record, drawn_split
from tests.hostile import patient, replaced
from tests.shards.test_fuzz import sealed_manifest

ROOT = Path(__file__).parents[2]
SECRETS = ("secret", "c2VjcmV0", "OnNlY3JldA", "cmVhZGVyOnNlY3JldA")  # as it is, and in base64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("security") / "split1"
    drawn_split(folder, train=3, test=1, frames=3, per_shard=2)
    return folder


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[tuple[http_server.Server, http_server.Server]]:
    """Two servers of the same files, which know nothing of each other."""
    with http_server.serving(folder.parent) as one, http_server.serving(folder.parent) as other:
        yield one, other


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One retry, soon after; answers may take as long as a busy machine needs for them."""
    long = timedelta(seconds=60)
    backoff = {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=50), "base": 2}
    monkeypatch.setattr(connect, "TIMES", dict.fromkeys(("connect_timeout", "read_timeout", "timeout"), long))
    monkeypatch.setattr(connect, "RETRY", {"max_retries": 1, "retry_timeout": long, "backoff": backoff})


def refused(act: Callable[[], object], family: type[ShardError] = ShardError) -> str:
    """What the error says. It and all that hangs on to it hold no secret."""
    with patient(120), pytest.raises(family) as caught:
        act()
    told = "".join(traceback.format_exception(caught.value))
    assert [secret for secret in SECRETS if secret in told.replace(__file__, "")] == [], told
    return str(caught.value)


# Locations

OTHER_KINDS = [
    *(
        "pipe:cat /etc/passwd",
        "PIPE:id",
        " pipe:id",
        "file:///etc/passwd",
        "FILE:///etc",
        "file://host/etc",
        "file:/etc",
    ),
    *("ftp://host/split1", "s3n://bucket/split1", "s3a://bucket/x", "hdfs://host/x", "gopher://host/x", "ssh://host/x"),
    *("data://text/plain,x", "javascript://host/%0aalert(1)", "jar:file:///x!/y", "unix:///run/docker.sock"),
    *("http:/host/split1", "http:///split1", "https:host", "http://", "s3://", "s3:/bucket/x", "://host/x"),
]
TWO_READINGS = [
    *("http:\\\\host\\split1", "http://host\\@other/split1", "http://host\\split1", "https:/\\host/x"),
    *("http://ho\nst/split1", "http://host/a\nb", "http://host/a\r\nX-Evil: 1", "http://ho\tst/x", "http://host/\0"),
    *("http://ho st/x", "http://host:port/x", "http://host:99999/x", "http://host:80:81/x", "http://[::1/x"),
    *("http://reader:pa/secret@host/x", "http://reader:12/secret@host/x", "http://reader:pa?secret@host/x"),
    *("http://reader:pa#secret@host/x", "http://reader:secret@ho℀st/x", "\\\\host\\share\\split1"),
]


@pytest.mark.parametrize("location", [*OTHER_KINDS, *TWO_READINGS, "data:,x", "javascript:alert(1)", "//host/split1"])
def test_a_location_that_is_not_plainly_of_a_known_kind_is_refused(location: str, tmp_path: Path) -> None:
    refused(lambda: open_split(location, access=Access(cache=tmp_path)), ShardError)


@pytest.mark.parametrize(
    "location", ["http:\\\\reader:secret@host", " http:/reader:secret@host/x", "ftp://a:secret@h/x"]
)
def test_what_is_refused_is_not_repeated_with_its_password(location: str) -> None:
    refused(lambda: open_split(location), UnreachableError)


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("HTTP://Host.example/split1", "Host.example"),
        ("https://trusted.example@evil.example/x", "evil.example"),
        ("https://reader:secret@host.example:8000/x", "host.example:8000"),
        ("https://reader:p%40ss%2Fsecret@host.example/x", "host.example"),
        ("  https://host.example/x\n", "host.example"),
        ("http://[::1]:80/x", "[::1]:80"),
    ],
)
def test_the_host_that_is_asked_is_the_one_that_is_shown(location: str, host: str) -> None:
    place = place_of(location)
    assert place.shown.startswith((f"http://{host}/", f"https://{host}/"))
    assert place.folder.startswith((f"http://{host}", f"https://{host}"))
    assert "secret" not in repr(place)


@given(st.text(st.sampled_from("htps3:/\\@#?%.a1 \n\t[]{}"), max_size=30))
def test_any_text_is_a_path_or_a_url_that_is_taken_apart_or_refused(text: str) -> None:
    if is_url(text):
        try:
            place = place_of(text)
        except UnreachableError:
            return
        assert place.folder.partition(":")[0] in connect.SCHEMES
        assert not set(place.shown) & set("\n\t\\@?#")


# Manifests and keys


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../train-000000.tar", "file:///etc/passwd", "http://elsewhere/train-000000.tar"),
        *("pipe:id", "train-000000.tar\0", "./train-000000.tar", "TRAIN-000000.tar", "train-000001.tar", "..", ""),
    ],
)
def test_a_manifest_names_files_of_its_own_folder_and_no_others(folder: Path, name: str) -> None:
    tree = json.loads((folder / "manifest.json").read_bytes())
    for path in (("shards", 0, "name"), ("index", "name")):
        damaged = sealed_manifest(replaced(tree, ("parts", "train", *path), name))
        with pytest.raises(FormatError, match="expected"):
            parse_manifest(damaged, "https://host/split1/manifest.json")


@pytest.mark.parametrize(
    "part", ["../train", "/train", "tr/ain", "Train", "", "a" * 40, "train\n", "http://host/train"]
)
def test_a_part_is_a_plain_word(folder: Path, part: str) -> None:
    tree = json.loads((folder / "manifest.json").read_bytes())
    tree["parts"][part] = tree["parts"].pop("train")
    with pytest.raises(FormatError):
        parse_manifest(sealed_manifest(tree), "m")


KEYS = ["../x", "/etc/x", "..", "a/b", "a\\b", "%2e%2e%2fx", "%2E%2E%2Fx/../y", "%2e", "a%", "%00%", "a\nb", ""]


@pytest.mark.parametrize("own", [True, False], ids=["of that name", "of another name"])
@pytest.mark.parametrize("key", KEYS)
def test_a_tar_whose_names_leave_its_folder_is_neither_read_nor_copied(tmp_path: Path, key: str, own: bool) -> None:
    path, target = tarred(tmp_path, key, key if own and key else "v_x"), tmp_path / "copy.files"
    refused(lambda: list(open_split(path, access=Access(cache=tmp_path / "cache")).index("train")))
    refused(lambda: copy_split(path, target))
    assert {one.name for one in tmp_path.iterdir()} <= {"cache", path.name}


def test_a_name_that_a_shell_would_take_for_another_is_a_name(tmp_path: Path) -> None:
    for name in ("~", "$HOME", "-rf", "*"):
        with open_split(tarred(tmp_path, name, name), access=Access(cache=tmp_path / "cache")) as split:
            assert [row.name for row in split.index("train")] == [name]


def tarred(folder: Path, key: str, name: str) -> Path:
    """A tar of one record under a key that need not be that of its name."""
    members, path = encode(drawn_record(name, frames=2)), folder / "train-000000.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member in MEMBERS:
            entry = tarfile.TarInfo(f"{key}.{member}")
            entry.size = len(members[member])
            tar.addfile(entry, io.BytesIO(members[member]))
    return path


# Servers


def test_redirects_to_the_same_scheme_are_followed(folder: Path, servers: tuple[http_server.Server, ...]) -> None:
    one, other = servers
    for target in ("/split1", f"{other.url}/split1"):
        with open_split(f"{one.url}/moved?to={quote(target, safe='')}") as split, open_split(folder) as local:
            assert split.read("train", 1) == local.read("train", 1)
    assert any(path.startswith("/split1/train") for path, _ in other.heard())


@pytest.mark.parametrize("target", ["file:///etc", "file://localhost/etc", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_redirects_to_another_scheme_are_refused(target: str, servers: tuple[http_server.Server, ...]) -> None:
    url = f"{servers[0].url}/moved?to={quote(target, safe='')}"
    refused(lambda: RemoteStore(url).small("passwd"), UnreachableError)
    refused(lambda: RemoteStore(url).fetch([Range("passwd", 0, 10)]), UnreachableError)
    refused(lambda: open_split(url), UnreachableError)


def test_redirects_in_a_circle_come_to_an_end(servers: tuple[http_server.Server, ...], quick: None) -> None:
    url = f"{servers[0].url}/moved?to={quote('/moved', safe='')}"
    refused(lambda: RemoteStore(url).small("manifest.json"), UnreachableError)


def test_user_password_and_query_are_not_sent_on_to_another_host(servers: tuple[http_server.Server, ...]) -> None:
    one, other = servers
    one.heard(), other.heard()
    signed = one.url.replace("http://", "http://reader:secret@")
    with open_split(f"{signed}/moved?to={quote(other.url + '/split1', safe='')}&token=secret") as split:
        split.read("train", 0)
    at_first, at_second = one.heard(), other.heard()
    assert {authorization for _, authorization in at_first} <= {http_server.SIGNED_IN, None}
    assert http_server.SIGNED_IN in {authorization for _, authorization in at_first}
    assert at_second
    assert [(path, authorization) for path, authorization in at_second if authorization or "?" in path] == []


def test_a_signed_query_goes_to_its_host_alone_and_into_no_message(servers: tuple[http_server.Server, ...]) -> None:
    store = RemoteStore(f"{servers[0].url}/token/split1?token=secret")
    assert store.small("manifest.json")
    refused(lambda: store.small("nothing"))
    assert "secret" not in f"{store!r} {store.location}"


@pytest.mark.parametrize("kind", ["huge", "endless"])
@pytest.mark.parametrize("ask", ["open", "small", "fetch"])
def test_an_answer_without_end_is_refused_without_being_read(
    kind: str, ask: str, servers: tuple[http_server.Server, ...], quick: None, tmp_path: Path
) -> None:
    server = servers[0]
    server.sent()
    url = f"{server.url}/{kind}"
    acts: dict[str, Callable[[], object]] = {
        "open": lambda: open_split(url, access=Access(cache=tmp_path, deadline=5)),
        "small": lambda: RemoteStore(url, Access(deadline=5)).small("manifest.json", limit=1000),
        "fetch": lambda: RemoteStore(url, Access(deadline=5)).fetch([Range("train-000000.tar", 0, 1000)]),
    }
    refused(acts[ask])
    assert server.sent() < 100 << 20
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 1 << 20


def test_a_manifest_or_an_index_longer_than_it_may_be_is_refused(folder: Path, tmp_path: Path) -> None:
    with http_server.serving(tmp_path) as server:
        for name in ("manifest.json", "train.index", "test.index", "train-000000.tar", "train-000001.tar"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        manifest = parse_manifest((folder / "manifest.json").read_bytes(), "m")
        with (tmp_path / "train.index").open("ab") as file:
            file.truncate(1 << 24)
        with open_split(server.url) as split:
            told = refused(lambda: split.index("train"), FormatError)
        assert f"{1 << 24} bytes, expected at most {manifest.parts['train'].index.size}" in told
        with pytest.raises(FormatError, match="bytes, expected at most 100"):
            RemoteStore(server.url).small("manifest.json", limit=100)


@pytest.fixture(scope="module")
def https_server(
    tmp_path_factory: pytest.TempPathFactory, servers: tuple[http_server.Server, http_server.Server]
) -> Iterator[str]:
    """A server with a certificate of its own making that sends everybody to the second of `servers`, by http://."""
    place = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(place / "key.pem"), "-out", str(place / "cert.pem")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl makes no certificate here")
    code = TLS.format(cert=str(place / "cert.pem"), key=str(place / "key.pem"), target=servers[1].url)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        try:
            assert one.stdout is not None
            yield f"https://localhost:{one.stdout.readline().strip()}"
        finally:
            one.terminate()


TLS = """
import http.server, ssl, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", {target!r} + self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain({cert!r}, {key!r})
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""


def test_a_certificate_that_nobody_vouches_for_is_refused(https_server: str, quick: None) -> None:
    url = https_server.replace("https://", "https://reader:secret@")
    assert "certificate" in refused(lambda: open_split(f"{url}/split1"), UnreachableError)


def test_nobody_is_led_from_https_to_http(
    https_server: str,
    servers: tuple[http_server.Server, ...],
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "TIMES", {**connect.TIMES, "allow_invalid_certificates": True})
    servers[1].heard()
    url = https_server.replace("https://", "https://reader:secret@")
    refused(lambda: open_split(f"{url}/split1"), UnreachableError)
    assert servers[1].heard() == []


# The source


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file, by its dotted name as it stands there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


SOURCES = sorted(
    path for package in ("shards", "stmul", "configs", "preprocess") for path in (ROOT / package).rglob("*.py")
)
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "yaml.unsafe_load"),
    *("yaml.full_load", "yaml.unsafe_load_all", "np.fromfile", "joblib.load", "pd.read_pickle", "torch.jit.load"),
    *("marshal.loads", "marshal.load", "pty.spawn", "np.fromregex"),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_starts_a_shell_unpickles_or_evaluates(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names} & {"pickle", "cPickle", "dill", "shelve", "marshal"}, path
    for name, call in calls(path):
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in FORBIDDEN, f"{path}:{call.lineno}: {name}"
        assert given.get("shell", "False") == "False", f"{path}:{call.lineno}: {name} with a shell"
        assert given.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}: {name} unpickles"
        if name == "torch.load":
            assert given.get("weights_only") == "True", f"{path}:{call.lineno}: torch.load without weights_only=True"
        if name == "yaml.load":
            assert ast.unparse(call.args[1]) == "_Loader", f"{path}:{call.lineno}: yaml.load"
            assert "class _Loader(yaml.SafeLoader)" in path.read_text(encoding="utf-8")
        if name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.check_call"):
            assert not isinstance(call.args[0], ast.JoinedStr), f"{path}:{call.lineno}: a command made of text"


def test_what_looks_for_shells_and_pickles_finds_them(tmp_path: Path) -> None:
    for source in (
        *(
            "import pickle",
            "from pickle import loads",
            "eval('1')",
            "import os\nos.system('x')",
            "import torch\ntorch.load(x)",
        ),
        *("subprocess.run('x', shell=True)", "np.load(x, allow_pickle=True)", "yaml.load(x, yaml.Loader)"),
    ):
        path = tmp_path / "source.py"
        path.write_text(source, encoding="utf-8")
        with pytest.raises(AssertionError):
            test_no_source_starts_a_shell_unpickles_or_evaluates(path)
