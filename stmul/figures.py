"""What was measured of loading, which station of it is the limit, and what would change that; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

LITTLE = 0.1  # differences below this are taken for the noise of a measurement
GROWS = 0.75  # of the threads' number, from which on threads are said to help
ALONE = 0.8  # of the slowest station's rate, below which it is said why all together are slower


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One measurement: so many clips in so many seconds."""

    threads: int
    clips: int
    seconds: float
    cpu: float  # seconds of it, summed over all threads of the process

    @property
    def rate(self) -> float:
        """Clips a second."""
        return self.clips / max(self.seconds, 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading(Pass):
    """Reading and checking alone."""

    used: int  # bytes of the JPEGs wanted
    read: int  # bytes asked of the store
    reads: int  # ranges asked of the store


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding(Pass):
    """Decoding alone, from memory."""

    images: int  # JPEGs; a flow pair is two
    pixels: int  # bytes, all decoded
    flow_pixels: int  # bytes, of the flow's


@dataclass(frozen=True, kw_only=True, slots=True)
class Moving(Pass):
    """Decoded frames from the CPU to the GPU."""

    moved: int  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery(Pass):
    """All of it, as the trainer gets it."""

    first: float  # seconds until the first sub-batch was there


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """The connection to a server."""

    round_trip: float  # seconds: median of reads of one byte
    bytes: int  # by large reads, several at once
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """All that was measured."""

    location: str
    store: str  # tar, lmdb, files; remote
    part: str
    stage: str
    records: int
    cores: int
    device: str
    flow_scale: float  # stored width of the flow over that of the frames
    decode: str  # cpu, gpu
    first_pass: tuple[Reading, ...]  # one thread, all threads
    again: tuple[Reading, ...]  # the same records once more
    decoding: tuple[Decoding, ...]  # one thread, all threads; one on a GPU
    moving: Moving | None  # to a GPU
    cutting: Pass  # cropped, resized, mirrored, where the trainer does it
    delivery: Delivery
    link: Link | None  # to a server

    def stations(self) -> dict[str, Pass]:
        """What a clip passes through, each with all its threads, by name; reading as at first."""
        found: dict[str, Pass] = {"reading": self.first_pass[-1], "decoding": self.decoding[-1]}
        if self.moving is not None:
            found["moving to the GPU"] = self.moving
        return {**found, "cropping": self.cutting}

    def limit(self, *, again: bool) -> str:
        """The station that takes longest for a clip, with the pass over records read for the first time, or `again`."""
        stations = self.stations() | ({"reading": self.again[-1]} if again else {})
        return min(stations, key=lambda name: stations[name].rate)


def verdict(figures: Figures) -> Iterator[str]:
    """Which station is the limit, in sentences."""
    stations = figures.stations() | {"reading": figures.again[-1]}
    once, limit = figures.limit(again=False), figures.limit(again=True)
    if once == "reading" != limit:
        one, two = figures.first_pass[-1].rate, figures.again[-1].rate
        yield f"reading is the slowest station the first time: {one:.0f} clips/s, {two:.0f} the second"
    others = ", ".join(f"{name} {station.rate:.0f}" for name, station in stations.items() if name != limit)
    after = " after that" if once == "reading" != limit else ""
    yield f"{limit} is the slowest station{after}: {stations[limit].rate:.0f} clips/s ({others})"
    part = figures.delivery.rate / max(stations[limit].rate, 1e-9)
    yield f"all together deliver {figures.delivery.rate:.0f} clips/s, {100 * part:.0f} % of that"
    if part < ALONE and figures.device == "cpu":
        yield f"alone each station had all {figures.cores} cores, together they share them"


def advice(figures: Figures) -> Iterator[str]:
    """What to change, as far as the figures say."""
    limits = {figures.limit(again=False), figures.limit(again=True)}
    computing = figures.decoding[-1]
    if figures.decode == "cpu" and busy(computing, figures.cores):
        part = computing.cpu / (computing.seconds * min(computing.threads, figures.cores))
        yield (
            f"cores     threads that decoded had {100 * part:.0f} % of the cores they could use: see what else runs"
            " here, and how many cores are really lent"
        )
    if "reading" in limits:
        yield from _reading(figures)
    if "decoding" in limits:
        yield from _decoding(figures)
    share = computing.flow_pixels / max(1, computing.pixels)
    if figures.flow_scale > 0.5 and share > 0.5 and limits != {"cropping"}:
        yield (
            f"flow      {100 * share:.0f} % of the pixels decoded are flow of full size; at half the size they are a"
            " quarter (stmul preprocess shards --flow-scale 0.5)"
        )
    if "cropping" in limits and figures.device == "cpu":
        yield "GPU       cropping on the CPU is what takes longest; with a GPU the trainer crops there"


def as_tree(figures: Figures) -> dict[str, Any]:
    """The figures for machines, with the rates, the stations that are the limit, and the advice."""

    def tree(one: Any) -> Any:
        if isinstance(one, tuple):
            return [tree(each) for each in one]
        return asdict(one) | {"clips_per_second": one.rate} if isinstance(one, Pass) else one

    found = {field.name: tree(getattr(figures, field.name)) for field in fields(figures)}
    link = asdict(figures.link) if figures.link is not None else None
    limits = {"limit_first": figures.limit(again=False), "limit_again": figures.limit(again=True)}
    return {**found, "link": link, **limits, "advice": list(advice(figures))}


def busy(one: Pass, cores: int) -> bool:
    """Whether a measurement that only computes got clearly less of the cores than its threads could have used."""
    return one.cpu < ALONE * one.seconds * min(one.threads, cores)


def _decoding(figures: Figures) -> Iterator[str]:
    threads, cores = figures.delivery.threads, figures.cores
    if figures.decode == "gpu":
        yield "decode    compare with decoding on the CPU: --set data.decode=cpu"
        return
    helped = figures.decoding[-1].rate / max(figures.decoding[0].rate, 1e-9)
    if threads < cores:
        yield f"threads   {threads} decode on {cores} cores: --threads {cores}, in training --set data.threads={cores}"
    elif threads > 1 and helped < GROWS * threads:
        yield f"cores     {threads} threads decode only {helped:.1f} times as fast as one: more cores may help little"
    elif threads > 1:
        yield f"cores     {threads} threads decode {helped:.1f} times as fast as one: more cores should help"
    if figures.device != "cpu":
        yield "decode    compare with decoding on the GPU: --set data.decode=gpu"


def _reading(figures: Figures) -> Iterator[str]:
    first, again, link = figures.first_pass[-1], figures.again[-1], figures.link
    if link is not None:
        reached, bandwidth = 1e-6 * first.read / first.seconds, 1e-6 * link.bytes / link.seconds
        if reached < (1 - LITTLE) * bandwidth:
            yield (
                f"threads   clips are read at {reached:.0f} MB/s, large pieces at {bandwidth:.0f}: let more reads wait"
                f" at the same time, --threads {2 * first.threads}, in training --set data.threads={2 * first.threads}"
            )
        yield "distance  read from a place that is closer, or copy it here: stmul shards copy URL FOLDER"
        return
    if again.rate > (1 + LITTLE) * first.rate:
        yield (
            f"storage   the same records were read {again.rate / first.rate:.1f} times as fast the second time: a"
            " faster disk, or memory that holds the part, would help the first"
        )
    yield "order     compare with --set data.order=windowed"
    if figures.store != "lmdb":
        yield "store     compare with an LMDB: stmul shards copy FOLDER FOLDER.lmdb"
