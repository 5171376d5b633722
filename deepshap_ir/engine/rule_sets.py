"""Rules as users give them to one explainer: a mapping, a `RuleSet`, the name of one, or several of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import onnx

from deepshap_ir.engine.registry import Rule, RuleFunction, RuleSet, copied_from
from deepshap_ir.errors import InputError, RuleError
from deepshap_ir.graph import Graph, Node

GROUP = "deepshap_ir.rule_sets"
"""Entry points of this group: the name of a set, and the object in a module that is the `RuleSet`."""

Rules = RuleSet | str | Mapping[str, RuleFunction | str]
"""One thing that users give."""

NAMED: dict[str, RuleSet] = {}
"""The built-in sets that are asked only where they are named."""


def named_rules(name: str, *, general: bool = True, last: bool = False) -> RuleSet:
    """A new set that is chosen by name, ``rules="name"``; see `RuleSet` for `general` and `last`.

    Raises
    ------
    RuleError : there is a set of this name.
    """
    if name in NAMED:
        raise RuleError(f"there is a rule set {name!r} already")
    NAMED[name] = RuleSet(general=general, last=last)
    return NAMED[name]


def find_rule_set(name: str) -> RuleSet:
    """The set of this name: a built-in one, or one that an installed package brings.

    Raises
    ------
    InputError : there is none.
    RuleError : a package's set cannot be loaded, is none, or has a name that is taken.
    """
    import deepshap_ir.rules  # noqa: F401  (makes the built-in ones)

    brought = _brought()
    if name in NAMED and name in brought:
        raise RuleError(f"the rule set {name!r} of {brought[name][0]} has the name of a built-in one; uninstall it")
    if name in NAMED:
        return NAMED[name]
    if name not in brought:
        known = [*NAMED, *brought]
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? There" if close else "there"
        raise InputError(f"rules: there is no rule set {name!r}; {hint} are {', '.join(map(repr, known))}")
    package, entry = brought[name]
    try:
        found = entry.load()
    except Exception as error:
        raise RuleError(
            f"the rule set {name!r} of {package} ({entry.value}) cannot be loaded: {error}; update or uninstall it"
        ) from error
    if not isinstance(found, RuleSet):
        raise RuleError(f"the rule set {name!r} of {package} ({entry.value}) is a {type(found).__name__}, no RuleSet")
    return found


@cache
def _brought() -> dict[str, tuple[str, Any]]:
    """Name -> the package that brings a set of this name, and the entry point."""
    return {e.name: (e.dist.name if e.dist else "a package", e) for e in entry_points(group=GROUP)}


def rule_set(rules: Rules | None) -> RuleSet:
    """One set of rules.

    A mapping's key that is the name of a standard operator (``"Relu"``) is for all nodes of this operator, whatever
    nodes are called; any other is for an operator ``"domain::OpType"`` or for the node of this name. Its values are
    functions ``(ctx, m)``, or names of sets whose rule is taken.

    Raises
    ------
    InputError : there is no set of a name.
    RuleError : what is given is no rule.
    """
    if rules is None:
        return RuleSet()
    if isinstance(rules, RuleSet):
        return rules
    if isinstance(rules, str):
        return find_rule_set(rules)
    if not isinstance(rules, Mapping):
        raise RuleError(
            f"rules is a {type(rules).__name__}; give a mapping {{operator or node name: function (ctx, m)}}, a "
            "deepshap_ir.extend.RuleSet, the name of a rule set, or a list of these"
        )
    made = RuleSet(keys=tuple(rules))
    for key, function in rules.items():
        if isinstance(function, str):
            made.borrowed[key] = find_rule_set(function)
            if key not in _standard_operators():
                made.borrowed_nodes[key] = made.borrowed[key]
            continue
        if not callable(function):
            raise RuleError(f"the rule for {key!r} is a {type(function).__name__}, not a function (ctx, m)")
        made.rules[key] = [Rule(function, key)]
        if key not in _standard_operators():
            made.nodes[key] = Rule(function, f"node {key}")
    return made


def rule_sets(rules: Rules | Sequence[Rules] | None) -> list[RuleSet]:
    """All that users give as ``rules=``, those that are asked first in front."""
    listed = rules if isinstance(rules, Sequence) and not isinstance(rules, str) else [rules]
    return [rule_set(one) for one in listed if one is not None]


@cache
def _standard_operators() -> frozenset[str]:
    """Names of the operators of the standard, of all opsets."""
    return frozenset(s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == "")


def check_keys(sets: Iterable[RuleSet], *graphs: Graph) -> None:
    """Check that every key of a mapping is an operator or a node of the graphs, and every node that a set names.

    Raises
    ------
    InputError : naming those that are not, and what comes close; or a set that is named for what it has no rule for.
    """
    operators: set[str] = set()
    nodes: set[str] = set()
    found = [node for graph in graphs for inner in _graphs(graph) for node in inner.nodes]
    operators.update(node.operator for node in found)
    nodes.update(name for node in found for name in (node.name, copied_from(node.name)))
    lines = []
    for given in sets:
        for key in given.keys:
            _check_borrowed(key, given, found)
            if key in operators or (key in nodes and key not in _standard_operators()):
                continue
            lines.append(f"  {key!r} {_reading(key, operators, nodes)}")
        for name in given.nodes:
            if name not in given.keys and name not in nodes:
                lines.append(f"  the node {name!r} {_hint(name, nodes)}")
    if lines:
        raise InputError(
            "rules are given for what is not in the model, between the explained inputs and the output:\n"
            + "\n".join(lines)
            + "\nA RuleSet may hold rules for operators that a model does not have; DeepExplainer.rules() lists the "
            "nodes and operators that there are."
        )


def _check_borrowed(key: str, given: RuleSet, nodes: Iterable[Node]) -> None:
    """Refuse a set that is named for an operator or a node, and has no rule for it."""
    if key not in given.borrowed:
        return
    named = key in given.borrowed_nodes
    meant = [n for n in nodes if n.operator == key or (named and key in (n.name, copied_from(n.name)))]
    without = next((n for n in meant if given.borrowed[key].by_operator(n) is None), None)
    if without is not None:
        raise InputError(f"rules: the rule set that is named for {key!r} has no rule for {without}")


def _graphs(graph: Graph) -> Iterator[Graph]:
    """A graph and the bodies in it."""
    yield graph
    for node in graph.nodes:
        if isinstance(node.attributes.get("body"), Graph):
            yield from _graphs(node.attributes["body"])


def _reading(key: str, operators: set[str], nodes: set[str]) -> str:
    """How a key was read, and what comes close to it."""
    if key in nodes:
        return "is read as the operator, though a node has this name: RuleSet.for_node gives a rule to the node"
    if key in _standard_operators():
        return f"is read as the operator: {_hint(key, operators)}"
    kind = "an operator nor a node" if "::" in key else "a node nor an operator"
    return f"is neither {kind}: {_hint(key, operators | nodes)}"


def _hint(name: str, names: set[str]) -> str:
    folded = {other.casefold(): other for other in sorted(names)}
    close = [folded[match] for match in get_close_matches(name.casefold(), folded, n=3)]
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    shown = sorted(names)
    return f"there are {', '.join(map(repr, shown[:12]))}{', ...' if len(shown) > 12 else ''}"
