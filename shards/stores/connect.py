"""From a URL to a connection: what may be shown, what is only sent, and where credentials come from.

Secrets given in a URL (`user:password@`, a signed query) are sent to that server and stand nowhere else: in no
location, message or repr. Credentials of s3:// are found where `aws configure` users keep them; without any, requests
are anonymous.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote, urlsplit, urlunsplit

from shards.errors import UnreachableError
from shards.manifest import NAME

if TYPE_CHECKING:
    from obstore.store import ClientConfig, HTTPStore, RetryConfig, S3Store

    Client: TypeAlias = HTTPStore | S3Store

SCHEMES = ("http", "https", "s3")

TIMES: ClientConfig = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=10),  # a connection that stands still is given up, and the rest asked for again
    "timeout": timedelta(seconds=300),
}
RETRY: RetryConfig = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}


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
    return re.match(r"[a-z][a-z0-9+.-]*://|pipe:", location, re.IGNORECASE) is not None


def place_of(location: str) -> Place:
    """What `location` says; a manifest stands for its folder.

    Raises UnreachableError for all but http://, https:// and s3://.
    """
    try:
        url = urlsplit(location.strip())
        host = url.netloc.rpartition("@")[2]
    except ValueError as error:
        raise UnreachableError(f"a URL that cannot be read ({error}); expected https://HOST/FOLDER") from None
    path = url.path.rstrip("/").removesuffix(f"/{NAME}")
    shown = urlunsplit((url.scheme, host, path, "", ""))
    if url.scheme not in SCHEMES or not host:
        raise UnreachableError(
            f"{shown if host else url.scheme + ':...'}: not a kind of location that is read; expected a folder, an"
            " LMDB, a .tar, http://HOST/..., https://HOST/... or s3://BUCKET/..."
        )
    if url.scheme == "s3" and ("@" in url.netloc or url.query):
        raise UnreachableError(
            f"{shown}: expected a bucket and a path and nothing else in an s3:// URL; keep keys in ~/.aws or in"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
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
    if not place.folder.startswith("s3:"):
        return _http(place)
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
    credentials = "no user name and password stand in the URL"
    if place.user:
        encoded = base64.b64encode(place.user.encode()).decode()
        options["default_headers"] = {"authorization": f"Basic {encoded}"}
        credentials = "the user name and password in the URL were sent"
    elif place.signed:
        credentials = "the query in the URL was sent; if it is a signature, it may have expired"
    return Connection(
        client=HTTPStore(place.folder, client_options=options, retry_config=RETRY), credentials=credentials
    )


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
        credentials = f"the request was signed with what boto3 found ({found.method})"
    else:
        credentials = (
            "no credentials were found in the environment (AWS_ACCESS_KEY_ID), in profile"
            f" {session.profile_name!r} of ~/.aws, by single sign-on or from the machine's role, so the request was"
            " anonymous"
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
