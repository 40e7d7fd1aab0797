"""A split behind a URL, read by ranged GETs through obstore.

Nothing is imported or connected before the first byte is wanted. Every range is a request of its own, many at a time;
the first answer about a file tells its version (ETag, size), and all later requests ask for that version and no other.

What breaks is mended where it can be: obstore asks again for the bytes that are missing (connection lost, answer cut
short or standing still, 429, 5xx), waiting longer each time. Once a server has answered it is given `Access.deadline`
seconds to come back; who waits says so meanwhile. What cannot be had becomes one sentence of ours (`answers`).
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, Future, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from shards.access import Access
from shards.errors import ChangedError, FormatError, ShardError, TruncatedShardError, UnreachableError
from shards.index import Row
from shards.manifest import LARGEST, shard_name
from shards.record import Blob
from shards.stores import Range, Stream
from shards.stores.answers import WITHOUT_RANGES, explained, kind_of
from shards.stores.answers import WithoutRanges as WithoutRanges
from shards.stores.blocks import Blocks
from shards.stores.connect import Connection, connect, leads_elsewhere, place_of
from shards.stores.hands import Hands
from shards.tar import Read

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta

    from shards.stores.connect import Client

T = TypeVar("T")

GAP = 128 * 1024  # bytes: about what a connection carries during one round trip
WASTE = 0.03
PART = 8 << 20  # bytes of one request where a file is read through
PARTS_AHEAD = 4
PATIENCE = 10.0  # seconds after which who waits says so, and what others overtook is asked for a second time
OVERTAKEN = 32  # answers to others meanwhile
BROKEN = 4  # times that an answer without ranges may break off without having brought more
RENEWALS = 8  # times that new credentials are looked for, for one request: a key may have expired before its turn

_user: list[int] = []  # the process in which obstore's threads run: one fact per process, whatever the stores
_log = logging.getLogger("shards")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one content of a file from another."""

    etag: str  # the time of the last change where the server gives no ETag
    size: int  # bytes
    strong: bool  # whether a server can be asked for this very ETag


@dataclass(kw_only=True, slots=True)
class _Session:
    """What lives from the first read to `close`."""

    hands: Hands
    closed: threading.Event = field(default_factory=threading.Event)
    connection: Connection | None = None
    answers: int = 0
    last: float = 0.0  # when the last answer came; 0: there was none yet
    told: float = 0.0  # when it was last said that there is none


