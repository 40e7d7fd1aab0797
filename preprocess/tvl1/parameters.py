"""What TV-L1 is told: the parameters of Zach, Pock and Bischof as OpenCV has them, with OpenCV's defaults."""

from __future__ import annotations

from dataclasses import dataclass

from configs import SettingsError

SMALLEST = 16  # pixels: no scale of the pyramid has a shorter side
MEDIANS = (1, 3, 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Of one run of TV-L1. Raises SettingsError where a value cannot be had."""

    tau: float = 0.25  # step of the dual update
    lambda_: float = 0.15  # weight of the data term: smaller is smoother
    theta: float = 0.3  # tightness between u and its relaxed copy v
    nscales: int = 5
    warps: int = 5  # of each scale
    epsilon: float = 0.01  # pixels: a warp ends when the mean square change of an iteration is below its square
    inner: int = 30  # iterations between two medians, at most
    outer: int = 10  # medians of a warp, at most
    scale_step: float = 0.8  # side of a scale over that of the next finer one
    gamma: float = 0.0  # weight of the illumination term; OpenCV's own TV-L1 alone has it
    median: int = 5  # side of the median filter; 1: none

    def __post_init__(self) -> None:
        if self.gamma != 0:
            raise SettingsError(
                f"TV-L1 with gamma {self.gamma:g}: expected 0: only OpenCV's own has the illumination term."
                " Take it with preprocess.flow.backend: opencv"
            )
        if self.median not in MEDIANS:
            raise SettingsError(f"TV-L1 with a median filter of {self.median}: expected 1 (none), 3 or 5")
        for name in ("nscales", "warps", "inner", "outer"):
            if getattr(self, name) < 1:
                raise SettingsError(f"TV-L1 with {name} {getattr(self, name)}: expected 1 or more")
        for name in ("tau", "lambda_", "theta"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"TV-L1 with {name} {getattr(self, name):g}: expected more than 0")
        if not 0 < self.scale_step < 1 or not self.epsilon >= 0:
            raise SettingsError(
                f"TV-L1 with scale_step {self.scale_step:g} and epsilon {self.epsilon:g}: expected scale_step between"
                " 0 and 1, and epsilon 0 or more"
            )

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of each scale, the finest first. Halves round to even, as OpenCV's resize has it."""
        sizes = [(height, width)]
        while len(sizes) < self.nscales:
            height, width = round(height * self.scale_step), round(width * self.scale_step)
            if min(height, width) < SMALLEST:
                break
            sizes.append((height, width))
        return tuple(sizes)
