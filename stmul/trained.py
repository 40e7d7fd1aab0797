"""A trained network with all it takes to use it: weights, classes, settings, and how the flow it knows was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from configs import load
from stmul.config import RGB_CHANNELS, Config
from stmul.evaluate import Networks
from stmul.matconvnet import load_network, origin_of
from stmul.network import TwoStream
from stmul.options import made_of, must_not_change, run_and_settings
from stmul.resnet import Stream
from stmul.runs import Run
from stmul.snapshot import load_snapshot
from stmul.stages import choose_device, load_networks
from stmul.start import is_network_file


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trained:
    """The networks of a run, or of a file, ready to score."""

    name: str  # the run's id, or the file's name
    place: str  # folder or file
    told: str  # which state of it, in words: "epoch 40"
    networks: Networks
    classes: tuple[str, ...]  # by label
    config: Config
    device: torch.device
    dataset: str = ""  # that it was trained on; empty: nobody has told
    split: int = 0
    digest: str = ""  # of the training part
    made: Mapping[str, Any] = field(default_factory=dict)  # how the records of its shards were made; empty: unknown


def load_trained(cfg: str | None, changes: Sequence[str]) -> Trained:
    """The networks that settings name by `experiment.pre_trained_id`: a run, the newest unless named, or a file.

    Nothing of its shards has to be there, unless a run of an early version does not say how they were made.
    """
    asked = load(Config, cfg, changes)
    if is_network_file(given := asked.experiment.pre_trained_id):
        must_not_change(given, changes)
        return of_file(Path(given), asked)
    return of_run(*run_and_settings(cfg, list(changes)))


def of_run(run: Run, config: Config) -> Trained:
    """The networks of a run, at the epoch that its settings ask for."""
    about, device = run.about(), choose_device(config.experiment)
    if about.network:  # the folder of tests of a network that was not trained here
        return of_file(Path(about.network), config)
    networks, epoch = load_networks(
        run, config, about.classes, epoch=config.experiment.pre_trained_epoch, device=device
    )
    return Trained(
        name=run.id,
        place=str(run.folder),
        told=f"epoch {epoch}",
        networks=networks,
        classes=about.classes,
        config=config,
        device=device,
        dataset=about.dataset,
        split=about.split,
        digest=about.digest,
        made=made_of(run, config),
    )


def of_file(path: Path, config: Config) -> Trained:
    """The network in a file, of both streams or of one. Raises WeightsError where it holds none."""
    network: TwoStream | Stream
    if path.suffix == ".mat":
        network, origin = load_network(path), origin_of(path)
    else:
        network, about = load_snapshot(path)
        origin = about.origin
    device = choose_device(config.experiment)
    network = network.to(device).eval()
    if isinstance(network, TwoStream):
        networks, stack = Networks(joint=network), network.motion.channels // 2
        count = network.appearance.classes
    else:
        rgb = network.channels == RGB_CHANNELS
        networks = Networks(appearance=network) if rgb else Networks(motion=network)
        stack = config.data.stack if rgb else network.channels // 2
        count = network.classes
    data = config.data.model_copy(update={"stack": stack})
    return Trained(
        name=path.name,
        place=str(path),
        told=f"trained on {origin.trained_on}",
        networks=networks,
        classes=network.class_names or tuple(f"class {label}" for label in range(count)),
        config=config.model_copy(update={"network": network.settings, "data": data}),
        device=device,
        dataset=origin.dataset,
        split=origin.split,
    )
