"""A split that can be read: its manifest, the index of each part, and the store that has its bytes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from shards.access import Access
from shards.bare import Version, bare_split, in_threads
from shards.errors import CorruptRecordError, FormatError, TruncatedShardError, UnreachableError
from shards.format import MEMBERS, Members
from shards.index import Index, open_index, parse_index_bytes
from shards.loose_frames import loose_members
from shards.manifest import NAME, Manifest, ShardFile, parse_manifest
from shards.plan import coalesce, cut, images_of, runs
from shards.ranged import Afar, open_ranged
from shards.row import Row, StreamPlace
from shards.stores import Range, Store, Stream
from shards.stores.connect import is_url, place_of
from shards.stores.files import FileStore
from shards.stores.lmdb import DATA, LmdbStore
from shards.stores.tar import TarStore
from shards.tar_lists import TarList, by_part, tar_list

T = TypeVar("T")


class Split:
    """One split of a data set, open for reading. Threads may share it; use as a context manager, or call `close`."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        folder: Path | None = None,
        afar: Afar | None = None,
        indexes: Mapping[str, Index] | None = None,
    ) -> None:
        self.store, self.manifest = store, manifest
        self.folder = folder  # where indexes can be mapped
        self._afar = afar  # where they can be read by ranges
        self._indexes = dict(indexes or {})

    @property
    def location(self) -> str:
        """Where it is, without credentials."""
        return self.store.location

    def index(self, part: str) -> Index:
        """The index of a part, opened when first asked for.

        Raises UnreachableError where there is no such part, TruncatedShardError, FormatError, CorruptRecordError.
        """
        known = self._indexes.get(part)
        # No lock, which a child forked meanwhile would find held: two threads may open it, and one of them is kept.
        return known if known is not None else self._indexes.setdefault(part, self._opened(part))

    def read(self, part: str, record: int) -> Members:
        """The four members of a record, not yet checked: `shards.format.decode` does that."""
        return self.members(part, self.index(part).row(record))

    def members(self, part: str, row: Row) -> Members:
        """The four members of the record of `row`, not yet checked."""
        if row.loose:
            return loose_members(row, self.manifest.classes[row.label], *self._images(part, row))
        places = {member: self.store.member(part, row, member) for member in MEMBERS}
        blobs = {blob for blob, _, _ in places.values()}
        if len(blobs) > 1:
            wanted = [Range(*place) for place in places.values()]
            return dict(zip(MEMBERS, self.store.fetch(wanted), strict=True))
        # In a shard the four lie one behind the other: one read.
        first, last = min(start for _, start, _ in places.values()), max(stop for _, _, stop in places.values())
        view = memoryview(self.store.fetch([Range(blobs.pop(), first, last)])[0])
        return {member: view[start - first : stop - first] for member, (_, start, stop) in places.items()}

    def _images(self, part: str, row: Row) -> list[list[memoryview]]:
        """The JPEGs of a record with a member per frame: of rgb, and of flow."""
        places: tuple[tuple[Stream, StreamPlace], ...] = (("rgb", row.rgb), ("flow", row.flow))
        planned = [
            runs(*self.store.place(part, row, stream), place, np.arange(len(place.ends))) for stream, place in places
        ]
        reads, pieces = coalesce([run.range for of_stream in planned for run in of_stream], self.store.gap)
        data = iter(cut(self.store.fetch(reads), pieces))
        return [
            [jpeg for run in of_stream for jpeg in images_of(run, place, next(data))]
            for of_stream, (_, place) in zip(planned, places, strict=True)
        ]

    def close(self) -> None:
        """Ends reading. Bytes and tables already handed out stay valid."""
        for index in list(self._indexes.values()):
            index.close()
        self.store.close()

    def __enter__(self) -> Split:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _opened(self, part: str) -> Index:
        if part not in self.manifest.parts:
            raise UnreachableError(f"{self.location}: has no part {part!r}; it has {', '.join(self.manifest.parts)}")
        expected = self.manifest.parts[part].index
        where = f"{self.location}/{expected.name}"
        if self.folder is not None:
            index = open_index(self.folder / expected.name)
        elif self._afar is not None:
            index = _twice(partial(open_ranged, self._afar, self.manifest.parts[part], where))
        else:
            index = parse_index_bytes(self.store.small(expected.name), where)
        if (index.size, len(index)) != (expected.size, expected.records):
            raise FormatError(
                f"{index.where}: {len(index)} records in {index.size} bytes, but the manifest says"
                f" {expected.records} in {expected.size}: of another build. Copy or build the split again"
            )
        index.classes = len(self.manifest.classes)
        return index


