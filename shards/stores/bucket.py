"""A place behind s3://, gs:// or az:// that a split is written to: files put there and read back.

obstore signs, splits large files into parts, retries and takes a given-up upload back; nothing stands under a name
before all of it has arrived. What it says of an error is not repeated, for it may hold what is secret.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from shards.errors import ShardError, UnreachableError
from shards.manifest import ShardFile
from shards.record import Blob
from shards.stores.answers import explained, kind_of, status_of
from shards.stores.connect import Connection, connect, place_of
from shards.stores.hands import Hands
from shards.stores.remote import RemoteStore

if TYPE_CHECKING:
    from shards.stores.connect import Client

T = TypeVar("T")

PART = 8 << 20  # bytes of a part of a large file, at least
MOST_PARTS = 9000  # S3 takes 10,000
PARTS_AT_ONCE = 4  # of a file
REQUESTS_AT_ONCE = 4  # beside the parts
PATIENCE = timedelta(minutes=5)  # for a part: a slow line, shared by several, must get it through

_FULL = ("StorageFull", "QuotaExceeded", "InsufficientStorage", "InsufficientCapacity", "status code: 507")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What a bucket says about a file."""

    size: int  # bytes
    etag: str  # empty where the service tells none


class Bucket:
    """A folder of a bucket, to be written. Threads may share it."""

    def __init__(self, location: str) -> None:
        self._place = place_of(location)
        if self._place.folder.startswith("http"):
            raise UnreachableError(
                f"{self._place.shown}: a web server takes no files. Copy into a folder that it serves, or to"
                " s3://BUCKET/FOLDER"
            )
        if self._place.file:
            raise UnreachableError(f"{self._place.shown}: expected a folder in a bucket, found the name of a .tar")
        # One reader for what was there and one for what was sent: a file that changes under a reader is an error.
        self._before, self._after = RemoteStore(location), RemoteStore(location)
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        # In threads of their own: who waits for one can be stopped, and the end of the process minds those at work.
        self._hands = Hands(REQUESTS_AT_ONCE, "shards-bucket", awaited=True)

    @property
    def location(self) -> str:
        """The URL."""
        return self._place.shown

    def find(self, name: str) -> Stored | None:
        """What is there under `name`, or None. Raises UnreachableError where that cannot be asked."""
        import obstore

        try:
            found = self._asked(name, lambda client: obstore.head(client, name))
        except _AbsentError:
            return None
        return Stored(size=found["size"], etag=found["e_tag"] or "")

    def small(self, name: str) -> bytes | None:
        """The whole of a small file, or None where there is none."""
        import obstore

        try:
            return self._asked(name, lambda client: bytes(obstore.get(client, name).bytes()))
        except _AbsentError:
            return None

    def before(self, name: str) -> Iterator[Blob]:
        """The bytes of a file that was there before anything was sent."""
        return self._before.whole(name)

    def after(self, name: str) -> tuple[str, Iterator[Blob]]:
        """The ETag and the bytes of a file that was sent."""
        return self._done(partial(self._after.etag, name)), self._after.whole(name)

    def pieces(self, name: str, size: int) -> Iterator[Blob]:
        """The bytes of a file of `size`, whichever it is now, piece by piece."""
        import obstore

        for start in range(0, size, PART):
            length = min(PART, size - start)
            yield self._asked(name, partial(_range, obstore.get_range, name, start, length))

    def put(self, file: ShardFile, parts: Iterator[Blob]) -> None:
        """Writes `file`, whose bytes are `parts`; where `parts` raises an error, nothing is written.

        Its SHA-256 stands beside it as metadata, for other tools; nothing here believes it.
        """
        import obstore

        size = max(PART, -(-file.size // MOST_PARTS))

        def ask(client: Client) -> object:
            data = b"".join(parts) if file.size <= PART else parts
            return obstore.put(
                _patient(client),
                file.name,
                data,
                attributes={"sha256": file.sha256},
                use_multipart=file.size > PART,
                chunk_size=size,
                max_concurrency=PARTS_AT_ONCE,
            )

        self._asked(file.name, ask)

    def put_small(self, name: str, data: bytes) -> None:
        """Writes a small file."""
        import obstore

        self._asked(name, lambda client: obstore.put(client, name, data))

    def files(self, below: str = "") -> dict[str, int]:
        """The bytes of all files, or of those in the folder `below`, by name. Raises UnreachableError."""
        import obstore

        def ask(client: Client) -> dict[str, int]:
            return {
                str(one["path"]): one["size"] for batch in obstore.list(client, prefix=below or None) for one in batch
            }

        return self._asked(below, ask)

    def delete(self, name: str) -> None:
        """Takes a file away, if it is there. Raises UnreachableError where that is not allowed."""
        import obstore

        with suppress(_AbsentError):
            self._asked(name, lambda client: obstore.delete(client, name))

    def close(self) -> None:
        """Lets go of the connections; who waits for an answer gets ShardError."""
        self._hands.close()
        self._before.close()
        self._after.close()

    def _done(self, work: Callable[[], T]) -> T:
        try:
            return self._hands.begin(work).result()
        except CancelledError:
            raise ShardError(f"{self.location}: closed while it was being written") from None

    def _asked(self, name: str, ask: Callable[[Client], T]) -> T:
        from obstore.exceptions import BaseError

        def answer() -> T:
            connection = self._connected()
            try:
                return ask(connection.client)
            except (BaseError, OSError, ValueError) as error:
                failure = self._failure(error, name, connection.credentials)
            raise failure  # outside: what obstore said would otherwise hang on to it

        return self._done(answer)

    def _connected(self) -> Connection:
        with self._lock:
            if self._connection is None:
                self._connection = connect(self._place)
            return self._connection

    def _failure(self, error: Exception, name: str, credentials: str) -> UnreachableError:
        text, url, s3 = str(error), f"{self.location}/{name}", self.location.startswith("s3:")
        if "NoSuchBucket" in text or "ContainerNotFound" in text or "bucket does not exist" in text:
            return UnreachableError(f"{url}: no such bucket. Make it first, or check the address")
        if isinstance(error, FileNotFoundError) or status_of(error) == 404:
            return _AbsentError(f"{url}: not there (404), or no such bucket. Check the address")
        if any(word in text for word in _FULL):
            return UnreachableError(f"{url}: cannot be written: no space is left there. Make room, and copy again")
        if kind_of(error) == "refused":
            return UnreachableError(
                f"{url}: no permission ({status_of(error) or 403}): {credentials}. Check that they may write and read"
                " there (s3:PutObject, s3:GetObject), and list the bucket (s3:ListBucket), without which S3 does not"
                " tell what is not there"
            )
        return UnreachableError(f"{url}: {explained(error, credentials=credentials, s3=s3)}")


class _AbsentError(UnreachableError):
    """There is no such file."""


def _range(read: Callable[..., Any], name: str, start: int, length: int, client: Client) -> bytes:
    return bytes(read(client, name, start=start, length=length))


def _patient(client: Any) -> Any:
    """The same client, for sending: a part that is on its way is no connection that stands still."""
    return type(client)(
        prefix=client.prefix,
        config=client.config,
        client_options={**(client.client_options or {}), "timeout": 2 * PATIENCE, "read_timeout": PATIENCE},
        retry_config={**(client.retry_config or {}), "retry_timeout": 3 * PATIENCE},
        credential_provider=client.credential_provider,
    )
