"""The stages of a training, what each starts from, and running them: the streams alone first, then both joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs import SettingsError
from shards.split import Split
from stmul.checkpoint import load, restore
from stmul.config import Config, Experiment
from stmul.errors import RunError, TrainingError, WeightsError
from stmul.evaluate import Networks
from stmul.network import TwoStream, join, single
from stmul.resnet import Stream
from stmul.runs import STAGES, About, Run, find_run, new_run, unfinished
from stmul.train import Watch, train_stage
from stmul.weights import fitted, imagenet, read_state

State = Mapping[str, Tensor]
STREAMS = ("appearance", "motion")


@dataclass(frozen=True, slots=True)
class Start:
    """Which stages are trained, and from what; `words` says it to the user."""

    stages: tuple[str, ...]
    words: str
    states: Mapping[str, State]  # by stage: what its network begins with; a stage without one begins drawn at random


def choose_device(experiment: Experiment) -> torch.device:
    """The device asked for. Raises SettingsError where a GPU is demanded and there is none, or not that one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if experiment.use_gpu == "no" or (experiment.use_gpu == "auto" and not count):
        return torch.device("cpu")
    if experiment.gpu_id >= count:
        raise SettingsError(
            f"experiment.gpu_id: expected one of the {count} GPUs that PyTorch sees, found {experiment.gpu_id};"
            f" without a GPU: --use-gpu no"
        )
    return torch.device("cuda", experiment.gpu_id)


