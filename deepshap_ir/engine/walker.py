"""Run a graph forward at sample and reference, and walk multipliers backward through it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from deepshap_ir.engine.choices import behind_choices
from deepshap_ir.engine.context import (
    ELEMENT_BY_ELEMENT,
    MADE_FOR_NAN,
    Context,
    Parts,
    parts_by_sign,
)
from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.recurrence import affected, affected_outputs, is_loop
from deepshap_ir.engine.registry import Resolver, Rule
from deepshap_ir.engine.rule_sets import check_keys
from deepshap_ir.engine.value import Value
from deepshap_ir.errors import DeepShapError, RuleError, UnsupportedOperatorError
from deepshap_ir.graph import Graph, Node

Pair = tuple[Value, Value]
"""A value at the sample and at the reference; the same object twice where it does not vary."""


@dataclass
class Walker:
    """Emits forward and backward passes.

    Attributes
    ----------
    ledger : where a list is given, ``(node, residual)`` is appended for every rule that was asked, the residual
        ``<m_y, dy> - sum_i <m_xi, dx_i>`` being a scalar for one example.
    """

    op: Emitter
    resolver: Resolver
    ledger: list[tuple[Node, Value]] | None = None
    _depth: int = field(default=0, repr=False)

    def forward(
        self, graph: Graph, xs: Sequence[Value | None], x0s: Sequence[Value | None], hold: Collection[str] = ()
    ) -> dict[str, Pair]:
        """Every value of `graph` at sample and reference; those of `hold` take the sample's in both."""
        known: dict[str, Pair] = {}
        for name, x, x0 in zip(graph.inputs, xs, x0s, strict=True):
            if x is not None and x0 is not None:
                known[name] = (x, x if name in hold else x0)
        for name, data in graph.constants.items():
            constant = self.op.constant(data)
            known[name] = (constant, constant)
        for node in graph.nodes:
            inputs = [known.get(name) for name in node.inputs]
            at_x = self.op.node(node, [pair and pair[0] for pair in inputs], graph)
            if all(pair is None or pair[0] is pair[1] for pair in inputs):
                at_x0 = at_x
            else:
                at_x0 = self.op.node(node, [pair and pair[1] for pair in inputs], graph)
            if is_loop(node) and at_x0 is not at_x:  # some of its states may vary, and others not
                moving = affected_outputs(node, [i for i, pair in enumerate(inputs) if pair and pair[0] is not pair[1]])
                at_x0 = tuple(x0 if j in moving else x for j, (x, x0) in enumerate(zip(at_x, at_x0, strict=True)))
            for name, x, x0 in zip(node.outputs, at_x, at_x0, strict=True):
                if x is not None and x0 is not None:
                    known[name] = (x, x if name in hold else x0)
        return known

    def backward(
        self, graph: Graph, known: Mapping[str, Pair], seeds: Mapping[str, Value], leaves: Collection[str] = ()
    ) -> dict[str, Value]:
        """Multipliers of every varying value, from those at `seeds`; nothing goes beyond a leaf.

        Values whose multiplier is 0 because nothing consumes them are absent.
        """
        parts: dict[str, list[Value | Parts]] = {name: [value] for name, value in seeds.items()}
        total: dict[str, Value | Parts] = {}
        split = self._split(graph, known, leaves)
        made_for_nan = [name for node in graph.nodes if node.operator in MADE_FOR_NAN for name in node.inputs]
        may_be_nan = graph.upstream(made_for_nan)
        guarded = behind_choices(graph)

        def multiplier(name: str) -> Value | Parts | None:
            if name not in total and name in parts:
                value, *others = parts[name]
                for other in others:
                    value = self._sum(value, other)
                total[name] = value
            return total.get(name)

        for node in reversed(graph.nodes):
            found = [multiplier(name) if name else None for name in node.outputs]
            ms = [None if name in leaves else m for name, m in zip(node.outputs, found, strict=True)]
            inputs = [known.get(name) for name in node.inputs]
            if all(m is None for m in ms) or not any(pair and pair[0] is not pair[1] for pair in inputs):
                continue
            context = self.context(node, graph, known, split)
            context.keeps_zeros = node.name in guarded
            context.hands_nan_on = node.operator in ELEMENT_BY_ELEMENT and node.outputs[0] in may_be_nan
            for name, value in zip(node.inputs, self.apply(context, ms), strict=True):
                if value is not None:
                    parts.setdefault(name, []).append(value)
        for name in parts:
            multiplier(name)
        return {name: m.by_sign(self.op.Sub(*known[name])) if isinstance(m, Parts) else m for name, m in total.items()}

    def _sum(self, a: Value | Parts, b: Value | Parts) -> Value | Parts:
        if isinstance(a, Value) and isinstance(b, Value):
            return self.op.Add(a, b)
        (p, q), (r, s) = ((v.plus, v.minus) if isinstance(v, Parts) else (v, v) for v in (a, b))
        return Parts(self.op.Add(p, r), self.op.Add(q, s))

    def _split(self, graph: Graph, known: Mapping[str, Pair], leaves: Collection[str]) -> Callable[[str], Parts]:
        """A function that gives the difference of a value as parts, as the rule of the node that makes it says."""
        producer = graph.producer()
        found: dict[str, Parts | None] = {}

        def split(name: str) -> Parts:
            node = producer.get(name) if name not in leaves else None
            rule = None if node is None or name in found else self.resolver.rule(node)
            if node is not None and rule is not None and rule.parts is not None:
                context = self.context(node, graph, known, split).asked_for(rule)
                found.update(zip(node.outputs, rule.parts(context), strict=True))
            made = found.get(name)
            if made is None:
                x, x0 = (v if v.is_float else self.op.cast(v, self.op.dtype) for v in known[name])
                made = found[name] = parts_by_sign(self.op.Sub(x, x0))
            return made

        return split

    def context(
        self, node: Node, graph: Graph, known: Mapping[str, Pair], split: Callable[[str], Parts] | None = None
    ) -> Context:
        """What the rule of `node` sees."""
        pairs = [known.get(name) for name in node.inputs]
        results = [known.get(name) for name in node.outputs]
        return Context(
            node,
            graph,
            self.op,
            [pair and pair[0] for pair in pairs],
            [pair and pair[1] for pair in pairs],
            [pair and pair[0] for pair in results],
            [pair and pair[1] for pair in results],
            self.resolver.options,
            self._subgraph,
            self.apply,
            split,
        )

    def apply(
        self, context: Context, ms: Sequence[Value | Parts | None], after: Rule | None = None
    ) -> list[Value | Parts | None]:
        """The multipliers that the node's rule gives, checked, in the shape and dtype of the inputs.

        Parameters
        ----------
        after : a rule for the node: then the one that would be asked without it.
        """
        node = context.node
        rule = self.resolver.rule(node, after)
        if rule is None:
            raise UnsupportedOperatorError(missing_rules([(node, context.graph)]))
        if rule.parts is None:
            ms = [m.by_sign(context.delta_y(j)) if isinstance(m, Parts) else m for j, m in enumerate(ms)]
        place = f"the rule {rule.name} at {node}, inputs {[context.graph.shapes.get(n) for n in node.inputs]}"
        self._depth += 1
        try:
            answer = rule.function(context.asked_for(rule), ms)
        except DeepShapError as error:
            if str(node) in str(error):
                raise
            raise type(error)(f"{place}: {error}") from error
        except Exception as error:
            raise RuleError(f"{place} failed: {type(error).__name__}: {error}{_hint(error)}") from error
        finally:
            self._depth -= 1
        result = _listed(context, answer, place)
        if context.keeps_zeros:
            result = [self._zero_kept(m, ms[0]) for m in result]
        result = [self._checked(context, i, m, place) for i, m in enumerate(result)]
        if context.hands_nan_on:
            result = [
                m if not isinstance(m, Value) else self._at_nan(context, i, m, ms[0]) for i, m in enumerate(result)
            ]
        if self.ledger is not None and self._depth == 0:
            self.ledger.append((node, self._residual(context, rule, ms, result)))
        return result

    def _checked(self, context: Context, i: int, m: Value | Parts | None, place: str) -> Value | Parts | None:
        """One multiplier: broadcasting undone, shape and dtype right."""
        if not context.varies(i):
            return None
        if isinstance(m, Parts):
            both = [self._checked(context, i, part, place) for part in (m.plus, m.minus)]
            return Parts(*both)  # type: ignore[arg-type]
        if m is None:
            raise RuleError(f"{place} gives no multiplier for input {i}, which varies; a zero must be said: op.zeros")
        if not isinstance(m, Value):
            raise RuleError(f"{place} gives a {type(m).__name__} for input {i}, not a Value")
        if m.op is not self.op:
            raise RuleError(f"{place} gives a value of another program for input {i}; it may not keep values")
        x = context.x(i)
        dtype = x.dtype if x.is_float else self.op.dtype
        if not x.is_float and m.is_float:
            m = self.op.cast(m, dtype)  # in a program of float32 and float64, a rule cannot know which
        if m.dtype != dtype:
            raise RuleError(f"{place} gives a multiplier of dtype {m.dtype} for input {i}, expected {dtype}")
        fitted = fit(self.op, m, x.shape)
        if fitted is None:
            raise RuleError(f"{place} gives a multiplier of shape {m.shape} for input {i} of shape {x.shape}")
        return fitted

    def _zero_kept(self, m: Value | Parts | None, above: Value | Parts | None) -> Value | Parts | None:
        """The multiplier of an element, 0 where the one that it comes from is 0."""
        if not isinstance(m, Value) or not isinstance(above, Value) or m.shape != above.shape:
            return m
        return self.op.Where(self.op.Equal(above, 0.0), self.op.constant(0.0, m.dtype), m)

    def _at_nan(self, context: Context, i: int, m: Value, above: Value | Parts | None) -> Value:
        """The multiplier of an element, the secant of what NaN counts as where it is NaN."""
        op, x, x0 = self.op, context.x(i), context.x0(i)
        if not x.is_float or x.shape != context.y().shape or not isinstance(above, Value):
            return m
        delta = context.delta_x(i)
        still = op.Equal(delta, 0.0)
        moved = op.Where(still, op.constant(1.0, delta.dtype), delta)
        secant = op.cast(above, m.dtype) * op.cast(context.delta_y(), m.dtype) / moved
        secant = op.Where(still, op.constant(0.0, m.dtype), secant)
        return op.Where(op.Or(op.IsNaN(x), op.IsNaN(x0)), secant, m)

    def _residual(
        self, context: Context, rule: Rule, ms: Sequence[Value | Parts | None], result: Sequence[Value | Parts | None]
    ) -> Value:
        made = rule.parts(context.asked_for(rule)) if rule.parts is not None else [None] * len(ms)
        terms = [self._contribution(m, context.delta_y(j), made[j]) for j, m in enumerate(ms) if m is not None]
        terms += [
            -self._contribution(m, context.delta_x(i), context.parts(i) if isinstance(m, Parts) else None)
            for i, m in enumerate(result)
            if m is not None
        ]
        total = terms[0]
        for term in terms[1:]:
            total = self.op.Add(total, term)
        return total

    def _contribution(self, m: Value | Parts, delta: Value, parts: Parts | None) -> Value:
        if not isinstance(m, Parts):
            return _inner(self.op, m, delta)
        parts = parts or parts_by_sign(delta)
        return self.op.Add(_inner(self.op, m.plus, parts.plus), _inner(self.op, m.minus, parts.minus))

    def _subgraph(
        self, body: Graph, xs: Sequence[Value | None], x0s: Sequence[Value | None], m: Sequence[Value | None]
    ) -> list[Value | None]:
        known = self.forward(body, xs, x0s)
        seeds: dict[str, Value] = {}
        for name, value in zip(body.outputs, m, strict=True):
            if value is not None:
                seeds[name] = self.op.Add(seeds[name], value) if name in seeds else value
        found = self.backward(body, known, seeds)
        return [
            None if x is None or x is x0 else found.get(name, self.op.zeros(x.shape))
            for name, x, x0 in zip(body.inputs, xs, x0s, strict=True)
        ]


