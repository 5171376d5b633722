"""Which rule belongs to which operator, and which operators are rewritten before rules are asked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from deepshap_ir.errors import InputError, RuleError
from deepshap_ir.graph import Node

if TYPE_CHECKING:
    from deepshap_ir.engine.context import Context, Expansion, Parts
    from deepshap_ir.engine.value import Value

Multipliers = Sequence["Value | None"] | Any
RuleFunction = Callable[["Context", Any], Any]
ExpandFunction = Callable[["Expansion"], Any]
PartsFunction = Callable[["Context"], "Sequence[Parts | None]"]


@dataclass(frozen=True)
class Rule:
    """A function ``(ctx, m) -> multipliers`` and what it is registered for.

    Attributes
    ----------
    exact : whether the rule sums to delta for every input (all do but those that book a part as unattributed).
    since, until : the opsets of the operator's domain for which it holds, both included.
    parts : of a rule that knows positive and negative parts: the node's outputs as such.
    """

    function: RuleFunction
    operator: str
    since: int = 1
    until: int = 10_000
    exact: bool = True
    parts: PartsFunction | None = None

    @property
    def name(self) -> str:
        """``module.function``, without the package of the built-in rules."""
        module = getattr(self.function, "__module__", None) or "__main__"
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{module.removeprefix('deepshap_ir.rules.')}.{name}"


@dataclass
class RuleSet:
    """Rules and expansions by operator, and rules by node name.

    ``RuleSet()`` is empty; `rule`, `expand`, `for_node` and `for_all` fill it. What is registered twice is refused.

    Attributes
    ----------
    all : the rule for every node that has none of its own here.
    general : operators are joined and expanded as if the set were not there.
    last : the set is asked only where no other, not even the built-in one, has a rule.
    borrowed, borrowed_nodes : operator, or node name -> the set that is asked for it.
    keys : what a user's mapping names, each of which must be an operator or a node of the model.
    """

    rules: dict[str, list[Rule]] = field(default_factory=dict)
    expansions: dict[str, ExpandFunction] = field(default_factory=dict)
    nodes: dict[str, Rule] = field(default_factory=dict)
    all: Rule | None = None
    general: bool = False
    last: bool = False
    borrowed: dict[str, RuleSet] = field(default_factory=dict)
    borrowed_nodes: dict[str, RuleSet] = field(default_factory=dict)
    keys: tuple[str, ...] = ()

    def rule(
        self,
        *operators: str,
        since: int = 1,
        until: int = 10_000,
        exact: bool = True,
        parts: PartsFunction | None = None,
    ) -> Callable[[RuleFunction], RuleFunction]:
        """Register a rule for operators, each ``"OpType"`` or ``"domain::OpType"``.

        Raises
        ------
        RuleError
            An operator already has a rule here for some of these opsets.
        """

        def register(function: RuleFunction) -> RuleFunction:
            for operator in operators:
                made = Rule(function, operator, since, until, exact, parts)
                for other in self.rules.setdefault(operator, []):
                    if other.since <= until and since <= other.until:
                        raise RuleError(
                            f"{operator} already has the rule {other.name} for opsets {other.since} to {other.until}; "
                            f"{made.name} would be a second one. Give your rule to one explainer "
                            "(rules={...}), which takes precedence, or restrict its opsets."
                        )
                self.rules[operator].append(made)
            return function

        return register

    def expand(self, *operators: str) -> Callable[[ExpandFunction], ExpandFunction]:
        """Register how operators are written with others that have rules.

        Raises
        ------
        RuleError
            An operator already has an expansion here.
        """

        def register(function: ExpandFunction) -> ExpandFunction:
            for operator in operators:
                if operator in self.expansions:
                    raise RuleError(f"{operator} already has the expansion {self.expansions[operator].__name__}")
                self.expansions[operator] = function
            return function

        return register

    def for_node(self, name: str, *, exact: bool = True) -> Callable[[RuleFunction], RuleFunction]:
        """Register a rule for the one node of this name."""

        def register(function: RuleFunction) -> RuleFunction:
            if name in self.nodes:
                raise RuleError(f"node {name!r} already has the rule {self.nodes[name].name}")
            self.nodes[name] = Rule(function, f"node {name}", exact=exact)
            return function

        return register

    def for_all(self, *, exact: bool = True) -> Callable[[RuleFunction], RuleFunction]:
        """Register a rule for every node that has none of its own in this set; loops excepted, not what is in them."""

        def register(function: RuleFunction) -> RuleFunction:
            if self.all is not None:
                raise RuleError(f"all nodes already have the rule {self.all.name}")
            self.all = Rule(function, "every operator", exact=exact)
            return function

        return register

    def named(self, node: Node) -> Rule | None:
        """The rule in this set for the node of this name, or of the name that it had in the body of a loop.

        A loop of known length may be taken apart: its node `step` is then ``step/0``, ``step/1`` and so on.
        """
        for name in (node.name, copied_from(node.name)):
            if name in self.borrowed_nodes:
                return self.borrowed_nodes[name].by_operator(node)
            if name in self.nodes:
                return self.nodes[name]
        return None

    def by_operator(self, node: Node) -> Rule | None:
        """The rule in this set for the node's operator."""
        if node.operator in self.borrowed:
            return self.borrowed[node.operator].by_operator(node)
        found = (r for r in self.rules.get(node.operator, ()) if r.since <= node.version <= r.until)
        return next(found, None if node.operator == LOOP else self.all)

    def find(self, node: Node) -> Rule | None:
        """The rule for `node` in this set."""
        return self.named(node) or self.by_operator(node)


