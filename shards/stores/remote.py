"""A split behind http(s):// or s3://, read by ranged GETs through obstore.

Nothing is imported or connected before the first byte is wanted. obstore retries and waits within the bounds of
`connect.RETRY`; what it cannot get becomes one sentence of ours, for its own messages repeat the URL, secrets and all.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from shards.errors import ShardError, TruncatedShardError, UnreachableError
from shards.index import Row
from shards.manifest import shard_name
from shards.record import Blob
from shards.stores import Range, Stream
from shards.stores.connect import Connection, connect, place_of
from shards.tar import Read

if TYPE_CHECKING:
    from obstore.store import HTTPStore, S3Store

T = TypeVar("T")

GAP = 128 * 1024  # bytes: about what a connection carries during one round trip
BLOBS_AT_ONCE = 8  # obstore itself reads up to 10 ranges of one blob at the same time
BLOCK = 64 * 1024  # bytes read ahead where a file is scanned, at first
LARGEST_BLOCK = 8 * 1024 * 1024

_user: list[int] = []  # the process in which obstore's threads run: one fact per process, whatever the stores


class RemoteStore:
    """A folder of shards, or a single tar, behind a URL. Threads may share it."""

    gap = GAP

    def __init__(self, location: str) -> None:
        self._place = place_of(location)
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"RemoteStore({self.location!r})"

    @property
    def location(self) -> str:
        """The URL without what is secret in it."""
        return self._place.shown

    @property
    def file(self) -> str:
        """The name of the tar that the URL names, or nothing where it names a folder."""
        return self._place.file

    def small(self, name: str) -> bytes:
        """The whole of the file `name`. Raises UnreachableError where it cannot be read."""
        import obstore

        return self._asked(name, lambda client: bytes(obstore.get(client, name).bytes()))

    def size(self, blob: str) -> int:
        """How many bytes `blob` has. Asked with a ranged GET: signed URLs are often good for nothing else."""
        import obstore

        return self._asked(blob, lambda client: int(obstore.get(client, blob, options={"range": (0, 1)}).meta["size"]))

    def reader(self, blob: str) -> Read:
        """A function (start, stop) -> bytes for scanning `blob`: short reads come from blocks read ahead."""
        return _Blocks(lambda start, stop: self.fetch([Range(blob, start, stop)])[0], self.size(blob)).read

    def place(self, part: str, row: Row, stream: Stream) -> tuple[str, int]:
        """The shard of a record, and where in it the JPEGs of `stream` begin."""
        blob, start, _ = self.member(part, row, f"video.{stream}.mjpeg")
        return blob, start

    def member(self, part: str, row: Row, member: str) -> tuple[str, int, int]:
        """The shard of a record, and where in it `member` begins and ends."""
        return self.file or shard_name(part, row.shard), *row.span(member)

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, in order; several blobs, and several ranges of each, are read at the same time.

        Raises TruncatedShardError where a blob ends before a range does, UnreachableError where it cannot be read.
        """
        self._connected()
        of_blob: dict[str, list[int]] = {}
        for i, wanted in enumerate(ranges):
            if wanted.stop > wanted.start:
                of_blob.setdefault(wanted.blob, []).append(i)
        reads = [[ranges[i] for i in indices] for indices in of_blob.values()]
        parts = map(self._fetch, reads) if len(reads) < 2 else self._threads().map(self._fetch, reads)
        found: list[Blob] = [b""] * len(ranges)
        for indices, blobs in zip(of_blob.values(), parts, strict=True):
            for i, blob in zip(indices, blobs, strict=True):
                found[i] = blob
        return found

    def again(self, wanted: Range) -> Blob:
        """The bytes of a range once more."""
        return self.fetch([wanted])[0]

    def close(self) -> None:
        """Ends the reading threads and lets go of the connections; another read would open them again."""
        with self._lock:
            pool, self._pool, self._connection = self._pool, None, None
        if pool is not None:
            pool.shutdown()

    def _fetch(self, ranges: Sequence[Range]) -> list[memoryview]:
        import obstore

        blob, starts, stops = ranges[0].blob, [r.start for r in ranges], [r.stop for r in ranges]
        found = self._asked(
            blob, lambda client: obstore.get_ranges(client, blob, starts=starts, ends=stops, coalesce=0)
        )
        blobs = [memoryview(part) for part in found]
        for wanted, part in zip(ranges, blobs, strict=True):
            if len(part) != wanted.stop - wanted.start:
                raise self._cut(wanted.blob, wanted.stop)
        return blobs

    def _asked(self, name: str, ask: Callable[[HTTPStore | S3Store], T]) -> T:
        from obstore.exceptions import BaseError

        connection = self._connected()
        try:
            return ask(connection.client)
        except (BaseError, OSError, ValueError) as error:
            failure = self._explained(error, name, connection.credentials)
        raise failure  # outside: what obstore said would otherwise hang on to it

    def _connected(self) -> Connection:
        if _user and _user[0] != os.getpid():  # before the lock: the parent may have held it
            raise UnreachableError(
                f"{self.location}: this process is a fork of one that had already read from the network, and threads do"
                " not survive a fork. Start workers with spawn or forkserver, or fork before the first read"
            )
        with self._lock:
            if self._connection is None:
                _user[:] = [os.getpid()]
                self._connection = connect(self._place)
            return self._connection

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(BLOBS_AT_ONCE, thread_name_prefix="shards-remote")
            return self._pool

    def _cut(self, blob: str, stop: int = 0) -> TruncatedShardError:
        where = f"byte {stop}" if stop else "the bytes asked for"
        return TruncatedShardError(
            f"{self.location}: {blob} ends before {where}: its copy was cut, or it is another file than the index was"
            " made of. Copy it there again, with the index"
        )

    def _explained(self, error: Exception, name: str, credentials: str) -> ShardError:
        """What `error` means, in a sentence made of parts that are known to hold no secret."""
        text, s3 = str(error), self.location.startswith("s3:")
        url = self.location if name == self.file else f"{self.location}/{name}"
        found = re.search(r"status(?: code)?: (\d{3})", text)
        status = int(found[1]) if found else 0
        if status == 416 or "UnexpectedRange" in text:
            return self._cut(name)
        if "RangeNotSupported" in text:
            problem = (
                "the server sends the whole file where a part is asked for (python -m http.server is one such). Serve"
                " the shards with a server that knows byte ranges (nginx, Apache, S3), or copy them to a disk"
            )
        elif status == 404 or isinstance(error, FileNotFoundError):
            what = "no such bucket" if "NoSuchBucket" in text else "not there (404)"
            problem = (
                f"{what}. Check the address: a split is the folder of a manifest.json, a shard's name ends in .tar"
            )
        elif status in (401, 403):
            also = "; S3 also says so of what is not there, to those who may not list the bucket" if s3 else ""
            problem = f"no permission ({status}): {credentials}. Check that they may read this{also}"
        elif status:
            region = s3 and status in (301, 307, 400)
            hint = "The bucket may be in another region: set AWS_REGION" if region else "Try again later"
            problem = f"the server answered with status {status}. {hint}"
        else:
            problem = f"{_reason(text)}. Check the address and the network"
        return UnreachableError(f"{url}: {problem}")


