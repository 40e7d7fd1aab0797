"""A split that can be read: its manifest, the index of each part, and the store that has its bytes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from shards.access import Access
from shards.errors import FormatError, UnreachableError
from shards.format import MEMBERS, Members, dataset_digest, split_digest
from shards.index import Index, Row, index_bytes, open_index, parse_index_bytes, scan_tar
from shards.manifest import NAME, Manifest, Part, ShardFile, index_name, parse_manifest
from shards.ranged import Afar, open_ranged
from shards.stores import Range, Store
from shards.stores.connect import is_url
from shards.stores.files import FileStore
from shards.stores.lmdb import DATA, LmdbStore
from shards.stores.tar import TarStore

if TYPE_CHECKING:
    from shards.stores.remote import RemoteStore


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
        places = {member: self.store.member(part, row, member) for member in MEMBERS}
        blobs = {blob for blob, _, _ in places.values()}
        if len(blobs) > 1:
            wanted = [Range(*place) for place in places.values()]
            return dict(zip(MEMBERS, self.store.fetch(wanted), strict=True))
        # In a shard the four lie one behind the other: one read.
        first, last = min(start for _, start, _ in places.values()), max(stop for _, _, stop in places.values())
        view = memoryview(self.store.fetch([Range(blobs.pop(), first, last)])[0])
        return {member: view[start - first : stop - first] for member, (_, start, stop) in places.items()}

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
        expected, name = self.manifest.parts[part].index, index_name(part)
        if self.folder is not None:
            index = open_index(self.folder / name)
        elif self._afar is not None:
            index = open_ranged(self._afar, self.manifest.parts[part], f"{self.location}/{name}")
        else:
            index = parse_index_bytes(self.store.small(name), f"{self.location}/{name}")
        if (index.size, len(index)) != (expected.size, expected.records):
            raise FormatError(
                f"{index.where}: {len(index)} records in {index.size} bytes, but the manifest says"
                f" {expected.records} in {expected.size}: of another build. Copy or build the split again"
            )
        return index


def open_split(location: str | Path, *, access: Access | None = None) -> Split:
    """The split at `location`: a folder of tar shards, an LMDB, loose files, one .tar, or a URL (http, https, s3) of
    a folder of shards or of one .tar.

    One tar is read through once, since it has no index; its classes are those that occur in it. Raises
    UnreachableError where there is nothing, FormatError where it is something else, or what is read is damaged.
    """
    if is_url(str(location)):
        from shards.stores.remote import RemoteStore  # its connections are of no use to those who read a disk

        remote = RemoteStore(str(location), access)
        if remote.file:
            return _one_tar(remote, remote.file)
        manifest = parse_manifest(remote.small(NAME), f"{remote.location}/{NAME}")
        if manifest.store != "tar":
            raise FormatError(
                f"{remote.location}: stored as {manifest.store}, which is read from a disk only. Serve it as tar:"
                " stmul shards copy SOURCE FOLDER"
            )
        return Split(remote, manifest, afar=remote)
    path = Path(location)
    if path.is_file():
        if path.name == NAME:
            return open_split(path.parent)
        if path.suffix != ".tar":
            raise FormatError(f"{path}: a file, but neither a .tar nor the folder of a split")
        return _one_tar(TarStore(path.parent, path.name), path.name)
    if not path.is_dir():
        raise UnreachableError(f"{path}: no such folder{_nearest(path)} Build shards with: make shards SPLIT=1")
    if not (path / NAME).is_file():
        raise UnreachableError(_unfinished(path))
    manifest = parse_manifest((path / NAME).read_bytes(), str(path / NAME))
    return Split(_store(path, manifest), manifest, folder=path)


def _store(folder: Path, manifest: Manifest) -> Store:
    if manifest.store == "lmdb":
        files = next(iter(manifest.parts.values())).shards
        return LmdbStore(folder, files[0].size)
    return FileStore(folder) if manifest.store == "files" else TarStore(folder)


def _one_tar(store: TarStore | RemoteStore, name: str) -> Split:
    """A tar alone as a split of one part; the index is made on the way through it."""
    size, rows, names = store.size(name), list[Row](), dict[int, str]()
    for row, record in scan_tar(store.reader(name), size, 0, store.location):
        rows.append(row)
        if names.setdefault(record.label, record.class_name) != record.class_name:
            raise FormatError(
                f"{store.location}: label {record.label} is {names[record.label]!r} and {record.class_name!r}"
            )
    if not rows:
        raise FormatError(f"{store.location}: no records in it")
    found = re.fullmatch(r"([a-z][a-z0-9_]*)-\d+\.tar", name)
    part, data = found[1] if found else "train", b"".join(index_bytes(rows))
    digest = dataset_digest((row.key, row.label, row.sha256) for row in rows)
    whole_part = Part(
        shards=(ShardFile(name=name, size=size, sha256="", records=len(rows)),),
        index=ShardFile(name=index_name(part), size=len(data), sha256="", records=len(rows)),
        records=len(rows),
        frames=sum(row.frames for row in rows),
        digest=digest,
    )
    manifest = Manifest(
        dataset=name.removesuffix(".tar"),
        split=0,
        classes=tuple(names.get(label, f"unknown-{label}") for label in range(max(names) + 1)),
        parts={part: whole_part},
        made={},
        store="tar",
        digest=split_digest({part: digest}),
    )
    return Split(store, manifest, folder=None, indexes={part: parse_index_bytes(data, store.location)})


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
