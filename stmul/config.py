"""Every setting of training and testing, typed, with its range; nothing here is read but what is passed on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from configs import Settings, names

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
# Of convolutions; weights, statistics, scores and losses are float32.
Precision = Literal["float32", "bfloat16", "float16"]
Unit = Annotated[str, Field(pattern=r"^[2-5][a-z]{1,2}$")]  # a residual unit by its name in the papers: 2b, 3b, ...
BEST: Literal["best"] = "best"
RGB_CHANNELS = 3
FLOW_MEAN = 128.0  # what the released code subtracts, though no motion lies at 127.5
UNITS_B: tuple[str, ...] = ("2b", "3b", "4b", "5b")
STRIDED = ("3a", "4a", "5a")  # units that halve height and width
UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # stages 2 .. 5


def _epoch(value: object) -> object:
    """The number of an epoch, or `best`; by hand, for pydantic would complain of each of the two by itself."""
    if value == BEST or (type(value) is int and value >= 0):
        return value
    raise ValueError(f"expected the number of an epoch, or best; found {value!r}")


Epoch = Annotated[int | Literal["best"], PlainValidator(_epoch)]


def unit_names(depth: int) -> tuple[str, ...]:
    """The residual units of a ResNet in their order: 2a, 2b, ... 5c; after z comes aa."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    ends = [*letters, *(f"a{letter}" for letter in letters)]
    return tuple(f"{stage}{end}" for stage, count in enumerate(UNITS[depth], 2) for end in ends[:count])


