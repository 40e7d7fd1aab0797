"""Where finished records, notes and shards are kept: a folder, which nodes may share, or a folder of a bucket.

A place holds files by names such as `ab/ab12-34.record`, each whole or absent. Writers that put down the same name at
the same time, on whatever nodes, do each other no harm: what they write is equal, and the last to finish stays.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from shards.errors import CorruptRecordError, ShardError
from shards.manifest import ShardFile
from shards.stores.bucket import Bucket
from shards.stores.connect import is_url
from shards.transfer import checked, difference
from shards.whole import sync_folder, unwritable, whole

PARTIAL = ".partial"
DESK = ".packing-"
AT_ONCE = 16  # requests to a bucket


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What tells a file from another of the same name without reading it."""

    size: int  # bytes
    version: str  # of a file: the time it was written, in ns; in a bucket: the ETag


class Place(Protocol):
    """Files by name. It may be sent to other processes and nodes, and shared by threads."""

    @property
    def location(self) -> str:
        """Where it is, for messages and for `open_split`; without credentials."""
        ...

    def read(self, name: str) -> bytes | None:
        """The whole of a file; None where there is none, or it cannot be read."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Puts a file down, whole or not at all. Raises ShardError where that is not possible."""
        ...

    def names(self, below: str = "") -> list[str]:
        """All files, or those in the folder `below`, sorted; with the folder in their names."""
        ...

    def sizes(self) -> dict[str, int]:
        """The bytes of all files, by their names."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Takes files away; those that are not there are passed over."""
        ...

    def below(self, folder: str) -> Place:
        """The place that is a folder of this one."""
        ...

    def stamp(self, name: str) -> Stamp | None:
        """What can be said of a file without reading it; None where there is none."""
        ...

    def differs(self, file: ShardFile) -> str:
        """What is wrong with the file of that name, every byte of which is read; nothing where it is `file`."""
        ...

    def desk(self) -> AbstractContextManager[Path]:
        """A new folder on this machine to write large files in, to be taken; it goes when the block ends."""
        ...

    def take(self, path: Path, file: ShardFile) -> None:
        """Moves the file at `path`, which lies on the desk, here, under its name. Raises ShardError."""
        ...

    def tidy(self) -> None:
        """Takes away what writers with this place's mark left when they were killed; without a mark, what any left."""
        ...


