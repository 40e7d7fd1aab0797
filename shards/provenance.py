"""Where the records of a split came from that was put together of others, and whether two were made in the same way.

`made` of such a split has `record`, how all of its records were made (left out where that differs); `sources`, what the
manifests of the splits said that were built, each once; and `steps`, what was done to them since. Splits are named by
their digests: no times, no hosts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shards.format import INDEX, Header, decode, parse_index
from shards.manifest import Manifest
from shards.record import Record
from shards.split import Split
from shards.stores import Range

UNSAID: Mapping[str, Any] = {"flow_scale": 1.0}  # what it means where a build does not say it
HISTORY = ("sources", "steps")
MOST_SHOWN = 6  # differences in a message, classes of a step
LOOKED_AT = 1000  # records of a part whose sizes are counted


def made_of(manifests: Sequence[Manifest], step: Mapping[str, Any]) -> dict[str, Any]:
    """`made` of a split that `step` makes of others; `step` says what is done to them."""
    sources: dict[str, Mapping[str, Any]] = {}
    steps: list[Mapping[str, Any]] = []
    for manifest in manifests:
        for source in _sources(manifest):
            sources.setdefault(str(source.get("digest")), source)
        steps += [known for known in _listed(manifest.made, "steps") if known not in steps]
    ways = [manifest.made.get("record") for manifest in manifests]
    common = {"record": ways[0]} if ways[0] is not None and all(way == ways[0] for way in ways) else {}
    done = {**step, "of": [manifest.digest for manifest in manifests]}
    return {**common, "sources": list(sources.values()), "steps": [*steps, done]}


def differences(one: Split, other: Split) -> list[str]:
    """In what the way differs in which the records of `other` were made from that of `one`: `flow_method: 'dis', not
    'tvl1'` each.

    What the manifests say is compared, or, where one says nothing, what the first record of each does; and the sides
    that most pictures have.
    """
    said = [split.manifest.made.get("record") for split in (one, other)]
    ways = said if all(isinstance(way, Mapping) for way in said) else [_seen(one), _seen(other)]
    (here, there), (sides, their_sides) = (dict(leaves(way)) for way in ways), map(_sides, (one, other))
    both = sides.keys() & their_sides  # videos of one frame have no flow
    here |= {name: sides[name] for name in sorted(both)}
    there |= {name: their_sides[name] for name in sorted(both)}
    found = []
    for key in [*here, *(key for key in there if key not in here)]:
        its, ours = (side.get(key, UNSAID.get(key, "nothing")) for side in (there, here))
        if its != ours:
            found.append(f"{key}: {its!r}, not {ours!r}")
    return found


def shown(differences: Sequence[str]) -> str:
    """Differences in a message: the first few, and how many more there are."""
    more = len(differences) - MOST_SHOWN
    return "; ".join(differences[:MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def history(made: Mapping[str, Any]) -> Iterator[str]:
    """What a split was put together of and how, line by line; nothing where it was built."""
    for source in _listed(made, "sources"):
        records = source.get("records")
        counts = [f"{count} {part}" for part, count in records.items()] if isinstance(records, Mapping) else []
        named = f"{source.get('dataset')}, split {source.get('split')}"
        yield f"from {named}: {' + '.join(counts)} records, digest {_short(source.get('digest'))}"
    for step in _listed(made, "steps"):
        of = step.get("of")
        digests = " + ".join(map(_short, of)) if isinstance(of, list) else "?"
        told = [f"{key} {_brief(step[key])}".strip() for key in step if key not in ("did", "of") and step[key]]
        yield f"{step.get('did')} {digests}{': ' if told else ''}{', '.join(told)}"


def _short(digest: object) -> str:
    return str(digest)[:12]


def _brief(value: object) -> str:
    if isinstance(value, Mapping):
        if isinstance(value.get("count"), int):
            return f"({value['count']} of them)"
        return " ".join(f"{key}={value[key]}" for key in value)
    if isinstance(value, list):
        more = len(value) - MOST_SHOWN
        return " ".join(map(str, value[:MOST_SHOWN])) + (f" and {more} more" if more > 0 else "")
    return "" if value is True else str(value)


def _sources(manifest: Manifest) -> list[Mapping[str, Any]]:
    """The splits that were built, of which this one is made: itself, or those that it names."""
    if known := _listed(manifest.made, "sources"):
        return known
    return [
        {
            "dataset": manifest.dataset,
            "split": manifest.split,
            "digest": manifest.digest,
            "records": {name: part.records for name, part in manifest.parts.items()},
            "made": dict(manifest.made),
        }
    ]


def _listed(made: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The maps in the list at `key`: `made` is open, and may hold anything there."""
    value = made.get(key)
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _seen(split: Split) -> dict[str, Any]:
    """How the first record of a split was made, as it says itself."""
    for part, of_part in split.manifest.parts.items():
        if of_part.records:
            record = _header(split, part)
            made = record.flow_made
            return {
                "rgb": dict(record.rgb.encoder),
                "flow_jpeg": dict(record.flow.encoder),
                "flow": dict(made.parameters),
                "flow_method": made.method,
                "flow_library": made.library,
                "flow_scale": made.scale,
                "levels_per_pixel": made.levels_per_pixel,
                "zero": made.zero,
            }
    return {}


def _header(split: Split, part: str) -> Header | Record:
    row = split.index(part).row(0)
    where = f"{split.location}: {part}: record {row.name!r}"
    if row.loose:
        return decode(split.members(part, row), where)
    (data,) = split.store.fetch([Range(*split.store.member(part, row, INDEX))])
    return parse_index(data, where)


def _sides(split: Split) -> dict[str, Any]:
    """The short side, in pixels, that most pictures have, of each stream."""
    counted: dict[str, Counter[int]] = {"short side of the frames": Counter(), "short side of the flow": Counter()}
    for part in split.manifest.parts:
        index = split.index(part)
        for row in index.rows(range(0, len(index), max(1, len(index) // LOOKED_AT))):
            for place, sides in zip((row.rgb, row.flow), counted.values(), strict=True):
                if len(place.ends):
                    sides[min(place.width, place.height)] += 1
    return {name: min(sides, key=lambda side: (-sides[side], side)) for name, sides in counted.items() if sides}


def leaves(tree: Any, above: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """What stands in a tree of settings, each with its path: `flow.method`."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, (*above, str(key)))
    else:
        yield ".".join(above), tree
