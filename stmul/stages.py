"""The stages of a training and running them: the streams alone first, then both joined; loading what came of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from configs import SettingsError
from shards.split import Split
from shards.stream import cores
from stmul.agreement import must_agree
from stmul.arithmetic import as_possible, deterministic
from stmul.bases import STREAMS
from stmul.checkpoint import load, restore
from stmul.config import BEST, Config, Experiment
from stmul.distributed import ALONE, Ranks
from stmul.environment import environment
from stmul.errors import RunError, TrainingError
from stmul.evaluate import Networks
from stmul.meter import Watch
from stmul.network import TwoStream, join, single
from stmul.profiling import Profile, unmeasured, watched
from stmul.resnet import Stream
from stmul.runs import STAGES, About, Run, checkpoint_path, new_run, unfinished
from stmul.snapshot import Origin
from stmul.start import Start, find_start, load_joint, settled
from stmul.train import train_stage
from stmul.weights import fitted

State = Mapping[str, Tensor]
# Settings that change nothing of what is learnt: a stopped training goes on with others.
WITHOUT_EFFECT = {
    "data": {
        *("shards", "threads", "memory", "damage", "damage_limit"),
        *("access", "cache", "cache_limit", "read_ahead", "connections", "deadline"),
    },
    "train": {"keep", "save_minutes", "validate_every", "groups"},  # groups: but for roundings and draws of dropout
    "experiment": {"use_gpu", "gpu_id", "folder", "dataset_dir"},
}


def with_threads(config: Config, ranks: Ranks) -> Config:
    """The settings with the machine's cores shared out among its ranks, where they do not say how many threads read."""
    if config.data.threads or ranks.local_world == 1:
        return config
    threads = max(1, cores() // ranks.local_world)
    return config.model_copy(update={"data": config.data.model_copy(update={"threads": threads})})


def choose_device(experiment: Experiment, ranks: Ranks = ALONE) -> torch.device:
    """The device asked for; of several processes on a machine each gets a GPU of its own, from `gpu_id` on.

    Raises SettingsError where a GPU is demanded and there is none, or not that one.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if experiment.use_gpu == "no" or (experiment.use_gpu == "auto" and not count):
        return torch.device("cpu")
    number = experiment.gpu_id + ranks.local
    if number >= count:
        raise SettingsError(
            f"experiment.gpu_id: expected one of the {count} GPUs that PyTorch sees, found {number};"
            f" without a GPU: --use-gpu no"
        )
    return torch.device("cuda", number)


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


def open_run(config: Config, split: Split, start: Start, *, name: str, fresh: bool) -> tuple[Run, bool]:
    """The run to train in, and whether it goes on with one that was stopped (same data, same settings)."""
    matters = config.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    about = About(
        shards=split.location,
        dataset=split.manifest.dataset,
        split=split.manifest.split,
        classes=split.manifest.classes,
        digest=split.manifest.parts["train"].digest,
        settings=matters,
        start=start.words,
        made=split.manifest.made,
    )
    folder = Path(config.experiment.folder)
    stopped = None if fresh else unfinished(folder, about)
    if stopped is not None:
        return stopped, True
    run = new_run(folder, name)
    run.describe(about, config)
    return run, False


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A training that may start, or go on."""

    config: Config  # as the starting weights have it
    run: Run
    start: Start
    goes_on: bool  # with a run that was stopped
    lines: tuple[str, ...]  # what the user should know of it


def begin(config: Config, split: Split, *, name: str, fresh: bool, ranks: Ranks = ALONE) -> Begun:
    """What a training starts from, and the run it is written to; the first of several ranks finds and makes them.

    The others know of no starting weights: they get the first one's with its network.
    """
    own: Begun | None = None
    if ranks.first:
        start = find_start(config, split)
        asked, config = config, settled(config, start)
        run, goes_on = open_run(config, split, start, name=name, fresh=fresh)
        taken = [f"{name} {value}" for name, value in config.network if getattr(asked.network, name) != value]
        lines = [f"start     {start.words}"]
        lines += [f"network   as the starting weights were made: {', '.join(taken)}"] if taken else []
        own = Begun(config=config, run=run, start=start, goes_on=goes_on, lines=tuple(lines))
    told = ranks.told([own.config.model_dump(mode="json"), str(own.run.folder), own.start.stages] if own else None)
    if own is not None:
        return own
    settings, folder, stages = told
    start = Start(tuple(stages), "what the first rank has")
    return Begun(config=Config.model_validate(settings), run=Run(Path(folder)), start=start, goes_on=False, lines=())


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
    ranks: Ranks = ALONE,
    profiled: bool = False,
) -> bool:
    """Trains every stage to its end and marks the run as done. False where `stop()` ended it early: run it again.

    `profiled` writes a trace of some steps of each stage into the run's folder, and says where their time goes.
    """
    config = with_threads(as_possible(config, "train", device, say), ranks)
    if ranks.first:
        run.note_environment(environment())
    states = dict(start.states)
    classes = len(split.manifest.classes)
    with deterministic(config.train.deterministic):
        for stage in start.stages:
            network = _begun(stage, states, config, classes, say).to(device)
            if (dropout := getattr(config.train, stage).dropout) is not None:
                for layer in (module for module in network.modules() if isinstance(module, nn.Dropout)):
                    layer.p = dropout
            if device.type == "cuda":
                network.to(memory_format=torch.channels_last)
            profile = (
                Profile(run.folder / f"profile-{stage}.json.gz", device, say) if profiled and ranks.first else None
            )
            done = train_stage(
                stage,
                network,
                config,
                split,
                run,
                device=device,
                watch=watch if profile is None else watched(watch, profile),
                log=log,
                stop=stop,
                ranks=ranks,
                section=profile.section if profile is not None else unmeasured,
            )
            if profile is not None:
                profile.finish()
            if not done:
                return False
            states[stage] = {name: value.cpu() for name, value in network.state_dict().items()}
    if ranks.first:
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
    run: Run, config: Config, classes: tuple[str, ...], *, epoch: int | Literal["best"], device: torch.device
) -> tuple[Networks, int]:
    """The run's networks at `epoch` of its joint stage (0: the last), and that epoch; the streams alone where trained.

    `best` takes each stage's best on the clips held out. The epoch is the joint network's, or else a stream's.

    Raises RunError where that epoch is not kept, TrainingError where they were trained on other classes than `classes`,
    CheckpointError where with other settings.
    """
    if file := run.about().network:
        joint, _ = load_joint(Path(file))
        _same_classes(list(joint.class_names or classes[: joint.appearance.classes]), classes, Path(file))
        return Networks(joint=joint.to(device)), 0
    found: dict[str, nn.Module] = {}
    kept = {stage: run.checkpoints(stage) for stage in ("joint", *STREAMS)}
    asked = {"joint"} if kept["joint"] else {stage for stage in STREAMS if epoch in kept[stage]}  # whose epoch it is
    if any(kept.values()) and epoch and epoch != BEST and not asked:
        held = "; ".join(f"{stage} {', '.join(map(str, kept[stage]))}" for stage in STREAMS if kept[stage])
        raise RunError(f"{run.folder}: no joint network yet, and no stream at epoch {epoch} (kept: {held})")
    last = 0
    for stage in ("joint", *STREAMS):
        if not kept[stage]:
            continue
        path = checkpoint_path(run, stage, epoch if stage in asked or epoch == BEST else 0)
        checkpoint = load(path)
        _same_classes(checkpoint.classes, classes, path)
        must_agree(checkpoint.config, config, path)
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


def must_be_unseen(about: About, split: Split, *, other_split: bool) -> None:
    """Raises TrainingError where a network trained on another split would be tested on clips that it may have seen."""
    here = (split.manifest.dataset, split.manifest.split)
    if about.dataset and (about.dataset, about.split) != here and not other_split:
        trained_on = Origin(dataset=about.dataset, split=about.split).trained_on
        raise TrainingError(
            f"{split.location}: {here[0]} split {here[1]}; the network was trained on {trained_on}"
            f" and may have seen these clips. To test it all the same: --set experiment.other_split=true"
        )
