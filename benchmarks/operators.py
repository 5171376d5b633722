"""Every operator case of the ONNX standard: does the engine explain it, and do the attributions sum to delta?

``python -m benchmarks.operators`` takes the single-node cases that the onnx package carries, explains every float
output of each along a fixed random direction for two references, and prints a table by operator and the score.
``--write FILE`` puts both between the markers of a page.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.backend.test.loader import load_model_tests
from rich.console import Console
from rich.table import Table

from benchmarks import pages
from deepshap_ir.engine.backends import Backend, OnnxRuntime, Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.errors import DeepShapError
from deepshap_ir.graph import Graph
from deepshap_ir.importing.importer import import_model
from deepshap_ir.specialisation import rewrite
from deepshap_ir.testing import Runner, exact_shapley

Array = NDArray[Any]

TOLERANCE = 1e-4
FLOAT64_TOLERANCE = 1e-8
PLAYERS = 8
FIXED = {"Dropout": (1,), "OneHot": (1,), "Resize": (1, 2), "Upsample": (1,)}
"""Operator -> its float inputs that decide shapes, or chances, and do not vary."""
MARKS = pages.marks("operators")


REASONS = {
    "ai_onnx_ml_tree_ensemble_set_membership": "the inputs are not numbers (NaN)",
    "attention_4d_diff_heads_mask4d_padded_kv": "onnxruntime takes no mask that is shorter than the keys",
    "attention_4d_softcap_neginf_mask": "the mask that is fed is infinite",
    "attention_4d_with_past_and_present_qk_matmul_bias": "onnxruntime's scores of masked keys are -3.4e38, not -inf",
    "batchnorm": "training mode: the rows of a batch are normalised together",
    "bernoulli": "random",
    "compress": "the shape of the output depends on data",
    "dequantizelinear_": "the input has a type that numpy does not have",
    "maxunpool_export_with_output_shape": "the standard and onnxruntime count the indices differently",
    "melweightmatrix": "a table of a few numbers that are no data; its edges are rounded to bins",
    "mod_float_edge_cases": "the inputs are infinite",
    "optional_get_element_optional_tensor": "the input is an optional, not a tensor",
    "range_float": "the shape of the output depends on data",
    "roialign_mode_max": "the largest product of an element and its weight has a rule for fixed regions only",
    "training_dropout": "random: training mode",
    "unique": "the shape of the output depends on data",
}
"""Beginning of a case's name -> why it is no fault that it is not explained."""


@dataclass(frozen=True)
class Outcome:
    """What became of one output of one case.

    Attributes
    ----------
    status : "ok", "off" (a gap), "refused" (by a clear error), "failed" (by another).
    gap : relative, of onnxruntime in float32.
    shapley : largest distance from exact Shapley values relative to their size, where few scalars vary.
    """

    case: str
    operator: str
    status: str
    gap: float = float("nan")
    float64_gap: float = float("nan")
    shapley: float = float("nan")
    reason: str = ""


def cases(names: Sequence[str] = ()) -> Iterable[Any]:
    """The single-node cases with a float input and a float output, or those that are named."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    for case in found:
        if names:
            if case.name in names:
                yield case
        elif "_expanded" not in case.name and _has_float(case):
            yield case


def _has_float(case: Any) -> bool:
    inputs, outputs = case.data_sets[0]
    return all(any(_is_float(a) for a in arrays) for arrays in (inputs, outputs))


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray | np.generic) and array.dtype in (np.float32, np.float64) and array.size > 0


def check(case: Any) -> list[Outcome]:
    """One outcome per float output of a case."""
    model = case.model
    operator = _operator(model)
    inputs, outputs = case.data_sets[0]
    declared = [value.name for value in model.graph.input]
    feeds = {n: np.asarray(a) for n, a in zip(declared, inputs, strict=False) if isinstance(a, np.ndarray | np.generic)}
    fixed = {node.input[k] for node in model.graph.node for k in FIXED.get(node.op_type, ()) if k < len(node.input)}
    floats = [n for n, a in feeds.items() if _is_float(a) and np.isfinite(a).all() and n not in fixed]
    wanted = [v.name for v, a in zip(model.graph.output, outputs, strict=False) if _is_float(a)]
    return [_explain(case.name, operator, model, feeds, floats, name) for name in wanted]


def _operator(model: Any) -> str:
    node = model.graph.node[-1]
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)


def _explain(case: str, operator: str, model: Any, feeds: dict[str, Array], floats: list[str], output: str) -> Outcome:
    rng = np.random.default_rng(0)
    resolver = Resolver()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            imported = import_model(
                model,
                {name: feeds[name] for name in floats},
                output=output,
                hold={name: a for name, a in feeds.items() if name not in floats},
                inputs=floats,
                batch_axes=dict.fromkeys(floats),
                rewrite=lambda graph, protected: rewrite(graph, protected, resolver),
            )
        graph = replace(imported.graph, batch_axes=dict.fromkeys(imported.graph.inputs, 0))
        x = [feeds[name][None].astype(np.float64) for name in graph.inputs]
        x0 = [np.concatenate([_reference(a, rng) for _ in range(2)]) for a in x]
        if operator == "OneHot":
            x0 = [np.rint(a) for a in x0]
        seed = rng.normal(size=(1, *graph.shapes[output]))
        gap = _gap(graph, resolver, OnnxRuntime(), x, x0, seed)
        gap64 = _gap(graph.astype(np.float64), resolver, Reference(), x, x0, seed)
        shapley = _shapley_distance(graph.astype(np.float64), resolver, x, x0, seed)
    except DeepShapError as error:
        return Outcome(case, operator, "refused", reason=f"{type(error).__name__}: {error}")
    except Exception as error:  # a table of failures is what this is for
        return Outcome(case, operator, "failed", reason=f"{type(error).__name__}: {error}")
    fine = gap <= TOLERANCE and gap64 <= FLOAT64_TOLERANCE
    return Outcome(case, operator, "ok" if fine else "off", gap, gap64, shapley)


def _reference(x: Array, rng: np.random.Generator) -> Array:
    """Another point of the operator's domain: between `x` and `x` with its elements in another order."""
    share = rng.uniform(0.2, 0.8)
    flat = x.reshape(-1)
    other = rng.permutation(flat)
    other = np.roll(flat, 1) if (other == flat).all() else other
    mixed: Array = np.where(other == flat, flat, share * flat + (1 - share) * other).reshape(x.shape)
    return mixed