class StreamNetwork(Settings):
    """One ResNet."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    width: PositiveInt = 64  # channels after conv1; the paper's 64
    dropout: Fraction = 0.0  # before the classifier
    temporal_units: tuple[Unit, ...] | None = None  # with temporal filters, if other than `temporal.units` of both


class TemporalFilters(Settings):
    """Convolutions over three instants in residual units of both streams.

    `injected`: a new one after the unit's middle ReLU (ST-MulNet). `inflated`: the unit's two 1x1 convolutions become
    filters over time themselves (ST-ResNet); bottlenecks of stride 1 only.
    """

    kind: Literal["injected", "inflated"] = "injected"
    initial: Literal["centre", "average", "difference"] = "centre"
    units: tuple[Unit, ...] = UNITS_B  # empty: no temporal filters


class Network(Settings):
    """Two streams and what passes between them."""

    appearance: StreamNetwork = StreamNetwork()
    motion: StreamNetwork = StreamNetwork(dropout=0.8)
    operator: Literal["multiply", "add", "none"] = "multiply"
    direction: Literal["motion_to_appearance", "appearance_to_motion", "both"] = "motion_to_appearance"
    gated: tuple[Unit, ...] = UNITS_B
    temporal: TemporalFilters = TemporalFilters()
    temporal_window: PositiveInt = 5  # of the maximum over time, before the spatial average
    temporal_stride: PositiveInt = 1  # instants between two such windows
    rgb_mean: tuple[float, float, float] = (
        123.68,
        116.779,
        103.939,
    )  # ImageNet's; given weights bring theirs
    stride_on: Literal["1x1", "3x3"] = "3x3"  # of a bottleneck: Caffe's or torchvision's
    pooling: Literal["caffe", "torchvision"] = "torchvision"  # padding of the maximum after conv1

    def filtered(self, stream: StreamNetwork) -> tuple[str, ...]:
        """The units of a stream that have temporal filters."""
        return self.temporal.units if stream.temporal_units is None else stream.temporal_units

    @model_validator(mode="after")
    def streams_meet(self) -> Self:
        if self.operator != "none":
            one, other = self.appearance, self.motion
            if one.width != other.width or (one.depth >= 50) != (other.depth >= 50):
                raise ValueError(
                    f"operator {self.operator} joins streams of equal channels; appearance is depth {one.depth} width"
                    f" {one.width}, motion is depth {other.depth} width {other.width}"
                )
        return self

    @model_validator(mode="after")
    def units_exist(self) -> Self:
        depth = min(self.appearance.depth, self.motion.depth)
        names = [
            name for name in unit_names(depth) if name in unit_names(max(self.appearance.depth, self.motion.depth))
        ]
        for stream in (self.appearance, self.motion):
            filtered, own = self.filtered(stream), unit_names(stream.depth)
            if missing := [name for name in filtered if name not in own]:
                raise ValueError(f"temporal.units {missing}: units of depth {stream.depth} are {', '.join(own)}")
            if self.temporal.kind == "inflated" and filtered and stream.depth < 50:
                raise ValueError("temporal.kind inflated: only depth 50 and more has 1x1 convolutions to inflate")
            if self.temporal.kind == "inflated" and (strided := [name for name in filtered if name in STRIDED]):
                raise ValueError(f"temporal.units {strided}: units that step over positions cannot be inflated")
        if self.operator != "none" and (missing := [name for name in self.gated if name not in names[1:]]):
            raise ValueError(f"gated {missing}: units that follow another in both streams are {', '.join(names[1:])}")
        return self


class Data(Settings):
    """Which clips, and how they are cut out of their videos."""

    shards: str = ""  # folder, LMDB, http(s):// or s3:// URL; empty: the shards built last
    frames: PositiveInt = 5  # T, instants of a training clip
    stack: Annotated[int, Field(ge=2, multiple_of=2)] = 10  # L, flow pairs at each instant
    stride: tuple[PositiveInt, PositiveInt] = (5, 35)  # frames between instants, drawn for each sub-batch
    crop: Annotated[int, Field(ge=32, multiple_of=2)] = 224  # pixels, side of what the network sees in training
    order: Literal["full", "windowed"] = "full"
    window: PositiveInt = 8  # shards in a window of the windowed order
    threads: NonNegativeInt = 0  # reading and decoding; 0: one for each core this process may use
    memory: PositiveInt = 2048  # MiB of decoded clips that reading may be ahead
    access: Literal["auto", "ranges", "shards"] = "auto"  # of a URL; auto: shards if the cache holds all of them
    cache: str = ""  # folder for whole shards of a URL
    cache_limit: PositiveFloat = 64.0  # GiB in it
    read_ahead: PositiveInt = 256  # MiB of clips fetched from a URL before they are decoded
    connections: PositiveInt = 64  # requests to a server at the same time
    deadline: PositiveFloat = 300.0  # seconds that a server which has answered before may be gone
    decode: Literal["cpu", "gpu"] = "cpu"  # gpu: by torchvision's nvJPEG; levels differ from the CPU's by a few
    damage: Literal["fail", "skip"] = "fail"  # of training clips; skip: left out, outside all statistics, and listed
    damage_limit: PositiveInt = 20  # damaged videos after which training gives up all the same
    original_window_start: bool = False  # the released code never starts a window at the first position
    original_crop_corners: bool = False  # ... and crops only top left and bottom right

    @model_validator(mode="after")
    def stride_ascends(self) -> Self:
        if self.stride[0] > self.stride[1]:
            raise ValueError(f"stride {list(self.stride)}: the first is the smallest, the second the largest")
        return self


class Recipe(Settings):
    """How one stage is trained."""

    other_names: ClassVar = {"lr": "rates", "learning_rate": "rates"}

    epochs: NonNegativeInt
    rates: tuple[PositiveFloat, ...]  # steps: each for epochs / len(rates) epochs; cosine: the first is the peak
    schedule: Literal["steps", "cosine"] = "steps"
    warm_up: Fraction = 0.0  # part of all steps over which the rate rises from 0
    crops: Literal["independent", "border", "multiscale", "random", "centre"] = "independent"
    dropout: Fraction | None = None  # before the classifiers, if other than the network's
    batch: NonNegativeInt = 0  # clips of one update; 0: as `train.batch`
    sub_batch: NonNegativeInt = 0  # clips that share BatchNorm statistics; 0: as `train.sub_batch`

    @model_validator(mode="after")
    def rates_given(self) -> Self:
        if not self.rates:
            raise ValueError("rates: expected at least one learning rate, found none")
        return self


class Train(Settings):
    """Stochastic gradient descent in stages: appearance and motion alone, then both joined."""

    other_names: ClassVar = {"lr": "joint.rates", "learning_rate": "joint.rates", "epochs": "joint.epochs"}

    seed: NonNegativeInt = 1
    stages: Literal["auto", "scratch", "imagenet", "base", "joint"] = "auto"
    base: str = "experiment/base_pretrained_nets"  # folder of base networks: .safetensors, .pt, or the authors' .mat
    imagenet: str = ""  # file, or folder with one for each depth; empty: torchvision's download, if reachable
    batch: PositiveInt = 128  # clips of one update
    sub_batch: PositiveInt = 4  # clips that share BatchNorm statistics, and a stride
    groups: NonNegativeInt = 0  # sub-batches in one forward; 0: as many as the memory holds
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 5e-4  # on convolution weights only
    moments_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05  # of BatchNorm's running moments
    clip_norm: NonNegativeFloat = 0.0  # largest gradient norm; 0: unbounded
    keep: PositiveInt = 2  # checkpoints of each stage, the last ones
    save_minutes: NonNegativeFloat = 15.0  # also within an epoch, so often; 0: only after each epoch
    precision: Precision = "float32"
    compile: bool = False  # the network, where there is a compiler; takes minutes before the first step
    deterministic: bool = False  # the same bits again on the same GPU: slower kernels, or an error where there are none
    hold_out: Fraction = 0.0  # part of the training clips' groups that only validate; 0: none, as published
    validate_every: PositiveInt = 1  # epochs; and after a stage's last
    appearance: Recipe = Recipe(epochs=60, rates=(1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4), crops="border")
    motion: Recipe = Recipe(epochs=400, rates=(1e-2, 1e-3, 1e-4, 1e-5), crops="multiscale")
    joint: Recipe = Recipe(epochs=25, rates=(1e-3, 1e-3, 1e-4, 1e-5, 1e-6))

    @model_validator(mode="after")
    def sub_batches_fill_the_batch(self) -> Self:
        for stage in ("", "appearance", "motion", "joint"):
            batch, sub_batch = self.batches(stage)
            if batch % sub_batch:
                raise ValueError(f"{stage} batch {batch} is not a multiple of sub_batch {sub_batch}".lstrip())
        return self

    def batches(self, stage: str) -> tuple[int, int]:
        """Clips of one update, and of one sub-batch, in a stage."""
        recipe = getattr(self, stage) if stage else None
        batch, sub_batch = (recipe.batch, recipe.sub_batch) if recipe is not None else (0, 0)
        return batch or self.batch, sub_batch or self.sub_batch


class Evaluate(Settings):
    """How a video is scored."""

    protocol: Literal["dense", "centre"] = "dense"  # dense: whole frames, fully convolutional; centre: one crop
    frames: PositiveInt = 25  # instants spread evenly over the video
    mirror: bool = True  # also the mirror image
    precision: Precision = "float32"
    compile: bool = False  # pays for itself in a whole split


class Experiment(Settings):
    """Where things are, and on which device."""

    dataset_dir: str = "dataset"
    folder: str = "experiment"
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    gpu_id: NonNegativeInt = 0
    pre_trained_id: str = ""  # a run's id, or a file with a network, to start from or to test
    pre_trained_epoch: Epoch = 0  # 0: its last; best: on the clips held out
    other_split: bool = False  # also networks of another split or data set: they may have seen the clips tested here


class Config(Settings):
    """The whole tree: one section for each station of the way from shards to scores."""

    network: Network = Network()
    data: Data = Data()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    experiment: Experiment = Experiment()


def own_configuration(dataset: str) -> str | None:
    """The shipped configuration that a data set is trained with unless another is named; None where it has none."""
    name = {"drawn": "demo"}.get(dataset, dataset)
    return name if name in names() else None
