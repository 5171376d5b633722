"""Trees of `ai.onnx.ml` as tables of tests and leaves.

A *test* compares one feature with a number; a *literal* is a test or its opposite; a leaf is reached where all literals
on its path hold. The literals of a path about one feature make a *slot*: the leaf's condition on that feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepshap_ir.extend import Array, RuleError

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER")
LOWEST = {"BRANCH_LEQ": False, "BRANCH_LT": False, "BRANCH_GTE": True, "BRANCH_GT": True}
"""Whether the test holds above its number."""

Test = tuple[str, int, float | tuple[float, ...], bool]
"""Mode, feature, number or members, and whether NaN passes."""


@dataclass
class Leaf:
    """A leaf: the literals on its path, ``(test, whether it holds)``, and what it adds to each target."""

    path: tuple[tuple[int, bool], ...]
    weights: dict[int, list[float]] = field(default_factory=dict)
    tree: int = 0


@dataclass
class Forest:
    """The trees of one operator.

    Attributes
    ----------
    tests : all that differ, grouped by mode.
    leaves : those of all trees.
    n_targets, n_trees : how many.
    """

    tests: list[Test]
    leaves: list[Leaf]
    n_targets: int
    n_trees: int

    def slots(self, leaf: Leaf) -> dict[int, list[tuple[int, bool]]]:
        """Feature -> the literals about it, of several bounds on one side the narrowest alone."""
        narrowest: dict[Any, tuple[int, bool]] = {}
        for number, holds in leaf.path:
            mode, feature, value, missing = self.tests[number]
            key: Any = (feature, number, holds)
            if mode in LOWEST:
                key = (feature, mode, missing, holds)
                other = narrowest.get(key)
                sign = 1 if LOWEST[mode] == holds else -1
                if other is not None and sign * self.tests[other[0]][2] >= sign * value:  # type: ignore[operator]
                    continue
            narrowest[key] = (number, holds)
        found: dict[int, list[tuple[int, bool]]] = {}
        for (feature, *_), literal in narrowest.items():
            found.setdefault(feature, []).append(literal)
        return found

    def by_tree(self) -> Forest:
        """The same trees with targets of their own: target t of tree k is ``t n_trees + k``."""
        leaves = [
            Leaf(leaf.path, {t * self.n_trees + leaf.tree: w for t, w in leaf.weights.items()}, leaf.tree)
            for leaf in self.leaves
        ]
        return Forest(self.tests, leaves, self.n_targets * self.n_trees, self.n_trees)


class _Tests:
    """Numbers tests in the order of their modes, once all are known."""

    def __init__(self) -> None:
        self.known: dict[Test, int] = {}

    def number(self, test: Test) -> int:
        return self.known.setdefault(test, len(self.known))

    def sorted(self, leaves: Sequence[Leaf]) -> list[Test]:
        """The tests by mode; the paths of `leaves` are renumbered."""
        order = sorted(self.known, key=lambda test: MODES.index(test[0]))
        place = {self.known[test]: k for k, test in enumerate(order)}
        for leaf in leaves:
            leaf.path = tuple((place[number], holds) for number, holds in leaf.path)
        return order


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
        waiting: list[tuple[int, tuple[tuple[int, bool], ...]]] = [(root, ())]
        while waiting:
            k, path = waiting.pop()
            if modes[k] == "LEAF":
                leaves.append(Leaf(path, found.get((tree, ids[k]), {}), number))
                continue
            _check(len(path), len(trees))
            test = tests.number((modes[k], features[k], float(values[k]), bool(missing[k])))
            waiting.append((place[tree, if_false[k]], (*path, (test, False))))
            waiting.append((place[tree, if_true[k]], (*path, (test, True))))
    return Forest(tests.sorted(leaves), leaves, n_targets, len(roots))


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
        waiting: list[tuple[int, bool, tuple[tuple[int, bool], ...]]] = [
            (if_true[root] if single else root, bool(single), ())
        ]
        while waiting:
            k, is_leaf, path = waiting.pop()
            if is_leaf:
                leaves.append(Leaf(path, {targets[k]: [float(weights[k])]}, number))
                continue
            _check(len(path), len(modes))
            test = tests.number((MODES[modes[k]], features[k], members.get(k, float(values[k])), bool(missing[k])))
            waiting.append((if_false[k], bool(false_leaf[k]), (*path, (test, False))))
            waiting.append((if_true[k], bool(true_leaf[k]), (*path, (test, True))))
    roots = len(attributes["tree_roots"])
    return Forest(tests.sorted(leaves), leaves, int(attributes.get("n_targets") or 1), roots)


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
