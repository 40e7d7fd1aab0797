"""Which videos belong together by their names: clips cut from one recording, which a split has to keep on one side."""

from __future__ import annotations

import re

from shards.errors import ShardError

# UCF101: v_Archery_g01_c02, clip 2 of group 1 of its class.
UCF101 = re.compile(r"(.+_g\d+)_c\d+", re.IGNORECASE)
# HMDB51, JHMDB: the source, the class, what is seen of the body, how the camera moves, people, view, quality, number.
# Source and class are the group: in the official splits one source may be in both parts, under two classes.
HMDB51 = re.compile(r"(.+)_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:goo|good|med|bad)_\d+")
# Kinetics: the id of the video, then the seconds.
KINETICS = re.compile(r"(?:.+__)?([\w-]{11})_\d{6}_\d{6}")


def group_of(name: str, pattern: re.Pattern[str] | None = None) -> str:
    """The group of a video, the same text for all that are in it; "" where its name tells none.

    With `pattern`, what it finds in the name is the group (its first parentheses, or else all), and nothing else is
    tried.
    """
    if pattern is not None:
        found = pattern.search(name)
        return "" if found is None else found.group(1 if pattern.groups else 0) or ""
    if found := UCF101.fullmatch(name):
        return found.group(1).lower()  # HandStandPushups and HandstandPushups are one class
    found = HMDB51.fullmatch(name) or KINETICS.fullmatch(name)
    return found.group(1) if found else ""


def group_pattern(text: str) -> re.Pattern[str]:
    """The pattern that a user wrote. Raises ShardError where it is none."""
    try:
        return re.compile(text)
    except re.error as error:
        example = "--groups '^(.+)_c[0-9]+$'"
        raise ShardError(f"--groups {text!r}: not a regular expression ({error}); expected one as {example}") from error
