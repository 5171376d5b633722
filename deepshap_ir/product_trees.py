"""Trees of products and quotients: one node of all factors, as the answer would depend on how they are nested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deepshap_ir.emitter import INTERNAL
from deepshap_ir.graph import Graph, Node
from deepshap_ir.regions import Dominators
from deepshap_ir.rewriting import Rewriter, subgraph
from deepshap_ir.trace import tidy

MOST_PLAYERS = 64
"""A product of more players stays as it is nested."""


@dataclass(frozen=True)
class Factor:
    """A value, and whether it divides."""

    name: str
    power: int


def square(graph: Rewriter, node: Node) -> list[Node] | None:
    """``u u`` is a power of one factor."""
    if node.operator != "Mul" or node.inputs[0] != node.inputs[1] or graph.graph.dtypes[node.inputs[0]].kind != "f":
        return None
    two = graph.constant(np.array(2.0, graph.graph.dtypes[node.inputs[0]]), f"{node.outputs[0]}/two")
    return [graph.node(node, "Pow", [node.inputs[0], two])]


def join_products(graph: Graph, keep: Collection[str]) -> Graph:
    """Make one ``Product`` of every tree of Mul, Div and Neg that has three players or more.

    Factors that are functions of one number (``u u y``, ``x sigmoid(x) y``) are one player and are multiplied first.
    A product that must survive or has several readers is a factor itself.
    """
    rewriter, dominators = Rewriter(graph, keep), Dominators(graph, keep)
    readers = Counter(name for node in graph.nodes for name in node.reads)
    readers.update(graph.outputs)
    producer = graph.producer()

    def inner(name: str) -> Node | None:
        node = producer.get(name)
        within = node is not None and node.operator in ("Mul", "Div", "Neg") and readers[name] == 1
        return node if within and name not in keep else None

    made: dict[str, list[Node]] = {}
    absorbed: set[str] = set()
    for node in reversed(graph.nodes):
        if node.operator not in ("Mul", "Div") or node.name in absorbed or graph.dtypes[node.outputs[0]].kind != "f":
            continue
        factors, inside = _factors(rewriter, node, inner)
        players = _players(factors, dominators, rewriter)
        if (
            len(players) == 1
            or (len(players) == 2 and all(len(p) == 1 for p in players))
            or len(players) > MOST_PLAYERS
        ):
            continue
        made[node.name] = _product(rewriter, node, factors, players)
        absorbed.update(inside)
    nodes = [new for node in graph.nodes if node.name not in absorbed for new in made.get(node.name, [node])]
    return tidy(replace(rewriter.graph, nodes=tuple(nodes)))


def _factors(graph: Rewriter, root: Node, inner: Callable[[str], Node | None]) -> tuple[list[Factor], set[str]]:
    """The factors of the tree below `root` from left to right, and the names of the nodes inside it."""
    factors: list[Factor] = []
    inside: set[str] = set()
    pending = [(root.outputs[0], 1)]
    while pending:
        name, power = pending.pop()
        node = root if name == root.outputs[0] else inner(name)
        if node is None:
            factors.append(Factor(name, power))
            continue
        inside.add(node.name)
        if node.operator == "Neg":
            dtype = graph.graph.dtypes[node.outputs[0]]
            factors.append(Factor(graph.constant(np.array(-1.0, dtype), f"{node.outputs[0]}/minus_one"), 1))
            pending.append((node.inputs[0], power))
        else:
            pending.append((node.inputs[1], -power if node.operator == "Div" else power))
            pending.append((node.inputs[0], power))
    return factors, inside - {root.name}


def _players(factors: Sequence[Factor], dominators: Dominators, graph: Rewriter) -> list[list[int]]:
    """The places of the varying factors, those that are functions of one number together."""
    players: list[list[int]] = []
    for k, factor in enumerate(factors):
        if factor.name in graph.graph.constants:
            continue
        for player in players:
            if dominators.common([factors[player[0]].name, factor.name]) is not None:
                player.append(k)
                break
        else:
            players.append([k])
    return players


def _product(graph: Rewriter, root: Node, factors: Sequence[Factor], players: Sequence[Sequence[int]]) -> list[Node]:
    """The nodes that multiply the factors of each player, and the product of the players and constants."""
    nodes: list[Node] = []
    terms: dict[int, Factor] = {k: f for k, f in enumerate(factors) if f.name in graph.graph.constants}
    for player in players:
        terms[player[0]] = _multiplied(graph, root, [factors[k] for k in player], nodes)
    ordered = [terms[k] for k in sorted(terms)]
    chain = _chain(graph, root, ordered, root.outputs[0])
    if len(players) == 2:
        return [*nodes, *chain]
    inputs = list(dict.fromkeys(term.name for term in ordered))
    powers = [sum(term.power for term in ordered if term.name == name) for name in inputs]
    attributes = {"powers": powers, "body": subgraph(graph.graph, chain, inputs, root.outputs[0])}
    return [*nodes, Node(root.name, "Product", tuple(inputs), root.outputs, attributes, INTERNAL, 1)]


def _multiplied(graph: Rewriter, root: Node, player: Sequence[Factor], nodes: list[Node]) -> Factor:
    """The factors of one player as one factor; what multiplies them is added to `nodes`."""
    if len(player) == 1:
        return player[0]
    power = max(factor.power for factor in player)
    terms = [Factor(factor.name, factor.power * power) for factor in sorted(player, key=lambda f: -f.power)]
    name = player[0].name
    output = graph.value(graph.shape(name), graph.graph.dtypes[name], f"{root.outputs[0]}/{name}")
    nodes += _chain(graph, root, terms, output)
    return Factor(output, power)


def _chain(graph: Rewriter, root: Node, terms: Sequence[Factor], output: str) -> list[Node]:
    """Mul and Div of `terms`, from left to right, to `output`."""
    dtype = graph.graph.dtypes[output]
    nodes: list[Node] = []
    left, shape = terms[0].name, graph.shape(terms[0].name)
    if terms[0].power < 0:
        left = graph.value(shape, dtype, f"{output}/reciprocal")
        nodes.append(graph.node(root, "Reciprocal", [terms[0].name], left))
    for k, term in enumerate(terms[1:]):
        shape = np.broadcast_shapes(shape, graph.shape(term.name))
        result = output if k == len(terms) - 2 else graph.value(shape, dtype, f"{output}/part")
        nodes.append(graph.node(root, "Mul" if term.power > 0 else "Div", [left, term.name], result))
        left = result
    last = nodes[-1]
    return [*nodes[:-1], replace(last, name=root.name)] if output == root.outputs[0] else nodes
