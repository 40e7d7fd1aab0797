"""A way through a DagNN against its arrows, from what a layer makes to the layer; what it has passed is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stmul.dagnn.graph import Graph, Layer
from stmul.errors import WeightsError


@dataclass(slots=True, eq=False)
class Walk:
    """A way through a graph, against its arrows; what it has passed is remembered."""

    graph: Graph
    passed: set[str] = field(default_factory=set)  # layers
    taken: dict[str, tuple[str, int]] = field(default_factory=dict)  # parameter -> the layer that has it, and as what
    makers: dict[str, list[Layer]] = field(init=False)  # variable -> layers

    def __post_init__(self) -> None:
        self.makers = {}
        for layer in self.graph.layers:
            for variable in layer.outputs:
                self.makers.setdefault(variable, []).append(layer)

    def peek(self, variable: str | None) -> Layer | None:
        """The layer that makes a variable; none makes an input of the net."""
        makers = self.makers.get(variable, []) if variable is not None else []
        if len(makers) > 1:
            named = " and ".join(layer.name for layer in makers)
            raise self.wrong(f"variable {variable} is made by layers {named}, expected one of them")
        return makers[0] if makers else None

    def back(self, variable: str, *types: str) -> Layer:
        """The layer of one of `types` that makes a variable, passed by."""
        layer = self.peek(variable)
        if layer is None or layer.type not in types:
            found = "none" if layer is None else str(layer)
            raise self.wrong(f"variable {variable} is made by {found}, expected a layer of {' or '.join(types)}")
        if not layer.inputs:
            raise self.wrong(f"{layer} has no input")
        if layer.name in self.passed and layer.type != "ReLU":  # the one thing that several layers read
            raise self.wrong(f"{layer} is met twice: layers in a circle, or shared by two streams")
        self.passed.add(layer.name)
        return layer

    def take(self, layer: Layer, position: int, shape: Sequence[int]) -> Tensor:
        """A parameter of a layer; -1 in `shape` stands for whatever length fits. Dropped dimensions of 1 come back."""
        if position >= len(layer.params):
            raise self.wrong(f"{layer} has {len(layer.params)} parameters, expected at least {position + 1}")
        name = layer.params[position]
        if name not in self.graph.params:
            raise self.wrong(f"{layer}: parameter {name} is missing")
        owner, _ = found = self.taken.setdefault(name, (layer.name, position))
        if found != (layer.name, position):
            raise self.wrong(f"parameter {name} is shared by layers {owner} and {layer.name}")
        value = self.graph.params[name]
        known = int(np.prod([side for side in shape if side > 0]))
        full = tuple(value.size // known if side < 0 else side for side in shape)
        if tuple(side for side in full if side > 1) != tuple(side for side in value.shape if side > 1):
            said = " x ".join("any" if side < 0 else str(side) for side in shape)
            raise self.wrong(f"{layer}: parameter {name} has shape {list(value.shape)}, expected {said}")
        return torch.from_numpy(np.ascontiguousarray(value.reshape(full)))

    def before(self, layer: Layer | None) -> Layer | None:
        """The layer that makes what a layer reads first."""
        return self.peek(layer.inputs[0] if layer is not None and layer.inputs else None)

    def wrong(self, what: str) -> WeightsError:
        return WeightsError(f"{self.graph.where}: {what}")

    def must(self, true: bool, layer: Layer, found: str, expected: str) -> None:
        if not true:
            raise self.wrong(f"{layer} has {found}, expected {expected}")
