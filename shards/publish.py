"""A split sent to a bucket: every file sent, read back and compared, the manifest last.

What proves that a file arrived is its bytes, read back and hashed. Services differ in what they check (some take any
checksum that is sent along, or forget what they were told about a file), an ETag is a hash of the content for some
uploads and a number for others, and metadata only says what the sender meant to send. Files that were read back are
noted in manifest.json.partial, each with the ETag that it had then: who publishes again reads back only those that are
not noted, or that were replaced since. The note goes when the manifest has come.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from shards.errors import CorruptRecordError, ShardError
from shards.manifest import NAME, Manifest, ShardFile, dump_manifest, parse_manifest
from shards.record import Blob
from shards.split import Split, open_split
from shards.stores.bucket import Bucket
from shards.stream import in_order
from shards.transfer import checked, counted, files_of, pieces

FILES_AT_ONCE = 2  # one is sent while the other is read back
NOTES = NAME + ".partial"
NOTE_EVERY = 1.0  # seconds

Progress = Callable[[int, int], None]  # bytes done, in all; each counts twice: sent, and read back


def publish(source: str | Path, target: str, progress: Progress | None = None) -> Manifest:
    """Sends the tar shards at `source` to `target`, a folder in a bucket; the manifest that is there then.

    Whoever finds a manifest there finds every file that it names, whole. Where the split is there already, nothing is
    done; what an interrupted call sent is not sent again. Raises ShardError where another split is there, or `source`
    is damaged, UnreachableError where the bucket cannot be written.
    """
    with closing(Bucket(target)) as bucket, open_split(source) as split:
        files = files_of(split.manifest)
        if split.manifest.store != "tar" or not all(file.sha256 for file in files):
            raise ShardError(
                f"{split.location}: what is published is a folder of tar shards. Make one first:"
                f" stmul shards copy {split.location} FOLDER"
            )
        if (there := _there(bucket, split.manifest)) is not None:
            return there
        noted = _Notes(bucket, split.manifest)
        passed, stop = counted(2 * sum(file.size for file in files), progress), threading.Event()

        def send(file: ShardFile) -> tuple[str, str]:
            return file.name, _send(split, bucket, file, noted.etag(file.name), passed, stop)

        try:
            with closing(in_order(files, send, threads=FILES_AT_ONCE, ahead=FILES_AT_ONCE)) as sent:  # type: ignore[type-var]
                try:
                    for name, etag in sent:
                        noted.add(name, etag)
                finally:
                    stop.set()  # before the threads are waited for
            _finish(bucket, dump_manifest(split.manifest))
        except ShardError as error:
            error.add_note("What arrived stays: the same command goes on from there")
            raise
        return split.manifest


def _there(bucket: Bucket, wanted: Manifest) -> Manifest | None:
    """The manifest in `bucket` if it is of the same split, None if there is none."""
    where = f"{bucket.location}/{NAME}"
    data = bucket.small(NAME)
    if data is None:
        return None
    try:
        found = parse_manifest(data, where)
    except ShardError as error:
        raise ShardError(f"{error}. Give another target, or delete what is there") from error
    if (found.digest, found.store) == (wanted.digest, wanted.store):
        return found
    raise ShardError(
        f"{bucket.location}: already holds another split ({found.dataset} {found.split} as {found.store}, digest"
        f" {found.digest[:12]}..., not {wanted.digest[:12]}...). Give another target, or delete that one"
    )


def _send(
    split: Split, bucket: Bucket, file: ShardFile, noted: str, passed: Callable[[int], None], stop: threading.Event
) -> str:
    """The ETag of `file`, once it is in `bucket` and has been read back."""

    def counted_on(parts: Iterable[Blob]) -> Iterator[Blob]:
        for part in parts:
            if stop.is_set():
                raise ShardError(f"{bucket.location}: stopped while {file.name} was on its way")
            yield part
            passed(len(part))

    where, there = f"{bucket.location}/{file.name}", bucket.find(file.name)
    if (
        there is not None
        and there.size == file.size
        and ((noted and noted == there.etag) or _same(bucket.before(file.name), file, where, stop))
    ):
        passed(2 * file.size)
        return there.etag
    bucket.put(file, counted_on(checked(pieces(split.store, file), file, f"{split.location}/{file.name}")))
    etag, parts = bucket.after(file.name)
    try:
        for _ in counted_on(checked(parts, file, where)):
            pass
    except CorruptRecordError as error:
        raise CorruptRecordError(
            f"{where}: read back after it was sent, it is another file: {error}. The service does not keep what it is"
            " given, or somebody else writes there"
        ) from error
    return etag


def _same(parts: Iterator[Blob], file: ShardFile, where: str, stop: threading.Event) -> bool:
    try:
        for _ in checked(parts, file, where):
            if stop.is_set():
                raise ShardError(f"{where}: stopped while it was read")
    except CorruptRecordError:
        return False
    return True


def _finish(bucket: Bucket, manifest: bytes) -> None:
    """Writes the manifest, by which the split is there, and takes the notes away."""
    bucket.put_small(NAME, manifest)
    if bucket.small(NAME) != manifest:
        raise ShardError(
            f"{bucket.location}/{NAME}: read back after it was sent, it is another: publish the split again"
        )
    with suppress(ShardError):  # who may write need not be allowed to delete
        bucket.delete(NOTES)


class _Notes:
    """Which files of a split were read back from a bucket, and the ETag of each."""

    def __init__(self, bucket: Bucket, manifest: Manifest) -> None:
        self._bucket, self._digest = bucket, manifest.digest
        self._etags, self._written = self._read(), 0.0

    def etag(self, name: str) -> str:
        """The ETag that a file had when it was read back; nothing where it was not."""
        return self._etags.get(name, "")

    def add(self, name: str, etag: str) -> None:
        """Notes a file, and writes the notes now and then: one that is lost costs reading a file."""
        if etag:
            self._etags[name] = etag
        if time.monotonic() - self._written > NOTE_EVERY:
            self.write()

    def write(self) -> None:
        """Writes the notes; without them the next one reads more."""
        text = json.dumps({"digest": self._digest, "files": self._etags}, indent=1)
        with suppress(ShardError):
            self._bucket.put_small(NOTES, text.encode())
        self._written = time.monotonic()

    def _read(self) -> dict[str, str]:
        data = self._bucket.small(NOTES)
        try:
            noted: Any = json.loads(data or b"{}")
            found = {str(name): str(etag) for name, etag in noted["files"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}
        return found if noted.get("digest") == self._digest else {}
