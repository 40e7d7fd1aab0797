"""What can go wrong on the way from videos to shards, split by what the caller can do about it."""

from __future__ import annotations


class PreprocessError(Exception):
    """Base of all errors of preprocessing; the message says where, what was found, what was expected, what to do."""


class DatasetError(PreprocessError):
    """A folder, list or name that does not fit: the build stops before any work."""


class VideoError(PreprocessError):
    """One video that cannot be used: the build notes it in failures.jsonl and goes on."""