def _hint(error: Exception) -> str:
    """What to write instead."""
    text = str(error)
    if isinstance(error, RecursionError):
        return ". ctx.vjp asks the node's rule, which is this one; ctx.usual asks the next"
    if isinstance(error, TypeError) and ("ufunc" in text or "not Value" in text or "not 'Value'" in text):
        return ". A value is known only when the program runs: write ctx.op.Tanh(x), not np.tanh(x)"
    return ""


def fit(op: Emitter, m: Value, shape: tuple[int, ...]) -> Value | None:
    """`m` summed over the dimensions along which `shape` was broadcast, or repeated to it; None if neither fits."""
    if m.shape == shape:
        return m
    added = m.rank - len(shape)
    if added > 0:
        m = op.ReduceSum(m, list(range(added)), keepdims=0)
    elif added < 0:
        m = op.Unsqueeze(m, list(range(-added)))
    summed = [k for k, (have, want) in enumerate(zip(m.shape, shape, strict=True)) if want == 1 and have != 1]
    if summed:
        m = op.ReduceSum(m, summed, keepdims=1)
    if any(have not in (1, want) for have, want in zip(m.shape, shape, strict=True)):
        return None
    return m if m.shape == shape else op.Expand(m, list(shape))


def _inner(op: Emitter, m: Value, delta: Value) -> Value:
    """``<m, delta>`` for one example; an exactly zero multiplier contributes 0 even where the delta is infinite."""
    product = op.Where(op.Equal(m, 0.0), op.constant(0.0, m.dtype), m * op.cast(delta, m.dtype))
    return op.ReduceSum(op.cast(product, op.dtype), keepdims=0)


