"""What there is already: shards of an earlier build, how they differ from those asked for, what can be taken over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.building.places import place_at
from preprocess.config import Preprocess
from preprocess.extracted import how_taken
from preprocess.record import how_made
from preprocess.sources.listing import Dataset, Video
from preprocess.sources.strata import SPLITS
from shards.errors import ShardError
from shards.format import key_of
from shards.manifest import NAME, Manifest, parse_manifest
from shards.provenance import leaves

DIGEST = "videos"  # over the names, labels and sizes of all listed videos
AT_ONCE = 16  # files looked at side by side: a shared folder or a bucket answers slowly, but many at a time
STRATA = "strata"  # how many there are: see preprocess/sources/strata.py
UNTOLD = (f"plan.{DIGEST}", f"plan.{STRATA}")  # other strata alone lay the same records out in other shards: both serve
UNSAID = {"record.flow_scale": 1.0}  # what it means where a build does not say it


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The shards in a folder."""

    manifest: Manifest | None = None
    problem: str = ""  # with the manifest: it is there but cannot be read
    missing: tuple[str, ...] = ()  # files that the manifest names and that are gone or of another size


def standing(folder: str | Path) -> Standing:
    """What stands in the folder of a split, also in a bucket; sizes are looked at, contents are not."""
    place = place_at(folder)
    if (data := place.read(NAME)) is None:
        return Standing()
    try:
        manifest = parse_manifest(data, f"{folder}/{NAME}")
    except ShardError as error:
        return Standing(problem=str(error))
    files = [file for part in manifest.parts.values() for file in (*part.shards, part.index)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        stamps = list(threads.map(lambda file: place.stamp(file.name), files))
    missing = [file.name for file, stamp in zip(files, stamps, strict=True) if not stamp or stamp.size != file.size]
    return Standing(manifest=manifest, missing=tuple(missing))


def manifests(folder: str | Path) -> dict[str, Manifest]:
    """The manifests of the splits in the folder of a data set, by their locations; those that can be read."""
    found = {}
    for split in SPLITS:
        place = place_at(folder).below(f"split{split}")
        with suppress(ShardError):
            if (data := place.read(NAME)) is not None:
                found[place.location] = parse_manifest(data, place.location)
    return found


def made_of(dataset: Dataset, settings: Preprocess) -> dict[str, Any]:
    """All that decides the shards' bytes, as the manifest has it: settings in full, versions, the plan; no times."""
    videos = [video for part in dataset.parts.values() for video in part]
    extracted = any(video.flow_path for video in videos)
    strata = len({dataset.strata.get(video.name, "") for video in videos}) if dataset.strata else 0
    return {
        "record": how_taken(settings.flow) if extracted else how_made(settings),
        "per_shard": settings.per_shard,
        "plan": {
            "classes": len(dataset.classes),
            **{part: len(of_part) for part, of_part in dataset.parts.items()},
            **({STRATA: strata} if strata else {}),  # shards of one split alone stay what is asked for
            DIGEST: _digest(dataset),
        },
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two builds, `flow.method: 'dis' then, 'tvl1' now` each; no strata, as they harm nothing.

    Of another flow method the parameters and the library are left out.
    """
    if isinstance(steps := before.get("steps"), list) and "steps" not in now:  # as shards.provenance notes them
        done = dict.fromkeys(str(step.get("did")) for step in steps if isinstance(step, Mapping))
        return [f"they were made of other shards: {', '.join(done)}"]
    then, asked = dict(leaves(before)), dict(leaves(now))
    keys = [*asked, *(key for key in then if key not in asked)]
    both = {key: [side.get(key, UNSAID.get(key, "nothing")) for side in (then, asked)] for key in keys}
    other = [key for key, (was, is_) in both.items() if was != is_]
    told = [key for key in other if key not in UNTOLD]
    if not told and f"plan.{DIGEST}" in other:
        return ["plan: other names, labels or file sizes of the videos"]
    if any(key.endswith("flow_method") for key in told):
        told = [key for key in told if ".flow." not in f".{key}" and not key.endswith("flow_library")]
    return ["{}: {!r} then, {!r} now".format(key, *both[key]) for key in told]


def made_alike(folder: str | Path, record: Mapping[str, Any]) -> list[str]:
    """The locations of the splits in the folder of a data set whose records were made in the way `record` says."""
    return [location for location, manifest in manifests(folder).items() if manifest.made.get("record") == record]


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
