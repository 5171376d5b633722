"""Which rule belongs to which operator, and which operators are rewritten before rules are asked."""

from __future__ import annotations

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
    from deepshap_ir.engine.context import Context, Expansion
    from deepshap_ir.engine.value import Value

Multipliers = Sequence["Value | None"] | Any
RuleFunction = Callable[["Context", Any], Any]
ExpandFunction = Callable[["Expansion"], Any]


@dataclass(frozen=True)
class Rule:
    """A function ``(ctx, m) -> multipliers`` and what it is registered for.

    Attributes
    ----------
    exact : whether the rule sums to delta for every input (all do but those that book a part as unattributed).
    since, until : the opsets of the operator's domain for which it holds, both included.
    """

    function: RuleFunction
    operator: str
    since: int = 1
    until: int = 10_000
    exact: bool = True

    @property
    def name(self) -> str:
        """``module.function``, without the package of the built-in rules."""
        module = getattr(self.function, "__module__", None) or "__main__"
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{module.removeprefix('deepshap_ir.rules.')}.{name}"


@dataclass
class RuleSet:
    """Rules and expansions by operator, and rules by node name.

    ``RuleSet()`` is empty; `rule`, `expand` and `for_node` fill it. What is registered twice is refused.
    """

    rules: dict[str, list[Rule]] = field(default_factory=dict)
    expansions: dict[str, ExpandFunction] = field(default_factory=dict)
    nodes: dict[str, Rule] = field(default_factory=dict)

    def rule(
        self, *operators: str, since: int = 1, until: int = 10_000, exact: bool = True
    ) -> Callable[[RuleFunction], RuleFunction]:
        """Register a rule for operators, each ``"OpType"`` or ``"domain::OpType"``.

        Raises
        ------
        RuleError
            An operator already has a rule here for some of these opsets.
        """

        def register(function: RuleFunction) -> RuleFunction:
            for operator in operators:
                made = Rule(function, operator, since, until, exact)
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

    def find(self, node: Node) -> Rule | None:
        """The rule for `node` in this set."""
        if node.name in self.nodes:
            return self.nodes[node.name]
        return next((r for r in self.rules.get(node.operator, ()) if r.since <= node.version <= r.until), None)


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
    """Finds the rule of a node: node name > rules given to this explainer > the registry."""

    def __init__(self, sets: Iterable[RuleSet] = (), options: Mapping[str, Any] | None = None) -> None:
        import deepshap_ir.rules  # noqa: F401  (registers the built-in rules)

        load_installed_rules()
        self.sets = [*sets, BUILT_IN]
        self.options = dict(options or {})
        for name, value in self.options.items():
            if name not in OPTIONS:
                raise InputError(f"options: there is no {name!r}; there are {', '.join(map(repr, OPTIONS))}")
            if value not in OPTIONS[name]:
                raise InputError(f"options: {name}={value!r}; choose {' or '.join(map(repr, OPTIONS[name]))}")

    def rule(self, node: Node) -> Rule | None:
        """The rule for `node`, None where there is none."""
        named = next((s.nodes[node.name] for s in self.sets if node.name in s.nodes), None)
        return named or next((found for s in self.sets if (found := s.find(node))), None)

    def is_own(self, node: Node) -> bool:
        """Whether the rule for `node` was given to this explainer, by name or by operator."""
        return any(node.name in s.nodes or s.find(node) for s in self.sets[:-1])

    def expansion(self, node: Node) -> ExpandFunction | None:
        """How `node` is rewritten: where a set has an expansion for it before any set has a rule."""
        for s in self.sets:
            if node.name in s.nodes or s.find(node):
                return None
            if node.operator in s.expansions:
                return s.expansions[node.operator]
        return None


def rule_set(rules: RuleSet | Mapping[str, RuleFunction] | None) -> RuleSet:
    """Rules as users give them: a `RuleSet`, or ``{"OpType" or "domain::OpType" or node name: function}``."""
    if rules is None:
        return RuleSet()
    if isinstance(rules, RuleSet):
        return rules
    made = RuleSet()
    for key, function in rules.items():
        if not callable(function):
            raise RuleError(f"the rule for {key!r} is a {type(function).__name__}, not a function (ctx, m)")
        made.rules[key] = [Rule(function, key)]
        made.nodes[key] = Rule(function, f"node {key}")
    return made
