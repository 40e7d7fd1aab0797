"""MatConvNet's networks as graphs, and the streams that are found in them."""

from stmul.dagnn.graph import Graph, Layer, read_graph
from stmul.dagnn.stream import FoundStream, FoundUnit, Gate, read_stream
from stmul.dagnn.walk import Walk

__all__ = ["FoundStream", "FoundUnit", "Gate", "Graph", "Layer", "Walk", "read_graph", "read_stream"]
