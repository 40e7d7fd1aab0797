"""What a request that failed means, in a sentence made of parts that are known to hold no secret.

obstore's own messages repeat the URL, signature and all, so nothing of them is passed on: they are only searched for
words. What they are searched for is held by tests against servers that answer so.
"""

from __future__ import annotations

import re
from typing import Literal

from shards.errors import UnreachableError

Kind = Literal["passing", "changed", "without ranges", "ended", "refused", "final"]

WITHOUT_RANGES = (
    "the server sends the whole file where a part is asked for (python -m http.server is one such). Serve the shards"
    " with a server that knows byte ranges (nginx, Apache, S3, stmul shards serve), or copy them to a disk"
)

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_REASONS = {
    "dns error": "the name of the host is not known",
    "Connection refused": "the host refuses the connection",
    "TimedOut": "no answer in time",
    "timed out": "no answer in time",
    "InvalidCertificate": "its certificate is not trusted",
    "parsing Path": "not a name that can be asked for",
    "URL scheme is not allowed": "the server sends elsewhere, to http:// instead of https://, which is not followed",
    "redirect": "the server sends from address to address",
}
_FINAL = ("InvalidCertificate", "parsing Path", "URL scheme is not allowed", "redirect")


class WithoutRanges(UnreachableError):  # noqa: N818
    """The server sends whole files only."""


def status_of(error: Exception) -> int:
    """The status that the server answered with, or 0."""
    found = re.search(r"status(?: code)?: (\d{3})", str(error))
    return int(found[1]) if found else 0


def kind_of(error: Exception) -> Kind:
    """What can be done about it.

    passing: the same again, later. changed: If-Match did not hold. without ranges: whole files only. ended: the file
    has no such bytes. refused: credentials. final: nothing.
    """
    text, status = str(error), status_of(error)
    if status == 412 or "Precondition" in text or "Precondition" in type(error).__name__:
        return "changed"
    if "RangeNotSupported" in text or "NotPartial" in text:  # http:// or s3://
        return "without ranges"
    if status == 416 or "UnexpectedRange" in text:
        return "ended"
    if status in (401, 403) or "ExpiredToken" in text:
        return "refused"
    if status in _PASSING:
        return "passing"
    if status or isinstance(error, FileNotFoundError) or any(word in text for word in _FINAL):
        return "final"
    return "passing"


def explained(error: Exception, *, credentials: str, s3: bool) -> str:
    """What is the matter and what to do next; `credentials` says what was sent to sign in with."""
    text, status = str(error), status_of(error)
    kind = kind_of(error)
    if kind == "without ranges":
        return WITHOUT_RANGES
    if status == 404 or isinstance(error, FileNotFoundError):
        what = "no such bucket" if "NoSuchBucket" in text else "not there (404)"
        return f"{what}. Check the address: a split is the folder of a manifest.json, a shard's name ends in .tar"
    if kind == "refused":
        also = "; S3 also says so of what is not there, to those who may not list the bucket" if s3 else ""
        expired = " The key has expired: sign in again." if "ExpiredToken" in text else ""
        return f"no permission ({status or 403}): {credentials}.{expired} Check that they may read this{also}"
    if status:
        region = s3 and status in (301, 307, 400)
        hint = "The bucket may be in another region: set AWS_REGION" if region else "Try again later"
        return f"the server answered with status {status}. {hint}"
    reason = next((reason for word, reason in _REASONS.items() if word in text), "the connection failed")
    return f"{reason}. Check the address and the network"