class RemoteStore:
    """A folder of shards, or some tars of a folder, behind a URL. Threads may share it.

    `names` are the files of each part where there is no manifest to name them.
    """

    gap = GAP
    waste = WASTE

    def __init__(
        self, location: str, access: Access | None = None, names: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._place = place_of(location)
        self._access, self._names = access or Access(), names
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._versions: dict[str, Version] = {}
        self._whole_only = False  # whether the server has been found to know no ranges
        self._unasked = set[str]()  # files of which versions cannot be asked for, only compared

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

    def small(self, name: str, limit: int = LARGEST) -> bytes:
        """The whole of the file `name`. Raises FormatError where it has more than `limit` bytes, before reading it."""
        import obstore

        def ask(client: Client) -> bytes:
            answer = obstore.get(client, name)
            if (size := answer.meta["size"]) > limit:
                raise FormatError(f"{self._url(name)}: {size} bytes, expected at most {limit}. Copy the split again")
            return bytes(answer.bytes())

        return self._asked(name, ask)

    def size(self, blob: str) -> int:
        """How many bytes `blob` has."""
        return self._version(blob).size

    def etag(self, blob: str) -> str:
        """What names the version of `blob`; with its size and place it names its content."""
        return self._version(blob).etag

    def reader(self, blob: str) -> Read:
        """A function (start, stop) -> bytes for scanning `blob`: short reads come from blocks read ahead."""
        return Blocks(lambda start, stop: self.fetch([Range(blob, start, stop)])[0], self.size(blob)).read

    def place(self, part: str, row: Row, stream: Stream) -> tuple[str, int]:
        """The shard of a record, and where in it the JPEGs of `stream` begin."""
        blob, start, _ = self.member(part, row, f"video.{stream}.mjpeg")
        return blob, start

    def member(self, part: str, row: Row, member: str) -> tuple[str, int, int]:
        """The shard of a record, and where in it `member` begins and ends."""
        name = self._names[part][row.shard] if self._names else self.file or shard_name(part, row.shard)
        return name, *row.span(member)

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, in order; all are asked for at once, as far as `Access.connections` allows.

        Raises TruncatedShardError where a blob ends before a range does, ChangedError where it is not the one that was
        read before, WithoutRanges where the server knows none, UnreachableError where it cannot be read.
        """
        session = self._open()
        found: list[Blob | None] = [None if wanted.stop > wanted.start else b"" for wanted in ranges]
        asked: dict[Future[Blob], int] = {}

        def ask(number: int) -> None:
            asked[session.hands.begin(partial(self._part, ranges[number]))] = number

        for number, blob in enumerate(found):
            if blob is None:
                ask(number)
        begun, answers, until = time.monotonic(), session.answers, FIRST_EXCEPTION
        while asked:
            done, _ = wait(asked, timeout=PATIENCE, return_when=until)
            for future in done:
                number = asked.pop(future)
                found[number] = self._got(future)
            for future in [future for future, number in asked.items() if found[number] is not None]:
                del asked[future]
            if asked and not done:
                first = ranges[min(asked.values())]
                self._tell(session, f"{len(asked)} of {len(ranges)} ranges, the first of {first.blob}", begun)
                until = FIRST_COMPLETED
                if session.answers - answers >= OVERTAKEN:  # the network is well: these few have bad luck
                    answers = session.answers
                    for number in sorted(set(asked.values())):
                        ask(number)
        return [blob for blob in found if blob is not None]

    def again(self, wanted: Range) -> Blob:
        """The bytes of a range once more."""
        return self.fetch([wanted])[0]

    def whole(self, blob: str, start: int = 0) -> Iterator[Blob]:
        """The bytes of `blob` from `start` on, in order, in parts that are asked for ahead of their use.

        A server without ranges is asked for all of it at once; then `start` must be 0: else WithoutRanges is raised.
        """
        size, begun = self.size(blob), self._open()
        parts = iter([Range(blob, at, min(at + PART, size)) for at in range(start, size, PART)])
        ahead = deque[Future[Blob]]()
        for part in parts:
            ahead.append(begun.hands.begin(partial(self._part, part)))
            if len(ahead) == 1 and part.start == start:
                try:
                    self._got(ahead[0])
                except WithoutRanges:
                    if start:
                        raise
                    yield from self._plain(blob)
                    return
            if len(ahead) > PARTS_AHEAD:
                yield self._got(ahead.popleft())
        while ahead:
            yield self._got(ahead.popleft())

    def close(self) -> None:
        """Ends reading and lets go of the connections; who waits gets ShardError; another read would begin anew."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.closed.set()
            session.hands.close()

    def _got(self, future: Future[T]) -> T:
        try:
            return future.result()
        except CancelledError:
            raise ShardError(f"{self.location}: closed while it was being read") from None

    def _plain(self, blob: str) -> Iterator[Blob]:
        """All of a blob in one answer; where that breaks off, in another, of which the first bytes are passed over."""
        done = broken = 0
        while True:
            at = 0
            try:
                for chunk in self._chunks(blob):
                    at += len(chunk)
                    if at > done:
                        yield memoryview(chunk)[len(chunk) - (at - done) :]
                        done, broken = at, 0
                return
            except UnreachableError:
                broken += 1
                if broken > BROKEN:
                    raise

    def _chunks(self, blob: str) -> Iterator[bytes]:
        import obstore
        from obstore.exceptions import BaseError

        def ask(client: Client) -> GetResult:
            answer = obstore.get(client, blob)
            self._must_be_same(blob, answer.meta)
            return answer

        chunks = iter(self._asked(blob, ask).stream(min_chunk_size=PART))
        while True:
            try:
                chunk = next(chunks, b"")
            except (BaseError, OSError, ValueError) as error:
                failure = self._failure(error, blob, "")
            else:
                if not chunk:
                    return
                yield chunk
                continue
            raise failure  # outside of the handler, as in `_asked`

    def _part(self, wanted: Range) -> Blob:
        import obstore

        blob, size = wanted.blob, wanted.stop - wanted.start
        if self._whole_only:  # those that were waiting when this was found
            raise WithoutRanges(f"{self._url(blob)}: {WITHOUT_RANGES}")

        def ask(client: Client) -> Blob:
            options: GetOptions = {"range": (wanted.start, wanted.stop)}
            version = self._versions.get(blob)
            if version is not None and version.strong and blob not in self._unasked:
                options["if_match"] = version.etag
            answer = obstore.get(client, blob, options=options)
            self._must_be_same(blob, answer.meta)
            return memoryview(answer.bytes())

        data = self._asked(blob, ask)
        if len(data) != size:
            raise self._cut(blob, wanted.stop)
        return data

    def _version(self, blob: str) -> Version:
        """Asked with a ranged GET: signed URLs are often good for nothing else."""
        import obstore

        known = self._versions.get(blob)
        if known is not None:
            return known

        def ask(client: Client) -> Version:
            return self._must_be_same(blob, obstore.get(client, blob, options={"range": (0, 1)}).meta)

        try:
            return self._asked(blob, ask)
        except WithoutRanges:
            return self._asked(blob, lambda client: self._must_be_same(blob, obstore.get(client, blob).meta))

    def _must_be_same(self, blob: str, meta: ObjectMeta) -> Version:
        """The version that `meta` tells of. Raises ChangedError where another one was seen before."""
        etag = meta["e_tag"] or ""
        now = Version(etag or meta["last_modified"].isoformat(), meta["size"], etag.startswith('"'))
        known = self._versions.setdefault(blob, now)
        if known != now:
            raise ChangedError(
                f"{self._url(blob)}: was replaced while it was being read: it had {known.size} bytes and ETag"
                f" {known.etag}, now {now.size} and {now.etag}. Put the old one back, or begin again with the new"
            )
        return now

    def _asked(self, name: str, ask: Callable[[Client], T]) -> T:
        """What `ask` gives, asked until it gives something, or nothing can be hoped for."""
        from obstore.exceptions import BaseError

        session, begun, pause, renewals = self._open(), time.monotonic(), 0.2, 0
        while not session.closed.is_set():
            connection = self._connected(session, name)
            unasked = name in self._unasked  # before asking: another thread may add it meanwhile
            try:
                found = ask(connection.client)
            except (BaseError, OSError, ValueError) as error:
                kind, failure = kind_of(error), self._failure(error, name, connection.credentials)
            else:
                session.last, session.answers = time.monotonic(), session.answers + 1
                return found
            # Outside of the handler, for what obstore said would otherwise hang on to what is raised.
            if kind == "without ranges":
                self._whole_only = True
            if kind == "changed" and not unasked:
                self._unasked.add(name)  # ask for whatever is there: either it is another one, or this was a mistake
            elif kind == "refused" and session.answers and renewals < RENEWALS and self._renewed(session, connection):
                renewals += 1
            elif kind != "passing" or not session.last:
                raise failure
            elif (waited := time.monotonic() - begun) > self._access.deadline:
                failure.add_note(f"Waited {waited:.0f} s for it")
                raise failure
            else:
                self._tell(session, f"{name}: {failure.args[0].partition(': ')[2]}", max(begun, session.last))
                session.closed.wait(random.uniform(0.5, 1) * pause)
                pause = min(2 * pause, PATIENCE)
        raise ShardError(f"{self.location}: closed while it was being read")

    def _tell(self, session: _Session, what: str, since: float) -> None:
        """Says what is being waited for, now and then."""
        now = time.monotonic()
        if now - since >= PATIENCE and now - session.told >= PATIENCE:
            session.told = now
            _log.warning("%s: waiting for %.0f s for %s", self.location, now - since, what)

    def _renewed(self, session: _Session, refused: Connection) -> bool:
        """Whether there is another connection now, with credentials found anew: keys expire during a training."""
        if not self._place.folder.startswith("s3:"):
            return False
        with self._lock:
            if session.connection is refused:
                session.connection = None
        return True

    def _open(self) -> _Session:
        if _user and _user[0] != os.getpid():  # before the lock: the parent may have held it
            raise UnreachableError(
                f"{self.location}: this process is a fork of one that had already read from the network, and threads do"
                " not survive a fork. Start workers with spawn or forkserver, or fork before the first read"
            )
        with self._lock:
            if self._session is None:
                _user[:] = [os.getpid()]
                hands = Hands(self._access.connections, "shards-remote", awaited=True)
                self._session = _Session(hands=hands)
            return self._session

    def _connected(self, session: _Session, name: str) -> Connection:
        known = session.connection
        if known is not None:
            return known
        with self._lock:
            if session.connection is None:
                if not session.answers and (elsewhere := leads_elsewhere(self._place, name)):
                    raise UnreachableError(
                        f"{self.location}: sends elsewhere, to {elsewhere}, which is not followed. Give that address"
                    )
                session.connection = connect(self._place)
            return session.connection

    def _url(self, name: str) -> str:
        return self.location if name == self.file else f"{self.location}/{name}"

    def _cut(self, blob: str, stop: int = 0) -> TruncatedShardError:
        where = f"byte {stop}" if stop else "the bytes asked for"
        return TruncatedShardError(
            f"{self.location}: {blob} ends before {where}: its copy was cut, or it is another file than the index was"
            " made of. Copy it there again, with the index"
        )

    def _failure(self, error: Exception, name: str, credentials: str) -> ShardError:
        kind = kind_of(error)
        if kind == "ended":
            return self._cut(name)
        reason = explained(error, credentials=credentials, s3=self.location.startswith("s3:"))
        return (WithoutRanges if kind == "without ranges" else UnreachableError)(f"{self._url(name)}: {reason}")
