"""Trees of `ai.onnx.ml` as tables of leaves.

A leaf is reached where all tests on its path end as the path says. Those about one feature make a *slot*: the leaf's
condition on that feature. Comparisons with thresholds are an interval; a *test* compares a feature with single numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from deepshap_ir.extend import Array, RuleError

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")

Test = tuple[str, int, float | tuple[float, ...], bool]
"""Mode (of single numbers), feature, number or members, and whether NaN passes."""


class Slot(NamedTuple):
    """A leaf's condition on one feature.

    Attributes
    ----------
    lower, upper : the feature lies between them; the numbers themselves are left out where they are `open`.
    nan : whether NaN meets the comparisons, of which there may be none.
    literals : tests, and whether they hold.
    """

    lower: float = -math.inf
    lower_open: bool = False
    upper: float = math.inf
    upper_open: bool = False
    nan: bool = True
    literals: tuple[tuple[int, bool], ...] = ()

    def compared(self, mode: str, number: float, missing: bool, holds: bool) -> Slot:
        """The slot with another comparison that holds or does not; `missing` is what it gives for NaN."""
        nan = self.nan and missing == holds
        below = (mode in ("BRANCH_LEQ", "BRANCH_LT")) == holds
        outside = (mode in ("BRANCH_LT", "BRANCH_GT")) == holds
        if below and (number, not outside) < (self.upper, not self.upper_open):
            return self._replace(upper=number, upper_open=outside, nan=nan)
        if not below and (number, outside) > (self.lower, self.lower_open):
            return self._replace(lower=number, lower_open=outside, nan=nan)
        return self._replace(nan=nan)

    @property
    def empty(self) -> bool:
        """Whether nothing meets it."""
        return self.lower > self.upper and not self.nan


Slots = dict[int, Slot]
"""Feature -> condition."""


@dataclass
class Leaf:
    """A leaf: its conditions, and what it adds to each target."""

    slots: Slots
    weights: dict[int, list[float]] = field(default_factory=dict)
    tree: int = 0


@dataclass
class Forest:
    """The trees of one operator.

    Attributes
    ----------
    tests : all that differ.
    leaves : those of all trees.
    n_targets, n_trees : how many.
    """

    tests: list[Test]
    leaves: list[Leaf]
    n_targets: int
    n_trees: int

    def by_tree(self) -> Forest:
        """The same trees with targets of their own: target t of tree k is ``t n_trees + k``."""
        leaves = [
            Leaf(leaf.slots, {t * self.n_trees + leaf.tree: w for t, w in leaf.weights.items()}, leaf.tree)
            for leaf in self.leaves
        ]
        return Forest(self.tests, leaves, self.n_targets * self.n_trees, self.n_trees)


class _Tests:
    """Numbers tests as they come."""

    def __init__(self) -> None:
        self.known: dict[Test, int] = {}

    def branches(self, slots: Slots, test: Test) -> Iterable[tuple[bool, Slots]]:
        """Whether a node's test holds, and the conditions behind it then."""
        mode, feature, number, missing = test
        before = slots.get(feature, Slot())
        for holds in (False, True):
            if isinstance(number, float) and mode in MODES[:4]:
                after = before.compared(mode, number, missing, holds)
            else:
                literal = (self.known.setdefault(test, len(self.known)), holds)
                found = before.literals if literal in before.literals else (*before.literals, literal)
                after = before._replace(literals=found)
            yield holds, {**slots, feature: after}


