"""Joins of patterns whose answer depends on nesting."""

from collections.abc import Collection

from deepshap_ir.graph import Graph


def canonicalise(graph: Graph, protected: Collection[str]) -> Graph:
    """Join patterns."""
    return graph
