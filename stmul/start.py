"""What a training starts from: base networks, ImageNet weights, another run, a network's file, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from shards.split import Split
from stmul.bases import STREAMS, Base, bases_in, fitting, load_bases
from stmul.checkpoint import load
from stmul.config import Config, Network
from stmul.errors import RunError, WeightsError
from stmul.matconvnet import load_network, origin_of
from stmul.network import TwoStream
from stmul.runs import STAGES, Run, checkpoint_path, find_run
from stmul.snapshot import Origin, load_snapshot
from stmul.weights import imagenet, made_for

State = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Start:
    """Which stages are trained, and from what; `words` says it to the user."""

    stages: tuple[str, ...]
    words: str
    states: Mapping[str, State] = field(default_factory=dict)  # by stage; one without begins drawn at random
    shared: Mapping[str, Any] = field(default_factory=dict)  # network settings that they were made for


def find_start(config: Config, split: Split) -> Start:
    """What `train.stages` and the experiment's pre-trained run come to for this data set."""
    wanted = config.train.stages
    if config.experiment.pre_trained_id:
        return _from_run(config, split)
    notes = []
    if wanted in ("auto", "base"):
        bases, manifest = bases_in(Path(config.train.base)), split.manifest
        found = fitting(bases, manifest.dataset, manifest.split, other_split=config.experiment.other_split)
        if len(found) == len(STREAMS):
            return _from_bases(found)
        missing = _missing(config.train.base, bases, found, f"{manifest.dataset} split {manifest.split}")
        if wanted == "base":
            raise WeightsError(missing)
        notes += [missing] if bases else []
    if wanted in ("auto", "imagenet"):
        try:
            weights = imagenet(config.network, config.data, source=config.train.imagenet)
            words = "; ".join(["ImageNet weights; the streams first, then joined", *notes])
            return Start(STAGES, words, weights.states, weights.shared)
        except WeightsError as error:
            if wanted == "imagenet" or config.train.imagenet:
                raise
            notes.append(str(error))
    if wanted == "joint":
        return Start(("joint",), "from scratch, joint alone")
    because = f" ({'; '.join(notes)})" if notes else ""
    return Start(STAGES, f"from scratch{because}; the streams first, then joined")


def _from_bases(found: Mapping[str, Base]) -> Start:
    weights = load_bases(found)
    named = " and ".join(str(found[stream].path) for stream in STREAMS)
    words = f"base networks {named}; the streams are not trained again"
    return Start(("joint",), words, weights.states, weights.shared)


def _missing(folder: str, bases: Sequence[Base], found: Mapping[str, Base], own: str) -> str:
    held = ", ".join(base.path.name for base in found.values()) or "neither"
    words = f"{folder}: expected appearance and motion networks of {own}, found {held}"
    if others := [f"{base.path.name} of {base.origin.trained_on}" for base in bases if base not in found.values()]:
        words += (
            f". Not taken, since they may have seen the clips tested here: {', '.join(others)}"
            f" (--set experiment.other_split=true takes them)"
        )
    return words


def settled(config: Config, start: Start) -> Config:
    """The settings with what the starting weights were made for, in place of defaults.

    Raises WeightsError where the settings say something else than that and than their default.
    """
    defaults = Network()
    for name, value in start.shared.items():
        if (found := getattr(config.network, name)) not in (value, getattr(defaults, name)):
            raise WeightsError(
                f"{start.words}: made for network.{name} {value}, the settings say {found}; leave that setting out"
            )
    return config.model_copy(update={"network": config.network.model_copy(update=dict(start.shared))})


def _from_run(config: Config, split: Split) -> Start:
    given = config.experiment.pre_trained_id
    run = None if is_network_file(given) else find_run(Path(config.experiment.folder), given)
    if file := given if run is None else run.about().network:
        network, origin = load_joint(Path(file))
        fields = {name: getattr(network.settings, name) for name in Network.model_fields}
        words = f"the network in {file}, of {origin.trained_on}"
        start = Start(("joint",), words, {"joint": network.state_dict()}, fields)
    else:
        assert run is not None
        about = run.about()
        origin = Origin(dataset=about.dataset, split=about.split)
        start = _from_trained(run, config.experiment.pre_trained_epoch)
    manifest = split.manifest
    known = origin.dataset and origin.split and not config.experiment.other_split
    if known and (origin.dataset, origin.split) != (manifest.dataset, manifest.split):
        raise WeightsError(
            f"{start.words}: trained on {origin.trained_on}, and these are {manifest.dataset} split {manifest.split}."
            f" It may have seen the clips tested here; begin with it all the same: --set experiment.other_split=true"
        )
    return start


def _from_trained(run: Run, epoch: int | Literal["best"]) -> Start:
    if run.checkpoints("joint"):
        path = checkpoint_path(run, "joint", epoch)
        found = {"joint": load(path)}
        words = f"the joint network of run {run.id}, {path.stem}"
    else:
        found = {stream: load(checkpoint_path(run, stream, 0)) for stream in STREAMS if run.checkpoints(stream)}
        words = f"the streams of run {run.id}"
        if len(found) < len(STREAMS):
            held = ", ".join(found) or "none"
            raise RunError(f"{run.folder}: expected a joint network or both streams, found {held}")
    states = {stage: checkpoint.network for stage, checkpoint in found.items()}
    return Start(("joint",), words, states, made_for(next(iter(found.values())).config))


def is_network_file(given: str) -> bool:
    """Whether what was given as a run is a file with a network."""
    return Path(given).suffix in (".safetensors", ".mat")


def load_joint(path: Path) -> tuple[TwoStream, Origin]:
    """The joint network in a file, and where it comes from. Raises WeightsError where it holds something else."""
    if path.suffix == ".mat":
        return load_network(path), origin_of(path)
    network, about = load_snapshot(path)
    if not isinstance(network, TwoStream):
        raise WeightsError(f"{path}: the {about.kind} stream alone; a base network belongs into train.base")
    return network, about.origin
