"""Downloads that nobody waits for: one at a time, behind the reader's back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait

from shards.errors import ChangedError, CorruptRecordError, ShardError, TruncatedShardError
from shards.stores.hands import Hands

FIRST_PAUSE, LAST_PAUSE = 60.0, 3600.0  # seconds after a failure; each in a row doubles them
GRACE = 0.5  # seconds that the thread has to end in

_log = logging.getLogger("shards")


class Later:
    """A thread that calls `download(blob)` for each blob wanted, in the order they were first wanted, once.

    What fails is said once, however often it does. A damaged blob is left alone; other failures may pass, and after a
    pause the blob is tried again when something is next wanted.
    """

    def __init__(self, download: Callable[[str], None]) -> None:
        self._download = download
        self._lock = threading.Lock()
        self._hands = Hands(1, "shards-later", awaited=True)
        self._todo: dict[str, None] = {}  # the first wanted stands first
        self._known: set[str] = set()  # whatever was wanted: what others evict is not fetched over and over
        self._serving: Future[None] | None = None
        self._pause, self._not_before = FIRST_PAUSE, 0.0
        self._told = False

    @property
    def ended(self) -> bool:
        """Whether downloads are to stop."""
        return self._hands.closed

    def want(self, blobs: Sequence[str]) -> None:
        """Remembers the blobs that are new, and sees to it that somebody is at work."""
        if not self._todo and self._known.issuperset(blobs):
            return
        with self._lock:
            for blob in blobs:
                if blob not in self._known:
                    self._known.add(blob)
                    self._todo[blob] = None
            if self._todo and self._serving is None and time.monotonic() >= self._not_before and not self.ended:
                self._serving = self._hands.begin(self._serve)

    def anew(self, blob: str) -> None:
        """Has a blob downloaded once more, when it is next wanted."""
        with self._lock:
            self._known.discard(blob)

    def end(self) -> None:
        """Begins nothing more."""
        self._hands.close()

    def join(self) -> None:
        """Waits a moment for what is going on, which has been told to stop."""
        serving = self._serving
        if serving is not None:
            wait([serving], GRACE)

    def _serve(self) -> None:
        while (blob := self._next()) is not None:
            try:
                self._download(blob)
            except ShardError as error:
                self._failed(blob, error)
            else:
                self._pause = FIRST_PAUSE

    def _next(self) -> str | None:
        with self._lock:
            if not self._todo or self.ended or time.monotonic() < self._not_before:
                self._serving = None
                return None
            blob = next(iter(self._todo))
            del self._todo[blob]
            return blob

    def _failed(self, blob: str, error: ShardError) -> None:
        if not self.ended and not self._told:
            self._told = True
            _log.warning("%s. Reading goes on by ranges", error)
        if not isinstance(error, (CorruptRecordError, TruncatedShardError, ChangedError)):
            with self._lock:
                self._todo[blob] = None  # behind the others: it may be the blob
                self._not_before = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, LAST_PAUSE)
