"""Splits without manifest and index: one tar, or a list of them, whose indexes are made from the tars themselves.

Of tars of ours, headers and each record's index.msgpack are enough: the checksums of all frames are in it. So about
two small reads a record make an index, and what they found is kept for the next time. A record's SHA-256 then is not
known (32 zero bytes), and the digest of a part is over (key, label, SHA-256 of index.msgpack), wherever the tar lies.
Asked to be thorough, every byte is read, and digests are those that a manifest would have. A tar with a member per
frame is read through either way.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from shards import kept
from shards.errors import CorruptRecordError, FormatError
from shards.format import (
    CLS,
    FLOW,
    INDEX,
    LONGEST_HEADER,
    RGB,
    Header,
    StreamHeader,
    check_label,
    dataset_digest,
    key_of,
    parse_index,
    split_digest,
)
from shards.index import Index, index_bytes, parse_index_bytes, records_of, scan_tar
from shards.loose_frames import is_loose, scan_loose
from shards.manifest import Manifest, Part, ShardFile, index_name
from shards.record import Blob
from shards.row import Row, StreamPlace
from shards.stores import Range, Store
from shards.tar import BLOCK, Member, members

AT_ONCE = 8  # tars
WINDOW = 16 << 10  # bytes read where a record begins: its label and its table of contents, for up to 600 frames
LARGEST_WINDOW = 1 << 20
MOST_CLASSES = 1 << 20  # those that do not occur in the tars get names, too
UNKNOWN = bytes(32)  # in the place of a record's SHA-256

Out = TypeVar("Out")
Version = Callable[[str], str]  # of a tar's name: what tells its content from another, or nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scanned:
    """What is in a tar. A row's SHA-256 is its record's, or that of its index.msgpack."""

    size: int
    rows: Sequence[Row]
    classes: Mapping[int, str]
    whole: bool  # whether the SHA-256 are the records'


def bare_split(
    store: Store,
    names: Mapping[str, Sequence[str]],
    *,
    title: str,
    version: Version,
    folder: Path,
    thorough: bool = False,
) -> tuple[Manifest, dict[str, Index]]:
    """The manifest and the indexes of the tars in `store` that `names` lists for each part; `folder` keeps indexes.

    Raises FormatError where a tar has no records, two of a part share a key or a label has two names; else as
    `shards.index.scan_tar`, but for frames, which are not read unless asked to be `thorough`.
    """
    tars = [name for of_part in names.values() for name in of_part]

    def scanned(name: str) -> _Scanned:
        return _scanned(store, name, version, folder, thorough)

    found = dict(zip(tars, in_threads(tars, scanned), strict=True))
    classes = _classes(store, found)
    parts, indexes = dict[str, Part](), dict[str, Index]()
    for part, of_part in names.items():
        parts[part], indexes[part] = _part(store, part, {name: found[name] for name in of_part})
    manifest = Manifest(
        dataset=title,
        split=0,
        classes=classes,
        parts=parts,
        made={},
        store="tar",
        digest=split_digest({name: part.digest for name, part in parts.items()}),
    )
    return manifest, indexes


def in_threads(names: Sequence[str], work: Callable[[str], Out]) -> list[Out]:
    """What `work` gives for each name, in their order, some at the same time. Raises what the first to fail raised."""
    from shards.stream import in_order  # which stands on splits

    if len(names) == 1:
        return [work(names[0])]
    with closing(in_order(names, work, threads=AT_ONCE, ahead=2 * AT_ONCE)) as done:  # type: ignore[type-var]
        return list(done)


def _part(store: Store, name: str, tars: Mapping[str, _Scanned]) -> tuple[Part, Index]:
    rows, known, digests = list[Row](), dict[str, str](), list[tuple[str, int, bytes]]()
    for shard, (tar, scanned) in enumerate(tars.items()):
        for row in scanned.rows:
            if (other := known.setdefault(row.key, tar)) != tar:
                raise FormatError(
                    f"{store.location}: {tar} has a record {row.key!r}, and so has {other}; names of videos must differ"
                )
            digests.append((row.key, row.label, row.sha256))
            sha256 = row.sha256 if scanned.whole else UNKNOWN
            rows.append(replace(row, record=len(rows), shard=shard, sha256=sha256))
    data = b"".join(index_bytes(rows, len(tars)))
    files = (
        ShardFile(name=tar, size=scanned.size, sha256="", records=len(scanned.rows)) for tar, scanned in tars.items()
    )
    part = Part(
        shards=tuple(files),
        index=ShardFile(name=index_name(name), size=len(data), sha256="", records=len(rows)),
        records=len(rows),
        frames=sum(row.frames for row in rows),
        digest=dataset_digest(digests),
    )
    return part, parse_index_bytes(data, f"{store.location}: {index_name(name)}")


def _classes(store: Store, tars: Mapping[str, _Scanned]) -> tuple[str, ...]:
    names, first = dict[int, str](), dict[int, str]()
    for tar, scanned in tars.items():
        for label, name in scanned.classes.items():
            if names.setdefault(label, name) != name:
                raise FormatError(
                    f"{store.location}: label {label} is {names[label]!r} in {first[label]} and {name!r} in {tar}"
                )
            first.setdefault(label, tar)
    if max(names) >= MOST_CLASSES:
        raise FormatError(f"{store.location}: a record with label {max(names)}, expected less than {MOST_CLASSES}")
    classes = tuple(names.get(label, f"unknown-{label}") for label in range(max(names) + 1))
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise FormatError(f"{store.location}: the class {twice[0]!r} has two labels")
    return classes


def _scanned(store: Store, name: str, version_of: Version, folder: Path, thorough: bool) -> _Scanned:
    size, version = store.size(name), version_of(name)
    where = store.location if store.location.endswith(name) else f"{store.location}/{name}"
    identity: kept.Identity = {"location": where, "version": version, "size": size, "form": 1}
    if version and not thorough and (known := kept.find(folder, identity)) is not None:
        index, classes = known
        return _Scanned(size=size, rows=list(index), classes=classes, whole=index.loose)
    peeks = Peeks(lambda spans: store.fetch([Range(name, *span) for span in spans]), size)
    loose = is_loose(peeks.read, size, where)
    if loose or thorough:
        scan = scan_loose if loose else scan_tar
        found = [(row, record.class_name) for row, record in scan(store.reader(name), size, 0, where)]
    else:
        found = [(row, header.class_name) for row, header in scan_headers(peeks, size, where)]
    if not found:
        raise FormatError(f"{where}: no records in it")
    classes = dict[int, str]()
    for row, class_name in found:
        if classes.setdefault(row.label, class_name) != class_name:
            raise FormatError(f"{where}: label {row.label} is {classes[row.label]!r} and {class_name!r}")
    rows = [row for row, _ in found]
    if version and not thorough and version_of(name) == version:
        kept.keep(folder, identity, b"".join(index_bytes(rows)), classes)
    return _Scanned(size=size, rows=rows, classes=classes, whole=loose or thorough)


def scan_headers(peeks: Peeks, size: int, where: str) -> Iterator[tuple[Row, Header]]:
    """The rows, numbered from 0, and the headers of the records in a tar; no frame is read.

    A row's SHA-256 is that of index.msgpack. Raises as `shards.index.scan_tar`.
    """
    keys, watch = set[str](), _Watch(peeks, where)
    for places in records_of(watch.passing(members(peeks.read, size, where)), where):
        key, (header, data) = places[CLS].name.partition(".")[0], watch.read()
        named = f"{where}: record {key!r}"
        cls = places[CLS]
        check_label(header, peeks.read(cls.offset, cls.offset + min(cls.size, 20)), named)
        if key_of(header.name) != key or key in keys:
            raise FormatError(f"{named}: holds {header.name!r}, or is there twice; build this shard again")
        for member, stream in ((FLOW, header.flow), (RGB, header.rgb)):
            if places[member].size != stream.size:
                raise CorruptRecordError(f"{named}: {member}: {places[member].size} bytes, expected {stream.size}")
        yield (
            Row(
                record=len(keys),
                key=key,
                label=header.label,
                shard=0,
                frames=header.frames,
                sha256=hashlib.sha256(data).digest(),
                fps=header.fps,
                cls_offset=cls.offset,
                header_offset=places[INDEX].offset,
                header_size=places[INDEX].size,
                flow=_place(header.flow, places[FLOW]),
                rgb=_place(header.rgb, places[RGB]),
            ),
            header,
        )
        keys.add(key)


def _place(stream: StreamHeader, member: Member) -> StreamPlace:
    return StreamPlace(
        offset=member.offset,
        size=stream.size,
        width=stream.width,
        height=stream.height,
        components=stream.components,
        ends=stream.ends,
        crcs=stream.crcs,
    )


class _Watch:
    """Reads index.msgpack as it passes, and ahead of time the last tar header and where the next record begins."""

    def __init__(self, peeks: Peeks, where: str) -> None:
        self._peeks, self._where = peeks, where
        self._header: tuple[Header, Blob] | None = None

    def read(self) -> tuple[Header, Blob]:
        """The header that passed last, and its bytes."""
        assert self._header is not None  # records_of yields after all four members
        return self._header

    def passing(self, listing: Iterator[Member]) -> Iterator[Member]:
        """The members, unchanged."""
        last, window = 0, WINDOW  # the end of the member before
        for member in listing:
            key, _, kind = member.name.partition(".")
            if kind == INDEX:
                if member.size > LONGEST_HEADER:
                    raise FormatError(f"{self._where}: {member.name}: {member.size} bytes, expected {LONGEST_HEADER}")
                data = self._peeks.read(member.offset, member.offset + member.size)
                self._header = parse_index(data, f"{self._where}: record {key!r}"), data
                window = min(max(WINDOW, 2 * member.size), LARGEST_WINDOW)
            elif kind == FLOW and self._header is not None:
                headers, end = member.offset - last, _padded(member.offset + member.size)
                after = _padded(end + headers + self._header[0].rgb.size)
                self._peeks.ahead([(end, end + headers), (after, after + window)])
            last = _padded(member.offset + member.size)
            yield member


class Peeks:
    """Small reads of one file here and there; those that are known to come are asked for together."""

    def __init__(self, fetch: Callable[[Sequence[tuple[int, int]]], Sequence[Blob]], size: int) -> None:
        self._fetch, self._size = fetch, size
        self._here: list[tuple[int, memoryview]] = []  # what was read last

    def ahead(self, spans: Sequence[tuple[int, int]]) -> None:
        """Reads `spans` (start, stop), as far as the file goes, in one go; they are forgotten with the next but one."""
        inside = [(start, min(stop, self._size)) for start, stop in spans if start < self._size]
        found = [(start, memoryview(blob)) for (start, _), blob in zip(inside, self._fetch(inside), strict=True)]
        self._here = [*self._here[-1:], *found]

    def read(self, start: int, stop: int) -> Blob:
        """The bytes start .. stop, which the file has."""
        for begin, data in self._here:
            if begin <= start and stop <= begin + len(data):
                return data[start - begin : stop - begin]
        self.ahead([(start, max(stop, start + WINDOW))])
        return self._here[-1][1][: stop - start]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
