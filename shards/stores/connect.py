"""From a URL to a connection: what may be shown, what is only sent, and where credentials come from.

Secrets given in a URL (`user:password@`, a signed query) are sent to that server and stand nowhere else: in no
location, message or repr. Credentials of s3:// are found where `aws configure` users keep them; without any, requests
are anonymous. gs:// and az:// are handed to obstore as they are, with the credentials that it finds (not tested).
"""

from __future__ import annotations

import base64
import http.client
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from shards.errors import UnreachableError
from shards.manifest import NAME

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, HTTPStore, RetryConfig, S3Store

    Client: TypeAlias = HTTPStore | S3Store | GCSStore | AzureStore

SCHEMES = ("http", "https", "s3", "gs", "az")

# A connection that stands still, or takes too long in all, is given up, and the bytes that are missing asked for again.
TIMES: ClientConfig = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=10),
    "timeout": timedelta(seconds=120),
}
# With jitter, as obstore waits. How long to go on after that is decided by who asks (`remote`).
RETRY: RetryConfig = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}

SOURCES = (
    "the environment (AWS_ACCESS_KEY_ID), a profile of ~/.aws (AWS_PROFILE, else default; with credential_process or"
    " single sign-on), the container's and the machine's role"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A URL taken apart."""

    shown: str  # without user, password, query and fragment
    file: str  # the tar that the URL names, or nothing where it names a folder
    folder: str = field(repr=False)  # what names are appended to: with the query, without user and password
    user: str = field(repr=False)  # "user:password", or nothing
    signed: bool  # whether there is a query


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A client, and where its credentials came from (never the credentials)."""

    client: Client = field(repr=False)
    credentials: str  # a clause for messages


def is_url(location: str) -> bool:
    """Whether `location` is a URL of any kind, to be given to `place_of`, and not a path."""
    return re.match(r"\s*([a-z][a-z0-9+.-]+:[/\\]|pipe:)", location, re.IGNORECASE) is not None


def place_of(location: str) -> Place:
    """What `location` says; a manifest stands for its folder.

    Raises UnreachableError for all but http://, https:// and s3://.
    """
    location = location.strip()
    try:
        url = urlsplit(location)
        host = url.netloc.rpartition("@")[2]
        known = not re.search(r"[\x00-\x1f\x7f\\]", location) and not re.search(r"\s", url.netloc) and url.port != 0
    except ValueError:  # what it says repeats the URL, password and all
        known = False
    if not known or ("@" in url.path and url.scheme in ("http", "https") and "@" not in url.netloc):
        raise UnreachableError(
            "a URL that cannot be read (line breaks, backslashes, a port that is no number, or an @ behind the host; in"
            " a password and in a path, / ? # @ are written %2F %3F %23 %40); expected https://HOST/FOLDER"
        )
    path = url.path.rstrip("/").removesuffix(f"/{NAME}")
    shown = urlunsplit((url.scheme, host, path, "", ""))
    if url.scheme not in SCHEMES or not host:
        raise UnreachableError(
            f"{shown if host else url.scheme + ':...'}: not a kind of location that is read; expected a folder, an"
            " LMDB, a .tar, http://HOST/..., https://HOST/..., s3://BUCKET/..., gs://BUCKET/... or az://CONTAINER/..."
        )
    if url.scheme not in ("http", "https") and ("@" in url.netloc or url.query):
        raise UnreachableError(
            f"{shown}: expected a bucket and a path and nothing else in an {url.scheme}:// URL; keep keys in ~/.aws or"
            " in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    above, _, last = path.rpartition("/")
    file = unquote(last) if last.endswith(".tar") else ""
    return Place(
        shown=shown,
        file=file,
        folder=urlunsplit((url.scheme, host, above if file else path, url.query, "")),
        user=unquote(url.netloc.rpartition("@")[0]),
        signed=bool(url.query),
    )


def connect(place: Place) -> Connection:
    """A connection for reading below `place`; nothing is sent yet. Raises UnreachableError for unusable settings."""
    if place.folder.startswith("http"):
        return _http(place)
    if not place.folder.startswith("s3:"):
        return _other(place)
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    try:
        return _s3(place)
    except (BotoCoreError, ValueError) as error:  # botocore names profiles and variables, not what is in them
        reason = str(error).rstrip(".")
    raise UnreachableError(
        f"{place.shown}: the AWS settings cannot be used: {reason}. See what they give with:"
        " aws sts get-caller-identity"
    )


def _http(place: Place) -> Connection:
    from obstore.store import HTTPStore

    options: ClientConfig = {**TIMES, "allow_http": place.folder.startswith("http:")}
    credentials = "no user name and password stand in the URL (they are saved nowhere: give it in full each time)"
    if place.user:
        encoded = base64.b64encode(place.user.encode()).decode()
        options["default_headers"] = {"authorization": f"Basic {encoded}"}
        credentials = "the user name and password in the URL were sent"
    elif place.signed:
        credentials = "the query in the URL was sent; if it is a signature, it may have expired"
    return Connection(
        client=HTTPStore(place.folder, client_options=options, retry_config=RETRY), credentials=credentials
    )


def leads_elsewhere(place: Place, name: str) -> str:
    """The scheme and host to which an http:// server sends who asks it for `name`, if not to http:// again; else "".

    obstore follows redirects within https:// alone or from http:// to anywhere: this asks first, and follows nothing.
    """
    url = urlsplit(place.folder)
    if url.scheme != "http":
        return ""
    path = urlunsplit(("", "", f"{url.path}/{quote(name)}", url.query, ""))
    seconds = cast(timedelta, TIMES["connect_timeout"]).total_seconds()
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=seconds)
    try:
        connection.request("GET", path, headers={"Range": "bytes=0-0"})
        answer = connection.getresponse()
        target = urlsplit(answer.getheader("Location", "") if 300 <= answer.status < 400 else "")
    except (OSError, ValueError, http.client.HTTPException):
        return ""  # whatever it is, the request proper will meet it and say so
    finally:
        connection.close()
    return f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.scheme not in ("", "http") else ""


def _other(place: Place) -> Connection:
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        client = cast("Client", from_url(place.folder, client_options=TIMES, retry_config=RETRY))
    except (BaseError, ValueError):
        client = None
    if client is None:  # outside: what obstore said would otherwise hang on to it
        raise UnreachableError(
            f"{place.shown}: no connection can be made with what the environment says (GOOGLE_APPLICATION_CREDENTIALS,"
            " or AZURE_STORAGE_ACCOUNT_NAME and a key)"
        )
    return Connection(client=client, credentials="the request was signed with what the environment gives, if anything")


def _s3(place: Place) -> Connection:
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    session = boto3.Session()
    settings = session.client("s3").meta  # knows AWS_ENDPOINT_URL, the profile's endpoint_url, and the region
    endpoint = urlsplit(settings.endpoint_url)
    amazon = re.search(r"\.amazonaws\.com(\.cn)?$", endpoint.hostname or "") is not None
    found = session.get_credentials()
    if found is not None:
        found.get_frozen_credentials()  # an expired sign-in speaks up here, in words
        credentials = (
            f"the request was signed with what boto3 found ({found.method}; it looks, in turn, in {SOURCES}; the"
            f" profile is {session.profile_name!r})"
        )
    else:
        credentials = (
            f"no credentials were found, so the request was anonymous (looked, in turn, in {SOURCES}; the profile is"
            f" {session.profile_name!r})"
        )
    bucket, prefix = urlsplit(place.folder)[1:3]
    client = S3Store(
        bucket,
        prefix=prefix.strip("/") or None,
        config={
            "region": settings.region_name or "us-east-1",
            "skip_signature": found is None,
            **({} if amazon else {"endpoint": settings.endpoint_url}),
        },
        client_options={**TIMES, "allow_http": endpoint.scheme == "http"},
        retry_config=RETRY,
        credential_provider=None if found is None else Boto3CredentialProvider(session),
    )
    return Connection(client=client, credentials=credentials)
