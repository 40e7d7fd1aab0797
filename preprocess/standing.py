"""What there is already: shards of an earlier build, how they differ from those asked for, what can be taken over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.config import Preprocess
from preprocess.extracted import how_taken
from preprocess.listing import Dataset, Video
from preprocess.record import how_made
from shards.errors import ShardError
from shards.format import key_of
from shards.manifest import NAME, Manifest, parse_manifest
from shards.split import open_split

DIGEST = "videos"  # over the names, labels and sizes of all listed videos
UNSAID = {"record.flow_scale": 1.0}  # what it means where a build does not say it


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The shards in a folder."""

    manifest: Manifest | None = None
    problem: str = ""  # with the manifest: it is there but cannot be read
    missing: tuple[str, ...] = ()  # files that the manifest names and that are gone or of another size


def standing(folder: Path) -> Standing:
    """What stands in the folder of a split; sizes are looked at, contents are not."""
    try:
        data = (folder / NAME).read_bytes()
    except OSError:
        return Standing()
    try:
        manifest = parse_manifest(data, str(folder / NAME))
    except ShardError as error:
        return Standing(problem=str(error))
    files = [file for part in manifest.parts.values() for file in (*part.shards, part.index)]
    missing = tuple(file.name for file in files if _size(folder / file.name) != file.size)
    return Standing(manifest=manifest, missing=missing)


def made_of(dataset: Dataset, settings: Preprocess) -> dict[str, Any]:
    """All that decides the shards' bytes, as the manifest has it: settings in full, versions, the plan; no times."""
    extracted = any(video.flow_path for videos in dataset.parts.values() for video in videos)
    return {
        "record": how_taken(settings.flow) if extracted else how_made(settings),
        "per_shard": settings.per_shard,
        "plan": {
            "classes": len(dataset.classes),
            **{part: len(videos) for part, videos in dataset.parts.items()},
            DIGEST: _digest(dataset),
        },
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two builds, `flow.method: 'dis' then, 'tvl1' now` each."""
    then, asked = dict(_leaves(before)), dict(_leaves(now))
    keys = [*asked, *(key for key in then if key not in asked)]
    both = {key: [side.get(key, UNSAID.get(key, "nothing")) for side in (then, asked)] for key in keys}
    other = [key for key, (was, is_) in both.items() if was != is_]
    if other == [f"plan.{DIGEST}"]:
        return ["plan: other names, labels or file sizes of the videos"]
    return ["{}: {!r} then, {!r} now".format(key, *both[key]) for key in other if key != f"plan.{DIGEST}"]


def made_alike(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """The splits in the folder of a data set whose records were made in the way `record` says."""
    alike = []
    for path in sorted(folder.glob(f"split*/{NAME}")):
        with suppress(OSError, ShardError):
            if parse_manifest(path.read_bytes(), str(path)).made.get("record") == record:
                alike.append(path.parent)
    return alike


def shared_with(splits: Sequence[Path], videos: Sequence[Video]) -> int:
    """How many of `videos` have a record in one of `splits`, by their names; what cannot be read has none."""
    there: set[str] = set()
    for path in splits:
        with suppress(ShardError), open_split(path) as split:
            for part in split.manifest.parts:
                there.update(row.key for row in split.index(part))
    return sum(key_of(video.name) in there for video in videos)


def _digest(dataset: Dataset) -> str:
    facts = [
        [part, key_of(video.name), video.label, video.class_name, _content_size(video)]
        for part in sorted(dataset.parts)
        for video in sorted(dataset.parts[part], key=lambda video: video.name)
    ]
    return hashlib.sha256(json.dumps([facts, list(dataset.classes)]).encode()).hexdigest()[:16]


def _content_size(video: Video) -> int:
    """Bytes of a video file; the number of files in a folder of frames."""
    if video.flow_path is None:
        return _size(video.path)
    with suppress(OSError):
        return sum(1 for _ in video.path.iterdir())
    return -1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _leaves(tree: Any, above: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*above, str(key)))
    else:
        yield ".".join(above), tree