def _gap(
    graph: Graph, resolver: Resolver, backend: Backend, x: Sequence[Array], x0: Sequence[Array], seed: Array
) -> float:
    """``|sum of contributions - <seed, delta>|`` over the larger of its parts' size and the delta's.

    In float32 over the output's too, the resolution of which limits that of the delta (of a saturated tanh).
    """
    runner = Runner(graph, resolver, backend)
    delta = (runner.delta(x, x0) * seed[0]).reshape(2, -1)
    ms = runner.multipliers(x, x0, seed)
    parts = [(m[0, 0] * (a - b)).reshape(2, -1) for m, a, b in zip(ms, x, x0, strict=True)]
    total = sum(part.sum(1) for part in parts)
    size = max(float(np.abs(delta).sum(1).max()), max(float(np.abs(part).sum(1).max()) for part in parts), 1e-12)
    if isinstance(backend, OnnxRuntime):
        size = max(size, float(np.abs(runner.output(x)[0] * seed[0]).sum()))
    return float(np.abs(total - delta.sum(1)).max() / size)


def _shapley_distance(graph: Graph, resolver: Resolver, x: Sequence[Array], x0: Sequence[Array], seed: Array) -> float:
    """Largest distance from exact Shapley values for the first reference, relative to the largest of them."""
    sizes = [a[0].size for a in x]
    if sum(sizes) > PLAYERS:
        return float("nan")
    runner = Runner(graph, resolver, Reference())
    cuts = np.cumsum(sizes)[:-1]

    def function(rows: Array) -> Array:
        parts = np.split(rows, cuts, axis=1)
        arrays = [p.reshape(-1, *a.shape[1:]) for p, a in zip(parts, x, strict=True)]
        out: Array = (runner.delta(arrays, [b[:1] for b in x0])[:, 0] * seed[0]).reshape(len(rows), -1).sum(1)
        return out

    flat = [np.concatenate([a[0].reshape(-1) for a in arrays]) for arrays in (x, x0)]
    exact = exact_shapley(function, flat[0], flat[1])
    ms = runner.multipliers(x, [b[:1] for b in x0], seed)
    ours = np.concatenate([(m[0, 0, 0] * (a[0] - b[0])).reshape(-1) for m, a, b in zip(ms, x, x0, strict=True)])
    return float(np.abs(ours - exact).max() / max(np.abs(exact).max(), 1e-12))


def table(outcomes: Sequence[Outcome]) -> Table:
    """A line per operator: cases, how many sum to delta, the worst gap, and the distance from Shapley."""
    made = Table(title="ONNX operator cases")
    for column in ("operator", "outputs", "sum to delta", "worst gap", "float64", "from exact Shapley"):
        made.add_column(column)
    by_operator: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_operator[outcome.operator].append(outcome)
    for operator, found in sorted(by_operator.items()):
        fine = [o for o in found if o.status == "ok"]
        numbers = [_largest(getattr(o, key) for o in found) for key in ("gap", "float64_gap", "shapley")]
        made.add_row(operator, str(len(found)), str(len(fine)), *numbers)
    return made


def _largest(numbers: Iterable[float]) -> str:
    finite = [n for n in numbers if not np.isnan(n)]
    return f"{max(finite):.1e}" if finite else ""


def exceptions(outcomes: Sequence[Outcome]) -> list[str]:
    """A line per output that is not explained, with the reason."""
    return [f"{o.case}: {o.status}, {_why(o)}" for o in outcomes if o.status != "ok"]


def _why(outcome: Outcome) -> str:
    known = reason(outcome.case)
    if known:
        return known
    return outcome.reason.splitlines()[0] if outcome.reason else f"gap {outcome.gap:.1e}, {outcome.float64_gap:.1e}"


def reason(case: str) -> str | None:
    """Why it is no fault that a case is not explained, None where it is one."""
    return next((why for name, why in REASONS.items() if case.removeprefix("test_").startswith(name)), None)


def score(outcomes: Sequence[Outcome]) -> str:
    """The score in a sentence."""
    counts = Counter(o.status for o in outcomes)
    operators = {o.operator for o in outcomes if o.status == "ok"}
    return (
        f"{counts['ok']} of {len(outcomes)} outputs of {len({o.operator for o in outcomes})} operators sum to delta "
        f"({len(operators)} operators); {counts['off']} do not, {counts['refused']} are refused, "
        f"{counts['failed']} fail."
    )


def main() -> int:
    """Run the cases, print, and write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--write", type=Path, help="page with the two marker lines")
    given = parser.parse_args()
    outcomes = [o for case in cases() if given.only in case.name for o in check(case)]
    console = Console(width=110)
    console.print(table(outcomes))
    for line in exceptions(outcomes):
        print(line[:240])
    print(score(outcomes))
    if given.write:
        listed = [f"* {line}" for line in exceptions(outcomes)]
        pages.put(given.write, MARKS, [score(outcomes), "", *listed])
    return 0


if __name__ == "__main__":
    sys.exit(main())
