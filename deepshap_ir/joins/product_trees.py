"""Trees of products and quotients: one node of all factors, as the answer would depend on how they are nested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deepshap_ir.engine.value import INTERNAL
from deepshap_ir.graph import Graph, Node
from deepshap_ir.importing.trace import tidy
from deepshap_ir.joins.regions import Dominators
from deepshap_ir.joins.rewriting import Rewriter, subgraph

PRODUCTS = frozenset(["Div", "Mul", "Neg", "Pow"])

MOST_FACTORS = 32
"""So many factors are told apart; products below them are factors themselves."""

LARGEST_POWER = 8
"""A product of more equal factors stays as it is: ``(a c)^n`` may be finite where ``a^n c^n`` is 0 times infinity."""


@dataclass(frozen=True)
class Factor:
    """A value, and whether it multiplies (1) or divides (-1)."""

    name: str
    power: int


def square(graph: Rewriter, node: Node) -> list[Node] | None:
    """``u u`` is a power of one factor."""
    if node.operator != "Mul" or node.inputs[0] != node.inputs[1] or graph.graph.dtypes[node.inputs[0]].kind != "f":
        return None
    return [_whole_power(graph, node, node.inputs[0], 2)]


def join_products(graph: Graph, keep: Collection[str]) -> Graph:
    """Make one ``Product`` of every tree of Mul, Div, Neg and whole powers that has three players or more.

    Factors that are functions of one number (``u u y``, ``x sigmoid(x) y``) are one player and are multiplied first.
    A product that must survive or that several nodes read is a factor itself.
    """
    trees = _Trees(graph, keep)
    made: dict[str, list[Node]] = {}
    absorbed: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in absorbed or trees.parts(node) is None:
            continue
        factors, inside = trees.factors(node)
        players = _players(factors, trees.dominators, trees.rewriter.graph)
        largest = max(map(len, players), default=0)
        if len(players) < 2 or (len(players) == 2 and largest == 1) or largest > LARGEST_POWER:
            continue
        made[node.name] = _product(trees.rewriter, node, factors, players)
        absorbed.update(inside)
    nodes = [new for node in graph.nodes for new in made.get(node.name, [node])]
    return tidy(replace(trees.rewriter.graph, nodes=tuple(nodes)))


class _Trees:
    """The trees of products of a graph."""

    def __init__(self, graph: Graph, keep: Collection[str]) -> None:
        self.graph, self.keep = graph, keep
        self.rewriter, self.dominators = Rewriter(graph, keep), Dominators(graph, keep)
        self.producer = graph.producer()
        self.readers = Counter(name for node in graph.nodes for name in set(node.reads))

    def parts(self, node: Node) -> list[Factor] | None:
        """The factors of one node; None where it is no product."""
        if node.operator not in PRODUCTS or self.graph.dtypes[node.outputs[0]].kind != "f":
            return None
        if node.operator in ("Mul", "Div"):
            return [Factor(node.inputs[0], 1), Factor(node.inputs[1], 1 if node.operator == "Mul" else -1)]
        if node.operator == "Neg":
            minus_one = np.array(-1.0, self.graph.dtypes[node.outputs[0]])
            return [
                Factor(self.rewriter.constant(minus_one, f"{node.outputs[0]}/minus_one"), 1),
                Factor(node.inputs[0], 1),
            ]
        exponent = self.rewriter.number(node.inputs[1])
        whole = exponent is not None and exponent % 1 == 0 and 1 <= abs(exponent) <= LARGEST_POWER
        if exponent is None or not whole or self._inside(node.inputs[0]) is None:
            return None
        return [Factor(node.inputs[0], 1 if exponent > 0 else -1)] * int(abs(exponent))

    def factors(self, root: Node) -> tuple[list[Factor], set[str]]:
        """The factors of the tree below `root` from left to right, and the names of the nodes inside it."""
        found: list[Factor] = []
        inside: set[str] = set()
        pending = [Factor(root.outputs[0], 1)]
        while pending:
            factor = pending.pop()
            node = root if factor.name == root.outputs[0] else self._inside(factor.name)
            parts = self.parts(node) if node is not None and len(found) + len(pending) < MOST_FACTORS else None
            if node is None or parts is None:
                found.append(factor)
                continue
            inside.add(node.name)
            pending += [Factor(part.name, part.power * factor.power) for part in reversed(parts)]
        return found, inside

    def _inside(self, name: str) -> Node | None:
        """The product that makes `name`, where one node alone reads it."""
        node = self.producer.get(name)
        if node is None or name in self.keep or self.readers[name] != 1:
            return None
        return node if node.operator in PRODUCTS else None


def _players(factors: Sequence[Factor], dominators: Dominators, graph: Graph) -> list[list[int]]:
    """The places of the varying factors, those that are functions of one number together."""
    players: list[list[int]] = []
    for k, factor in enumerate(factors):
        if factor.name in graph.constants:
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
    equal = all(factor == player[0] for factor in player)
    nodes += [_whole_power(graph, root, name, len(player), output)] if equal else _chain(graph, root, terms, output)
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


def _whole_power(graph: Rewriter, like: Node, name: str, exponent: int, output: str | None = None) -> Node:
    number = np.array(exponent, graph.graph.dtypes[name])
    return graph.node(like, "Pow", [name, graph.constant(number, f"{like.outputs[0]}/exponent")], output)
