"""What ends a training in the midst of a step, told so that one knows what to do about it."""

from __future__ import annotations

import torch

from stmul.config import Config
from stmul.errors import DivergedError, TrainingError

FULL = ("out of memory", "can't allocate memory", "alloc_failed", "not enough memory")


def told(error: Exception, config: Config, stage: str, *, where: str, kept: str, groups: int) -> Exception:
    """The error to raise in place of `error`, which came at `where`; `kept` says where the same command goes on.

    Memory and numbers that ran out, and what cannot be done deterministically, become TrainingErrors that say what to
    change; whatever else it is stays what it is, with place and `kept` noted on it.
    """
    first = first_line(error)
    if out_of_memory(error):
        return TrainingError(f"{where}: no memory is left ({first}). {_less(config, stage, groups)}. {kept}")
    if isinstance(error, DivergedError):
        return TrainingError(
            f"{where}: {error}. A new run with a lower rate (--set train.{stage}.rates=[...]) or a bounded gradient"
            f" (--set train.clip_norm=10) may not diverge. {kept}"
        )
    if "deterministic" in first and "implementation" in first:
        return TrainingError(f"{where}: {first}. Train without --deterministic (train.deterministic=false). {kept}")
    error.add_note(f"{where}. {kept}")
    return error


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".")[:300]


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be had: a GPU's, or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in FULL)


def _less(config: Config, stage: str, groups: int) -> str:
    """What takes less memory, beginning with what changes nothing of what is learnt."""
    sub_batch = config.train.batches(stage)[1]
    same = "the same run goes on with it"
    ways = [f"--set data.memory={max(64, config.data.memory // 4)} lets reading be less far ahead; {same}"]
    if groups > 1:
        fewer = max(1, groups // 2)
        ways.insert(
            0, f"{groups} sub-batches of {sub_batch} go through the network at once: --set train.groups={fewer}; {same}"
        )
    else:
        ways.append(
            "train.precision=bfloat16, a smaller data.crop or a narrower network are another training, a new run"
        )
    return "Take less: " + ". Or ".join(ways)
