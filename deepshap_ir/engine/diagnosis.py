"""Say where a number went wrong: the node that leaks, the first value that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepshap_ir.custom_ops import known_custom_ops
from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.program import build_plan
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.engine.value import AXES
from deepshap_ir.graph import Array, Graph
from deepshap_ir.importing.runner import Runner
from deepshap_ir.onnx_io import graph_to_model

SHOWN = 3
ROUNDING = 1e-4
"""Leaks below this part of the largest are not worth a name."""


def describe_leaks(
    gap: Array,
    scale: Array,
    output: Array,
    graph: Graph,
    ledger: Mapping[str, Array],
    resolver: Resolver | None = None,
) -> str:
    """The message of an additivity error.

    Parameters
    ----------
    gap, scale, output : ``[N, *outputs]``: ``|sum - (f(x) - E f)|``, what it is relative to, and ``f(x)``.
    ledger : node name -> its residual, ``[N, *outputs]``.
    resolver : finds their rules, to say which are not made to sum to delta.
    """
    relative = (gap / np.maximum(scale, 1e-30)).reshape(len(gap), -1)
    rows = np.argsort(-relative.max(1))[:SHOWN]
    lines = [
        f"The attributions do not sum to the model's output minus its mean: they miss it by up to "
        f"{relative.max():.2g} of its size, at {int((relative > 1e-4).any(1).sum())} of {len(gap)} samples.",
        "Worst samples: "
        + ", ".join(
            f"{int(i)} (gap {gap.reshape(len(gap), -1)[i, k]:.3g} at output {output.reshape(len(gap), -1)[i, k]:.3g})"
            for i in rows
            for k in [int(relative[i].argmax())]
        ),
    ]
    leaks = sorted(((float(np.abs(r).max()), name) for name, r in ledger.items()), reverse=True)[:SHOWN]
    leaks = [(size, name) for size, name in leaks if size > ROUNDING * leaks[0][0]]
    nodes = {node.name: node for node in graph.nodes}
    listed = ", ".join(f"{nodes.get(name, name)} ({size:.3g})" for size, name in leaks)
    lines.append(f"Nodes that leak most: {listed or 'none on their own; the sum loses float32 digits'}.")
    rules = [resolver.rule(nodes[name]) for _, name in leaks if name in nodes] if resolver is not None else []
    inexact = sorted({rule.name for rule in rules if rule is not None and not rule.exact})
    if inexact:
        several = "s" if len(inexact) > 1 else ""
        lines.append(
            f"The rule{several} {', '.join(inexact)} {'are' if several else 'is'} not made to sum to delta: what is "
            "missing is no error, and check_additivity=False takes the attributions as they are."
        )
    indices = [
        output
        for _, name in leaks
        if name in nodes and nodes[name].op_type in ("ArgMax", "ArgMin", "TopK")
        for output in nodes[name].outputs
        if output and graph.dtypes[output].kind == "i"
    ]
    if indices:
        lines.append(f"What indices change is left unattributed; hold={indices} keeps the sample's own.")
    lines.append("precision='float64' tells rounding from a wrong rule; check_additivity=False skips this check.")
    return "\n".join(lines)


def first_non_finite(
    graph: Graph, arguments: Mapping[str, Any], sample: Mapping[str, Array], references: Mapping[str, Array], row: int
) -> str:
    """The message about a number that is not finite: the first node that makes one.

    Parameters
    ----------
    arguments : of `build_plan`.
    sample : input name -> ``[1, *shape]``; ``[*shape]`` of a held input without a batch axis.
    references : input name -> ``[B, *shape]``.
    row : the sample's position in the data.
    """
    names = [name for node in graph.nodes for name in node.outputs if name and graph.dtypes[name].kind == "f"]
    producer = graph.producer()
    runner = Runner(graph_to_model(graph, names))
    one = {name: a.reshape(graph.shapes[name]) for name, a in sample.items()}
    passes = [(f"sample {row}", one)]
    passes += [
        (f"reference {j}", {**one, **{name: a[j] for name, a in references.items()}})
        for j in range(len(next(iter(references.values()))))
    ]
    for what, feeds in passes:
        for name, array in runner.run(feeds).items():
            if not np.isfinite(array).all():
                bad = np.asarray(array)[~np.isfinite(array)][0]
                return f"{producer[name]} gives {bad} at {what} (value {name!r}), so there is nothing to attribute."
    exact = _infinite_multiplier(graph.astype(np.float64), arguments, sample, references)
    if exact is not None:
        return (
            f"the multiplier of {exact[0]}, is not finite for sample {row} and reference {exact[1]}, though all values "
            "of the model are. A function with an infinite slope between them has no finite multiplier."
        )
    rounded = _infinite_multiplier(graph, arguments, sample, references)
    where = f"the multiplier of {rounded[0]}, overflows" if rounded is not None else "numbers overflow"
    return f"the attributions of sample {row} are not finite: {where} in single precision. Use precision='float64'."


def _infinite_multiplier(
    graph: Graph, arguments: Mapping[str, Any], sample: Mapping[str, Array], references: Mapping[str, Array]
) -> tuple[str, int] | None:
    """The first value, from the output backward, with a multiplier that is not finite, and for which reference."""
    plan = build_plan(graph, **arguments, everywhere=True)
    for j in range(len(next(iter(references.values())))):
        rows = {name: a[j : j + 1] for name, a in references.items()}
        for (_, name), m in _multipliers(plan, Reference(known_custom_ops().functions), sample, rows, graph).items():
            if not np.isfinite(m).all():
                consumers = [node for node in graph.nodes if name in node.reads]
                return f"value {name!r}, from the rule at {consumers[0]}" if consumers else f"the output {name!r}", j
    return None


def _multipliers(
    plan: Any, backend: Reference, sample: Mapping[str, Array], rows: Mapping[str, Array], graph: Graph
) -> dict[tuple[str, ...], Array]:
    """Multiplier of every value for one pair, from the output backward."""

    def typed(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {f"{prefix}_{name}": a.astype(graph.dtypes[name]) for name, a in arrays.items()}

    feeds = typed("sample", sample) | typed("background", rows)
    shape = graph.shapes[graph.outputs[0]]
    k = int(np.prod(shape))
    feeds["seed"] = np.eye(k, dtype=graph.float_dtype).reshape(k, *shape)
    lengths = dict(zip(AXES, (k, 1, 1), strict=True))
    for stage, program in plan.programs().items():
        if not program.outputs:
            continue
        given = {v.name: feeds[v.name] for v in program.inputs}
        given |= {f"size_of_{a}": np.array([lengths[a]], np.int64) for a in program.dimensions}
        names = [o.name for o in program.model.graph.output]
        found = backend.run(backend.load(program.model, program.weights), names, given, odd=stage == "")
        feeds |= {v.name: a for v, a in zip(program.outputs, found, strict=True)}
    return {role: feeds[value.name] for role, value in plan.result.items()}