def copied_from(name: str) -> str:
    """The name of a node in the body of a loop from that of its copy."""
    return re.sub(r"(/\d+)+$", "", name)


LOOP = "deepshap_ir::Scan"
"""What loops become: the operators in its body are asked for, so no rule for all operators replaces its own."""

BUILT_IN = RuleSet()
_collecting: ContextVar[RuleSet] = ContextVar("collecting", default=BUILT_IN)


def rule(
    *operators: str, since: int = 1, until: int = 10_000, exact: bool = True
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a rule for all explainers; see `RuleSet.rule`."""
    import deepshap_ir.rules  # noqa: F401  (the built-in rules come first: what is registered twice is refused)

    return _collecting.get().rule(*operators, since=since, until=until, exact=exact)


def expand(*operators: str) -> Callable[[ExpandFunction], ExpandFunction]:
    """Register an expansion for all explainers; see `RuleSet.expand`."""
    import deepshap_ir.rules  # noqa: F401

    return _collecting.get().expand(*operators)


@contextmanager
def collected() -> Iterator[RuleSet]:
    """What `rule` and `expand` register meanwhile goes into the set that this yields, and to no other explainer."""
    import deepshap_ir.rules  # noqa: F401  (these are not to be collected)

    rules = RuleSet()
    token = _collecting.set(rules)
    try:
        yield rules
    finally:
        _collecting.reset(token)


OPTIONS = {"max_pooling": ("shap", "shapley"), "max": ("shapley", "shap")}
"""Choices among rules, the default first: max pooling; Max, Min, their reductions and global max pooling."""


@cache
def load_installed_rules() -> None:
    """Import the modules that installed packages name in the entry-point group `deepshap_ir.rules`.

    Raises
    ------
    RuleError : a package's module cannot be imported, or registers what is registered already.
    """
    for entry in entry_points(group="deepshap_ir.rules"):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "a package"
            raise RuleError(
                f"the rules {entry.value!r} of {package} cannot be loaded: {error}; update or uninstall it"
            ) from error


class Resolver:
    """Finds the rule of a node: node name > the sets given to this explainer, in order > the registry.

    Sets that are `RuleSet.last` come after the registry.
    """

    def __init__(self, sets: Iterable[RuleSet] = (), options: Mapping[str, Any] | None = None) -> None:
        import deepshap_ir.rules  # noqa: F401  (registers the built-in rules)

        load_installed_rules()
        given = list(sets)
        self.given = [s for s in given if not s.last]
        self.sets = [*self.given, BUILT_IN, *(s for s in given if s.last)]
        self.options = dict(options or {})
        for name, value in self.options.items():
            if name not in OPTIONS:
                raise InputError(f"options: there is no {name!r}; there are {', '.join(map(repr, OPTIONS))}")
            if value not in OPTIONS[name]:
                raise InputError(f"options: {name}={value!r}; choose {' or '.join(map(repr, OPTIONS[name]))}")

    def rule(self, node: Node, after: Rule | None = None) -> Rule | None:
        """The rule for `node`, None where there is none.

        Parameters
        ----------
        after : a rule for it: then the one that would be asked without it.
        """
        found = iter(self.rules(node))
        if after is not None and after not in found:  # reads up to it
            found = iter(self.rules(node))
        return next(found, None)

    def rules(self, node: Node) -> Iterator[Rule]:
        """All rules for `node`, the one that is asked first."""
        yield from (found for s in self.sets if (found := s.named(node)))
        yield from (found for s in self.sets if (found := s.by_operator(node)))

    def is_own(self, node: Node) -> bool:
        """Whether the rule for `node` was given to this explainer, by name or by operator."""
        return any(s.find(node) for s in self.given if not s.general)

    def is_built_in(self, node: Node) -> bool:
        """Whether the rule for `node` is one of this package that is asked unless another is given."""
        found = self.rule(node)
        return found is not None and found in BUILT_IN.rules.get(found.operator, ()) and _is_ours(found.function)

    def expansion(self, node: Node) -> ExpandFunction | None:
        """How `node` is rewritten: where a set has an expansion for it before any set has a rule."""
        for s in self.sets:
            if s.general or s.last:
                continue
            if s.find(node):
                return None
            if node.operator in s.expansions:
                return s.expansions[node.operator]
        return None

    def own_expansions(self) -> dict[str, ExpandFunction]:
        """The expansions that users gave, to this explainer or to all, of operators outside the standard."""
        found = {k: f for k, f in BUILT_IN.expansions.items() if not _is_ours(f)}
        for s in reversed(self.given):
            found |= s.expansions
        return {operator: function for operator, function in found.items() if "::" in operator}

    def is_called(self, node: Node) -> bool:
        """Whether a user's rule or expansion speaks of `node`, the call of a function of the model."""
        functions: list[Any] = [r.function for r in BUILT_IN.rules.get(node.operator, ())]
        functions += [BUILT_IN.expansions[node.operator]] if node.operator in BUILT_IN.expansions else []
        registered = any(not _is_ours(function) for function in functions)
        return registered or self.is_own(node) or any(node.operator in s.expansions for s in self.given)


def _is_ours(function: Any) -> bool:
    """Whether a rule or an expansion is a built-in one."""
    return (getattr(function, "__module__", None) or "").startswith("deepshap_ir.rules.")