def _reason(text: str) -> str:
    reasons = {
        "dns error": "the name of the host is not known",
        "Connection refused": "the host refuses the connection",
        "TimedOut": "no answer in time",
        "timed out": "no answer in time",
        "certificate": "its certificate is not trusted",
        "parsing Path": "not a name that can be asked for",
    }
    return next((reason for word, reason in reasons.items() if word in text), "the connection failed")


class _Blocks:
    """Reads of one file, mostly onwards, through a block read ahead; it doubles while nothing is passed over.

    A scan of a tar's headers so costs about two small reads for each record, a scan of all its bytes few large ones.
    """

    def __init__(self, fetch: Read, size: int) -> None:
        self._fetch, self._size = fetch, size
        self._start, self._block, self._ahead = 0, memoryview(b""), BLOCK // 2

    def read(self, start: int, stop: int) -> Blob:
        """The bytes start .. stop."""
        head = self._block[start - self._start : stop - self._start] if start >= self._start else self._block[:0]
        if len(head) == stop - start:
            return head
        onwards = self._start <= start <= self._start + len(self._block)
        self._ahead = min(2 * self._ahead, LARGEST_BLOCK) if onwards else BLOCK
        self._start = start + len(head)
        end = max(stop, min(self._start + self._ahead, self._size))
        self._block = memoryview(self._fetch(self._start, end))
        tail = self._block[: stop - self._start]
        return b"".join([head, tail]) if head else tail