def place_at(location: str | Path, mark: str = "") -> Place:
    """The place at `location`: a folder, or s3://, gs:// or az:// and a bucket. `mark` names who writes there.

    Raises UnreachableError for URLs of another kind.
    """
    if isinstance(location, str) and is_url(location):
        return BucketPlace(location.rstrip("/"))
    return FolderPlace(Path(location), mark)


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """A folder. It must be there when something is written: one that has vanished is not made anew."""

    root: Path
    mark: str = ""  # of who writes; stands in the names of what is half written, so that each removes its own alone

    @property
    def location(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        self._make_folder(path.parent)
        with whole(path, mark=self._new_mark()) as file:
            file.write(data)

    def names(self, below: str = "") -> list[str]:
        found = []
        for folder, inside, names in os.walk(self.root / below):
            inside[:] = [name for name in inside if not name.startswith(DESK)]
            found += [(Path(folder) / name).relative_to(self.root).as_posix() for name in names]
        return sorted(name for name in found if not name.endswith(PARTIAL))

    def sizes(self) -> dict[str, int]:
        stamps = {name: self.stamp(name) for name in self.names()}
        return {name: stamp.size for name, stamp in stamps.items() if stamp is not None}

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                (self.root / name).unlink(missing_ok=True)
            except OSError as error:
                raise ShardError(f"{self.root / name}: cannot be removed: {error.strerror}") from error

    def below(self, folder: str) -> FolderPlace:
        return replace(self, root=self.root / folder)

    def stamp(self, name: str) -> Stamp | None:
        try:
            found = (self.root / name).stat()
        except OSError:
            return None
        return Stamp(size=found.st_size, version=str(found.st_mtime_ns))

    def differs(self, file: ShardFile) -> str:
        return difference(self.root / file.name, file)

    @contextmanager
    def desk(self) -> Iterator[Path]:
        folder = (
            self.root / f"{DESK}{self._new_mark()}"
        )  # here, and not in /tmp: a move within a disk is all or nothing
        self._make_folder(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def take(self, path: Path, file: ShardFile) -> None:
        try:
            path.replace(self.root / file.name)
            sync_folder(self.root)
        except OSError as error:
            raise unwritable(self.root / file.name, error) from error

    def tidy(self) -> None:
        for folder, inside, names in os.walk(self.root, topdown=False):
            for name in names:
                if name.endswith(PARTIAL) and (f".{self.mark}-" in name or not self.mark):
                    with suppress(OSError):
                        (Path(folder) / name).unlink()
            for name in inside:
                if name.startswith(DESK + (f"{self.mark}-" if self.mark else "")):
                    shutil.rmtree(Path(folder) / name, ignore_errors=True)

    def _new_mark(self) -> str:
        return f"{self.mark or 'build'}-{uuid.uuid4().hex[:8]}"

    def _make_folder(self, folder: Path) -> None:
        if folder == self.root:
            return  # writing there says what is wrong with it
        try:
            if not self.root.is_dir():
                raise ShardError(
                    f"{self.root}: the folder is gone; was it removed, or a disk unmounted? Put it back, or make it,"
                    " and run the same command again"
                )
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error


class BucketPlace:
    """A folder of a bucket; each process has a connection of its own, made when first needed."""

    def __init__(self, location: str, below: str = "", opened: Bucket | None = None) -> None:
        self._base, self._folder = location, below  # the connection is of the base, the files are in the folder
        self._opened = opened or Bucket(location)  # what is wrong with the address is said at once

    def __reduce__(self) -> tuple[Any, ...]:
        return BucketPlace, (self._base, self._folder)

    @property
    def location(self) -> str:
        return f"{self._opened.location}/{self._folder}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        return self._opened.small(self._folder + name)

    def write(self, name: str, data: bytes) -> None:
        file = ShardFile(name=self._folder + name, size=len(data), sha256=sha256(data).hexdigest(), records=0)
        self._opened.put(file, iter([data]))

    def names(self, below: str = "") -> list[str]:
        return sorted(self._files(below))

    def sizes(self) -> dict[str, int]:
        return self._files("")

    def remove(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for _ in threads.map(lambda name: self._opened.delete(self._folder + name), names):
                pass

    def below(self, folder: str) -> BucketPlace:
        return BucketPlace(self._base, f"{self._folder}{folder}/", self._opened)

    def stamp(self, name: str) -> Stamp | None:
        found = self._opened.find(self._folder + name)
        return None if found is None else Stamp(size=found.size, version=found.etag)

    def differs(self, file: ShardFile) -> str:
        found = self._opened.find(self._folder + file.name)
        if found is None:
            return "is missing"
        if found.size != file.size:
            return f"{found.size} bytes, expected {file.size}"
        try:
            for _ in checked(self._opened.pieces(self._folder + file.name, file.size), file, self.location):
                pass
        except CorruptRecordError as error:
            return str(error)
        return ""

    @contextmanager
    def desk(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="stmul-") as folder:
            yield Path(folder)

    def take(self, path: Path, file: ShardFile) -> None:
        with path.open("rb") as opened:
            self._opened.put(replace(file, name=self._folder + file.name), iter(lambda: opened.read(1 << 20), b""))
        path.unlink()
        if wrong := self.differs(file):  # services differ in what they check: only the bytes prove that they arrived
            raise ShardError(f"{self.location}/{file.name}: read back after it was sent, it is another file: {wrong}")

    def tidy(self) -> None:
        """Nothing: in a bucket nothing is ever half written."""

    def _files(self, below: str) -> dict[str, int]:
        found = self._opened.files((self._folder + below).rstrip("/"))
        return {name.removeprefix(self._folder): size for name, size in found.items()}
