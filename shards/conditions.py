"""What a request asks of a file: under which conditions, and which of its bytes, as RFC 9110 has it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import BinaryIO

Header = Callable[[str], str | None]  # the value of a header by its name, or None


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """An open file as it is at this moment."""

    file: BinaryIO
    size: int  # bytes
    etag: str
    modified: int  # seconds since 1970


def condition(found: Found, header: Header) -> int:
    """200, 304 or 412: what the conditions of a request come to, in the order of RFC 9110, 13.2.2."""
    if (match := header("If-Match")) is not None:
        if not _listed(found.etag, match, weak=False):
            return 412
    elif (since := _time(header("If-Unmodified-Since"))) is not None and found.modified > since:
        return 412
    if (match := header("If-None-Match")) is not None:
        return 304 if _listed(found.etag, match, weak=True) else 200
    since = _time(header("If-Modified-Since"))
    return 304 if since is not None and found.modified <= since else 200


def fresh(found: Found, value: str | None) -> bool:
    """Whether a range may be answered, by If-Range: without it, with this very ETag, or with this very date.

    A date counts only once it lies a while back: a file can change twice within its second.
    """
    if value is None or value.startswith(('"', "W/")):
        return value is None or value == found.etag
    return _time(value) == found.modified and found.modified + 60 < time.time()


def span(value: str | None, size: int) -> tuple[int, int] | None:
    """Start and stop of the bytes that a Range header asks for out of `size`; nothing where it is to be passed over.

    (0, 0) where no byte of it is there: 416.
    """
    asked = re.fullmatch(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", value or "", re.IGNORECASE)
    if asked is None or not (asked[1] or asked[2]):
        return None
    first, last = _number(asked[1]), _number(asked[2])
    if not asked[1]:
        if not last or not size:
            return (0, 0) if not last else None
        return max(0, size - last), size
    if asked[2] and last < first:
        return None
    return (first, min(last + 1, size) if asked[2] else size) if first < size else (0, 0)


def _listed(etag: str, value: str, *, weak: bool) -> bool:
    tags = re.findall(r'(W/)?("[^"]*")', value)
    return value.strip() == "*" or any(tag == etag and (weak or not mark) for mark, tag in tags)


def _number(digits: str) -> int:
    """A number, or one larger than any file: digits without end are not worth reading."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 1000 else 10**1000


def _time(value: str | None) -> int | None:
    try:
        return None if value is None else int(parsedate_to_datetime(value).timestamp())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
