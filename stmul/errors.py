"""What can go wrong with networks, weights and runs, split by what the caller can do about it."""

from __future__ import annotations


class StmulError(Exception):
    """Base of all errors of training and testing; the message says where, what was found and expected, what to do."""


class NetworkError(StmulError):
    """Settings, inputs or masks that a network cannot be made of or fed with."""


class WeightsError(StmulError):
    """Weights that do not fit the network they are for, or a file that holds none."""


class CheckpointError(StmulError):
    """A saved state of training that cannot be found, read or continued."""


class RunError(StmulError):
    """A run's folder that cannot be found or made."""


class TrainingError(StmulError):
    """A training that cannot go on."""


class DivergedError(TrainingError):
    """A loss or a gradient that is no finite number."""


class HalfUpdatedError(TrainingError):
    """An update that ended in its midst: the weights are those of no step."""


class EvaluationError(StmulError):
    """Clips that cannot be scored, or scores that cannot be right."""


class ExportError(StmulError):
    """A network that cannot be handed to other programs."""
