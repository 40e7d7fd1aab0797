"""Whether settings are those that a network was trained with: many of them change its scores and no weight's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs import text
from shards.provenance import leaves
from stmul.config import Config, Data, Network
from stmul.errors import CheckpointError

SHOWN = 3  # differences in a message
# Without a part in testing, or kept with the weights.
WITHOUT_EFFECT = frozenset({"network.appearance.dropout", "network.motion.dropout", "network.rgb_mean"})


def must_agree(trained: str, config: Config, where: object) -> None:
    """Raises CheckpointError where the settings make another network than `trained`, a checkpoint's settings as YAML.

    Settings of another version, which cannot be read, are passed over: shapes are compared all the same.
    """
    try:
        tree = text.parse(trained)
        then = _decisive(Network.model_validate(tree["network"]), Data.model_validate(tree["data"]))
    except (ValueError, KeyError, TypeError):
        return
    now = _decisive(config.network, config.data)
    unlike = [f"{name} {_short(then[name])}, now {_short(now[name])}" for name in then if then[name] != now[name]]
    if unlike:
        more = f" and {len(unlike) - SHOWN} more" if len(unlike) > SHOWN else ""
        raise CheckpointError(
            f"{where}: trained with {'; '.join(unlike[:SHOWN])}{more}. A trained network keeps its settings: leave out"
            " what changes them (-c, --set network..., --set data...), or train another"
        )


def _decisive(network: Network, data: Data) -> Mapping[str, Any]:
    """The settings that decide what a network of given weights computes, by their names."""
    tree = {"network": network.model_dump(mode="json"), "data": {"stack": data.stack}}
    found = {name: value for name, value in leaves(tree) if name not in WITHOUT_EFFECT}
    # The side of the average pool in training, which testing keeps.
    return {**found, "data.crop / 32": -(-data.crop // 32)}


def _short(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