def forest_by_ids(attributes: Mapping[str, Any], prefix: str, n_targets: int) -> Forest:
    """Read TreeEnsembleRegressor (`prefix` "target") and TreeEnsembleClassifier ("class")."""

    def given(name: str) -> list[Any]:
        value = attributes.get(f"{name}_as_tensor")
        if value is None or np.size(value) == 0:
            value = attributes.get(name)
        return [] if value is None else np.asarray(value).tolist() if not isinstance(value, list) else value

    trees, ids = given("nodes_treeids"), given("nodes_nodeids")
    modes, features, values = given("nodes_modes"), given("nodes_featureids"), _numbers(attributes, "nodes_values")
    if_true, if_false = given("nodes_truenodeids"), given("nodes_falsenodeids")
    missing = given("nodes_missing_value_tracks_true") or [0] * len(trees)
    place = {key: k for k, key in enumerate(zip(trees, ids, strict=True))}
    roots: dict[int, int] = {}
    for k, tree in enumerate(trees):
        roots.setdefault(tree, k)
    found: dict[tuple[int, int], dict[int, list[float]]] = {}
    leaf_of = zip(given(f"{prefix}_treeids"), given(f"{prefix}_nodeids"), given(f"{prefix}_ids"), strict=True)
    for (tree, node, target), weight in zip(leaf_of, _numbers(attributes, f"{prefix}_weights"), strict=True):
        found.setdefault((tree, node), {}).setdefault(target, []).append(float(weight))
    tests, leaves = _Tests(), []
    for number, (tree, root) in enumerate(roots.items()):
        waiting: list[tuple[int, int, Slots]] = [(root, 0, {})]
        while waiting:
            k, depth, slots = waiting.pop()
            if modes[k] == "LEAF":
                leaves.append(Leaf(slots, found.get((tree, ids[k]), {}), number))
                continue
            _check(depth, len(trees))
            for holds, after in tests.branches(slots, (modes[k], features[k], float(values[k]), bool(missing[k]))):
                waiting.append((place[tree, if_true[k] if holds else if_false[k]], depth + 1, after))
    return Forest(list(tests.known), leaves, n_targets, len(roots))


def forest_by_position(attributes: Mapping[str, Any]) -> Forest:
    """Read TreeEnsemble of version 5."""
    features, if_true, if_false = (
        attributes[f"nodes_{name}"] for name in ("featureids", "truenodeids", "falsenodeids")
    )
    true_leaf, false_leaf = attributes["nodes_trueleafs"], attributes["nodes_falseleafs"]
    modes, values = np.asarray(attributes["nodes_modes"]).tolist(), np.asarray(attributes["nodes_splits"]).tolist()
    missing = attributes.get("nodes_missing_value_tracks_true") or [0] * len(modes)
    weights, targets = np.asarray(attributes["leaf_weights"]).tolist(), attributes["leaf_targetids"]
    members = _members(attributes.get("membership_values"), modes)
    tests, leaves = _Tests(), []
    for number, root in enumerate(attributes["tree_roots"]):
        single = true_leaf[root] and false_leaf[root] and if_true[root] == if_false[root]
        waiting: list[tuple[int, bool, int, Slots]] = [(if_true[root] if single else root, bool(single), 0, {})]
        while waiting:
            k, is_leaf, depth, slots = waiting.pop()
            if is_leaf:
                leaves.append(Leaf(slots, {targets[k]: [float(weights[k])]}, number))
                continue
            _check(depth, len(modes))
            test = (MODES[modes[k]], features[k], members.get(k, float(values[k])), bool(missing[k]))
            for holds, after in tests.branches(slots, test):
                child, ends = (if_true[k], true_leaf[k]) if holds else (if_false[k], false_leaf[k])
                waiting.append((child, bool(ends), depth + 1, after))
    roots = len(attributes["tree_roots"])
    return Forest(list(tests.known), leaves, int(attributes.get("n_targets") or 1), roots)


def _numbers(attributes: Mapping[str, Any], name: str) -> Array:
    """An attribute given as a tensor, or as floats, which are float32."""
    tensor = attributes.get(f"{name}_as_tensor")
    if tensor is not None and np.size(tensor):
        return np.asarray(tensor, np.float64).reshape(-1)
    return np.asarray(attributes.get(name) or [], np.float32).astype(np.float64)


def _members(values: Any, modes: Sequence[int]) -> dict[int, tuple[float, ...]]:
    """Node -> the members of its set; the lists stand in the order of the nodes, each ended by a NaN."""
    members: dict[int, tuple[float, ...]] = {}
    rest = [] if values is None else np.asarray(values, np.float64).tolist()
    for k, mode in enumerate(modes):
        if MODES[mode] == "BRANCH_MEMBER":
            end = next((i for i, value in enumerate(rest) if np.isnan(value)), len(rest))
            members[k], rest = tuple(rest[:end]), rest[end + 1 :]
    return members


def _check(depth: int, n_nodes: int) -> None:
    if depth > n_nodes:
        raise RuleError("its nodes lead back to themselves: they are no tree")
