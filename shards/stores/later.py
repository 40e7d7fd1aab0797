"""Downloads that nobody waits for: one at a time, behind the reader's back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from shards.errors import ChangedError, CorruptRecordError, ShardError, TruncatedShardError

FIRST_PAUSE, LAST_PAUSE = 60.0, 3600.0  # seconds after a failure; each in a row doubles them
GRACE = 0.5  # seconds that the thread has to end in

_log = logging.getLogger("shards")


class Later:
    """A daemon thread that calls `download(blob)` for each blob wanted, in the order they were first wanted.

    What fails is said once, however often it does. A damaged blob is left alone; other failures may pass: after a pause
    it is tried again.
    """

    def __init__(self, download: Callable[[str], None]) -> None:
        self._download = download
        self._changed = threading.Condition()
        self._todo: dict[str, None] = {}  # the first wanted stands first
        self._known: set[str] = set()  # what was ever wanted: none is downloaded twice, though it may be evicted
        self._thread: threading.Thread | None = None
        self._ended = self._told = False

    def want(self, blobs: Iterable[str]) -> None:
        """Remembers the blobs that are new."""
        if self._known.issuperset(blobs := list(blobs)):
            return
        with self._changed:
            for blob in blobs:
                if blob not in self._known and not self._ended:
                    self._known.add(blob)
                    self._todo[blob] = None
            if self._thread is None and self._todo:
                self._thread = threading.Thread(target=self._serve, name="shards-later", daemon=True)
                self._thread.start()
            self._changed.notify()

    def anew(self, blob: str) -> None:
        """Has a blob downloaded once more, when it is next wanted."""
        with self._changed:
            self._known.discard(blob)

    def end(self) -> None:
        """Begins nothing more."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def join(self) -> None:
        """Waits a moment for what is going on, which has been told to stop."""
        if self._thread is not None:
            self._thread.join(GRACE)

    def _serve(self) -> None:
        pause = FIRST_PAUSE
        while (blob := self._next()) is not None:
            try:
                self._download(blob)
            except ShardError as error:
                if not self._failed(error):
                    pause = self._put_back(blob, pause)
            else:
                pause = FIRST_PAUSE

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._todo or self._ended)
            if self._ended:
                return None
            blob = next(iter(self._todo))
            del self._todo[blob]
            return blob

    def _failed(self, error: ShardError) -> bool:
        """Whether that is final; says it, the first time."""
        if not self._ended and not self._told:
            self._told = True
            _log.warning("%s. Reading goes on by ranges", error)
        return self._ended or isinstance(error, (CorruptRecordError, TruncatedShardError, ChangedError))

    def _put_back(self, blob: str, pause: float) -> float:
        with self._changed:
            self._todo[blob] = None  # behind the others: it may be the blob
            self._changed.wait_for(lambda: self._ended, timeout=pause)
        return min(2 * pause, LAST_PAUSE)