def pool_of(config: Config) -> int:
    """The side of the last feature map in training, 7 at 224 pixels: the average pool's window, in testing too."""
    return -(-config.data.crop // 32)


def build(stage: str, config: Config, classes: int) -> nn.Module:
    """The network of a stage, drawn at random as a function of (seed, stage)."""
    torch.manual_seed(config.train.seed * len(STAGES) + STAGES.index(stage))
    stack, pool = config.data.stack, pool_of(config)
    if stage == "joint":
        return TwoStream(config.network, stack=stack, classes=classes, pool=pool)
    return single(config.network, stage, stack=stack, classes=classes, pool=pool)  # type: ignore[arg-type]


def find_start(config: Config, split: Split) -> Start:
    """What `train.stages` and the experiment's pre-trained run come to for this data set."""
    wanted = config.train.stages
    if config.experiment.pre_trained_id:
        return _from_run(config)
    if wanted in ("auto", "base"):
        folder, dataset = Path(config.train.base), split.manifest.dataset
        files = {stream: path for stream in STREAMS if (path := _base_file(folder, dataset, stream))}
        if len(files) == len(STREAMS):
            bases = {stream: read_state(path) for stream, path in files.items()}
            named = " and ".join(path.name for path in files.values())
            return Start(("joint",), f"base networks {named} in {folder}; the streams are not trained again", bases)
        if wanted == "base":
            raise WeightsError(
                f"{folder}: expected {dataset}-appearance and {dataset}-motion (.pt or .safetensors), found"
                f" {', '.join(path.name for path in files.values()) or 'neither'}"
            )
    if wanted in ("auto", "imagenet"):
        try:
            weights = imagenet(config.network, config.data, source=config.train.imagenet)
            return Start(STAGES, "ImageNet weights; the streams first, then joined", weights)
        except WeightsError as error:
            if wanted == "imagenet" or config.train.imagenet:
                raise
            return Start(STAGES, f"from scratch ({error}); the streams first, then joined", {})
    if wanted == "joint":
        return Start(("joint",), "from scratch, joint alone", {})
    return Start(STAGES, "from scratch; the streams first, then joined", {})


def _base_file(folder: Path, dataset: str, stream: str) -> Path | None:
    found = [path for ending in ("safetensors", "pt") if (path := folder / f"{dataset}-{stream}.{ending}").is_file()]
    return found[0] if found else None


def _from_run(config: Config) -> Start:
    run = find_run(Path(config.experiment.folder), config.experiment.pre_trained_id)
    if run.checkpoints("joint"):
        path = checkpoint_path(run, "joint", config.experiment.pre_trained_epoch)
        return Start(("joint",), f"the joint network of run {run.id}, {path.stem}", {"joint": load(path).network})
    states = {stream: load(checkpoint_path(run, stream, 0)).network for stream in STREAMS if run.checkpoints(stream)}
    if len(states) < len(STREAMS):
        raise RunError(f"{run.folder}: expected a joint network or both streams, found {', '.join(states) or 'none'}")
    return Start(("joint",), f"the streams of run {run.id}", states)


def checkpoint_path(run: Run, stage: str, epoch: int) -> Path:
    """The checkpoint of `stage` after `epoch`, or the last one for 0. Raises RunError listing what there is."""
    known = run.checkpoints(stage)
    if not known:
        raise RunError(f"{run.folder}: no checkpoint of stage {stage}; its training has not completed an epoch")
    if epoch and epoch not in known:
        raise RunError(f"{run.folder}: no checkpoint of epoch {epoch} (kept: {', '.join(map(str, known))})")
    return known[epoch or max(known)]


def open_run(config: Config, split: Split, start: Start, *, name: str, fresh: bool) -> tuple[Run, bool]:
    """The run to train in, and whether it goes on with one that was stopped (same data, same settings)."""
    matters = config.model_dump(mode="json", exclude={"experiment": {"use_gpu", "gpu_id", "folder", "dataset_dir"}})
    matters["data"].pop("shards")
    matters["data"].pop("threads")
    about = About(
        shards=split.location,
        dataset=split.manifest.dataset,
        split=split.manifest.split,
        classes=split.manifest.classes,
        digest=split.manifest.parts["train"].digest,
        settings=matters,
        start=start.words,
    )
    folder = Path(config.experiment.folder)
    stopped = None if fresh else unfinished(folder, about)
    if stopped is not None:
        return stopped, True
    run = new_run(folder, name)
    run.describe(about, config)
    return run, False


def train_stages(
    config: Config,
    split: Split,
    run: Run,
    start: Start,
    *,
    device: torch.device,
    watch: Watch,
    log: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> bool:
    """Trains every stage to its end and marks the run as done. False where `stop()` ended it early: run it again."""
    states = dict(start.states)
    classes = len(split.manifest.classes)
    for stage in start.stages:
        network = _begun(stage, states, config, classes, say).to(device)
        if device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        if not train_stage(stage, network, config, split, run, device=device, watch=watch, log=log, stop=stop):
            return False
        states[stage] = {name: value.cpu() for name, value in network.state_dict().items()}
    run.describe(replace(run.about(), done=True), config)
    return True


def _begun(
    stage: str, states: Mapping[str, State], config: Config, classes: int, say: Callable[[str], None]
) -> nn.Module:
    """The network of a stage with what it starts from; a classifier of other classes is left as drawn, and said so."""
    if stage == "joint" and stage not in states and set(STREAMS) <= states.keys():
        appearance, motion = (_begun(stream, states, config, classes, say) for stream in STREAMS)
        assert isinstance(appearance, Stream)
        assert isinstance(motion, Stream)
        return join(config.network, appearance, motion)
    network = build(stage, config, classes)
    if stage in states:
        state, replaced = fitted(states[stage], network, f"starting weights of stage {stage}")
        for name in replaced:
            say(f"{stage}: {name} is for another number of classes; drawn anew")
        network.load_state_dict(dict(state))
    return network


def load_networks(
    run: Run, config: Config, classes: tuple[str, ...], *, epoch: int, device: torch.device
) -> tuple[Networks, int]:
    """The run's networks at `epoch` of its joint stage (0: the last), and that epoch; the streams alone where trained.

    Raises TrainingError where the checkpoint was trained on other classes than `classes`.
    """
    found: dict[str, nn.Module] = {}
    last = 0
    for stage in ("joint", *STREAMS):
        if not run.checkpoints(stage):
            continue
        path = checkpoint_path(run, stage, epoch if stage == "joint" else 0)
        checkpoint = load(path)
        _same_classes(checkpoint.classes, classes, path)
        network = build(stage, config, len(classes))
        restore(network, checkpoint.network, path)
        found[stage] = network.to(device).eval()
        last = last or checkpoint.epoch
    if not found:
        raise RunError(f"{run.folder}: nothing to test: no stage has completed an epoch")
    return Networks(**found), last  # type: ignore[arg-type]


def _same_classes(trained: list[str], tested: tuple[str, ...], path: Path) -> None:
    if list(tested) != trained:
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(trained, tested, strict=False)) if a != b]
        first = f"class {pairs[0][0]} is {pairs[0][1]!r} there and {pairs[0][2]!r} here" if pairs else "one has more"
        raise TrainingError(
            f"{path}: trained on {len(trained)} classes, these shards have {len(tested)}: {first}."
            f" Test on shards of the data set it was trained on (--set data.shards=...)"
        )