def open_split(location: str | Path, *, access: Access | None = None, thorough: bool = False) -> Split:
    """The split at `location`: a folder of tar shards, an LMDB, loose files, or a URL of a folder of shards; without
    a manifest one .tar, here or behind a URL, or a list of some in braces: 'train-{000000..000003}.tar'.

    `access` says how URLs are read. The index of tars without a manifest is made from their headers and kept in
    `access.folder`; their classes are those that occur in them. With `thorough`, such tars are read through, and every
    byte is checked here. Raises UnreachableError where there is nothing, FormatError where it is something else, or
    what is read is damaged.
    """
    text, access = str(location), access or Access()
    if (listed := tar_list(text)) is not None:
        return _bare(listed, access, thorough)
    if is_url(text):
        place = place_of(text)
        if place.file:
            return _bare(TarList(folder=text, names=by_part([place.file])), access, thorough)
        return _remote(text, access)
    path = Path(location)
    if path.is_file():
        if path.name == NAME:
            return open_split(path.parent)
        if path.suffix != ".tar":
            raise FormatError(f"{path}: a file, but neither a .tar nor the folder of a split")
        return _bare(TarList(folder=str(path.parent), names=by_part([path.name])), access, thorough)
    if not path.is_dir():
        raise UnreachableError(f"{path}: no such folder{_nearest(path)} Build shards with: make shards SPLIT=1")
    if not (path / NAME).is_file():
        raise UnreachableError(_unfinished(path))
    manifest = parse_manifest((path / NAME).read_bytes(), str(path / NAME))
    return Split(_store(path, manifest), manifest, folder=path)


def _remote(location: str, access: Access) -> Split:
    from shards.stores.cached import CachedStore  # the network's libraries are of no use to those who read a disk
    from shards.stores.remote import RemoteStore

    remote = RemoteStore(location, access)
    manifest = _twice(lambda: parse_manifest(remote.small(NAME), f"{remote.location}/{NAME}"))
    if manifest.store != "tar":
        raise FormatError(
            f"{remote.location}: stored as {manifest.store}, which is read from a disk only. Serve it as tar:"
            " stmul shards copy SOURCE FOLDER"
        )
    files = {shard.name: shard for part in manifest.parts.values() for shard in part.shards}
    return Split(CachedStore(remote, access, files), manifest, afar=remote)


def _twice(read: Callable[[], T]) -> T:
    """What `read` gives, at the second try if not at the first: bytes may have been damaged on their way."""
    try:
        return read()
    except (FormatError, CorruptRecordError, TruncatedShardError):
        return read()


def _bare(tars: TarList, access: Access, thorough: bool) -> Split:
    """Tars without a manifest."""
    store, version = _versioned(tars, access)
    names = [name for of_part in tars.names.values() for name in of_part]
    title = names[0].removesuffix(".tar") if len(names) == 1 else store.location.rpartition("/")[2] or "tars"
    try:
        manifest, indexes = bare_split(
            store, tars.names, title=title, version=version, folder=access.folder / "indexes", thorough=thorough
        )
    except BaseException:
        store.close()
        raise
    return Split(store, manifest, indexes=indexes)


def _versioned(tars: TarList, access: Access) -> tuple[Store, Version]:
    """A store of tars, and what tells this content of one from another."""
    if is_url(tars.folder):
        from shards.stores.cached import CachedStore
        from shards.stores.remote import RemoteStore

        remote = RemoteStore(tars.folder, access, tars.names)
        names = [name for of_part in tars.names.values() for name in of_part]
        sizes = in_threads(names, remote.size)
        files = {
            name: ShardFile(name=name, size=size, sha256="", records=0) for name, size in zip(names, sizes, strict=True)
        }
        return CachedStore(remote, access, files), remote.etag
    folder = Path(tars.folder)
    return TarStore(folder, tars.names), lambda name: _written(folder / name)


def _written(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise UnreachableError(f"{path}: cannot be read: {error.strerror}") from error
    return f"{path.resolve()} {status.st_mtime_ns}"


def _store(folder: Path, manifest: Manifest) -> Store:
    if manifest.store == "lmdb":
        files = next(iter(manifest.parts.values())).shards
        return LmdbStore(folder, files[0].size)
    return FileStore(folder) if manifest.store == "files" else TarStore(folder)


def _nearest(path: Path) -> str:
    above = path.parent
    names = sorted(entry.name for entry in above.iterdir() if entry.is_dir()) if above.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    return f"; did you mean {above / close[0]}?" if close else "."


def _unfinished(path: Path) -> str:
    """What is the matter with a folder that has no manifest, and what to do."""
    below = sorted(entry.parent.name for entry in path.glob(f"*/{NAME}"))
    if below:
        return f"{path}: no {NAME} in it, but in {', '.join(below)}; give {path / below[0]}"
    if any(path.glob("*.tar")) or (path / DATA).exists():
        return (
            f"{path}: no {NAME}: its build or its copy did not end. Run it again (make shards SPLIT=1, or stmul shards"
            " copy): what is there is used or replaced"
        )
    return f"{path}: no {NAME} and no shards in it. Build shards with: make shards SPLIT=1"