def _listed(context: Context, answer: object, place: str) -> list[Value | Parts | None]:
    """A rule's answer as one entry per node input."""
    n = context.n_inputs
    varying = [i for i in range(n) if context.varies(i)]
    if isinstance(answer, Value | Parts):
        if len(varying) != 1:
            raise RuleError(f"{place} gives one multiplier, but the inputs {varying} vary; return one for each input")
        return [answer if i == varying[0] else None for i in range(n)]
    if not isinstance(answer, list | tuple) or len(answer) != n:
        given = f"{len(answer)} entries" if isinstance(answer, list | tuple) else f"a {type(answer).__name__}"
        raise RuleError(f"{place} gives {given}; expected one multiplier per input, {n} in all")
    return list(answer)


def require_rules(graph: Graph, resolver: Resolver, varying: Collection[str]) -> None:
    """Raise one error that names every node between the varying values and the output that has no rule.

    Raises
    ------
    InputError : an explainer's rules name an operator or a node that is not there.
    UnsupportedOperatorError
    """
    check_keys(resolver.given, graph)
    missing = _without_rule(graph, resolver, varying)
    if missing:
        raise UnsupportedOperatorError(missing_rules(missing))


def _without_rule(graph: Graph, resolver: Resolver, varying: Collection[str]) -> list[tuple[Node, Graph]]:
    """The nodes without a rule, in the bodies of loops too, and the graphs that they are in."""
    needed = graph.upstream(graph.outputs)
    missing: list[tuple[Node, Graph]] = []
    for node in graph.nodes:
        positions = [i for i, name in enumerate(node.inputs) if name in varying]
        if not positions or not any(name in needed for name in node.outputs):
            continue
        if resolver.rule(node) is None:
            missing.append((node, graph))
        elif is_loop(node):
            body = node.attributes["body"]
            inside = body.downstream(body.inputs[i] for i in affected(node, positions))
            missing += _without_rule(body, resolver, inside)
    return missing


def missing_rules(found: Sequence[tuple[Node, Graph]]) -> str:
    """The message for nodes without a rule, each with the graph that it is in."""
    lines = [
        f"  {node.operator} (opset {node.version}), node {node.name!r}: "
        f"{', '.join(str(list(graph.shapes[n])) for n in node.inputs if n)} -> "
        f"{', '.join(str(list(graph.shapes[n])) for n in node.outputs if n)}"
        for node, graph in found
    ]
    operator, several = found[0][0].operator, len(found) > 1
    return "\n".join(
        [
            f"No rule for {len(found)} node{'s' if several else ''} between the explained inputs and the output:",
            *lines,
            f"Give one with rules={{{operator!r}: my_rule}}, where my_rule(ctx, m) returns one multiplier per input "
            f"(see deepshap_ir.extend), or hold the node's output constant with hold=[name]. "
            'rules="universal" takes any function of floating-point numbers, by differences.',
        ]
    )
