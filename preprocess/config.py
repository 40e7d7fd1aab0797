"""Every setting of building shards, typed, with its range."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from configs import Settings

Quality = Annotated[int, Field(ge=1, le=100)]
SCALES = (1.0, 0.5)


class Rgb(Settings):
    """RGB frames as they are stored."""

    short_side: Annotated[int, Field(ge=16, le=4096)] = 256  # pixels; the other side keeps the shape, floored to even
    quality: Quality = 90  # JPEG, 4:2:0


class Flow(Settings):
    """Optical flow between neighbouring frames, computed at the frames' stored size."""

    method: Literal["tvl1", "dis", "farneback", "raft"] = "tvl1"
    backend: Literal["auto", "cuda", "cpu", "opencv"] = "auto"  # what computes it; auto: a GPU, else what is fastest
    parameters: dict[str, float] = Field(default_factory=dict)  # of the method, by its own names; empty: its defaults
    weights: str = ""  # of raft: a file
    library: str = ""  # name and version of what must compute it, else an error; empty: whatever is here. Builds pin it
    quality: Quality = 95  # gray JPEG
    scale: float = 1.0  # of the size it is stored at, over the frames': 1, or 0.5 for half of each side

    @field_validator("scale")
    @classmethod
    def whole_or_half(cls, scale: float) -> float:
        if scale not in SCALES:
            raise ValueError(f"expected 1 (the frames' size) or 0.5 (half of each side), found {scale:g}")
        return scale


class Drawn(Settings):
    """The drawn demo set: its size and its seed."""

    seed: NonNegativeInt = 1
    train: Annotated[int, Field(ge=32, multiple_of=16)] = 320  # clips of each split; a group has 16, one of each cell
    test: Annotated[int, Field(ge=16, multiple_of=16)] = 128
    frames: Annotated[int, Field(ge=12)] = 48
    width: Annotated[int, Field(ge=64, multiple_of=2)] = 96  # pixels
    height: Annotated[int, Field(ge=64, multiple_of=2)] = 72

    @model_validator(mode="after")
    def groups_suffice(self) -> Self:
        if self.train < 2 * self.test:
            raise ValueError(f"train {self.train}: expected at least twice test {self.test}: three splits test in turn")
        if self.train + self.test > 99 * 16:
            raise ValueError(f"train {self.train} and test {self.test}: expected at most 99 groups of 16 clips in all")
        if self.width < self.height:
            raise ValueError(f"width {self.width}: expected at least the height, {self.height}")
        return self


class Preprocess(Settings):
    """From videos to the shards of one split."""

    dataset: Literal["auto", "ucf101", "hmdb51", "folders", "extracted", "drawn"] = "auto"
    root: str = ""  # folder of the data set; empty: dataset/UCF101, dataset/HMDB51, else the drawn set
    lists: str = ""  # folder of the split lists; empty: inside or beside the root
    partial: bool = False  # leave out videos that are listed but not there; else they are an error
    split: Annotated[int, Field(ge=1, le=3)] = 1
    out: str = "data"  # shards go to <out>/<data set>/split<n>
    rgb: Rgb = Rgb()
    flow: Flow = Flow()
    drawn: Drawn = Drawn()
    per_shard: PositiveInt = 64  # records
    workers: NonNegativeInt = 0  # at a time; 0: one for each core this process may use, but at most four for each GPU
    engine: Literal["processes", "ray"] = "processes"  # where they run: here, or on a Ray cluster that is there
    part: str = ""  # "3/16": every 16th shard from the third, to be merged with the others; empty: all
    limit: NonNegativeInt = 0  # at most so many videos of each class and part; 0: all
    classes: tuple[str, ...] = ()  # only these; empty: all
    failures: NonNegativeInt = 100  # broken videos after which the build gives up

    @field_validator("part")
    @classmethod
    def one_of_all(cls, part: str) -> str:
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", part)
        if part and not (found and 1 <= int(found[1]) <= int(found[2])):
            raise ValueError(f"expected i/n with i from 1 to n, such as 3/16, found {part!r}")
        return part


class PreprocessConfig(Settings):
    """The tree that the command reads: the section `preprocess` of a configuration."""

    preprocess: Preprocess = Preprocess()
