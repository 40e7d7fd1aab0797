"""What can go wrong with shards, split by what the caller can do about it."""

from __future__ import annotations


class ShardError(Exception):
    """Base of all errors about shards; the message says where, what was found, what was expected, what to do."""


class FormatError(ShardError):
    """Not ours, or of another version: a foreign file, a missing member, an unknown field."""


class TruncatedShardError(ShardError):
    """The file ends early: its writer was stopped or its copy cut."""


class CorruptRecordError(ShardError):
    """The bytes are there, but not the ones that were written."""


class UnreachableError(ShardError):
    """The location cannot be read: no such folder or object, no permission, no connection."""


class StateMismatchError(ShardError):
    """A saved position that does not fit this data or these settings; both values are named."""


class ChangedError(ShardError):
    """What lies at the location is not what was read there before."""
