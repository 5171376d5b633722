"""Softmax, LogSoftmax, ReduceLogSumExp, Hardmax: the laws, wide spreads, masks, a replica in numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from deepshap_ir import DeepExplainer
from deepshap_ir.engine.backends import OnnxRuntime, Reference
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.extend import Array, Context, Value
from deepshap_ir.importing import runner
from deepshap_ir.rules.softmax import softmax
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph
from tests.onnx_text import data, parsed
from tests.rules.onnx_cases import Case, node_cases

Backend = Reference | OnnxRuntime
BACKENDS: list[Backend] = [Reference(), OnnxRuntime()]


def multipliers(
    operator: str,
    x: Array,
    x0: Array,
    seed: Array,
    attributes: Mapping[str, Any] | None = None,
    backend: Backend = BACKENDS[0],
) -> Array:
    """Of one pair, in float64 by the reference evaluator or in float32 by onnxruntime."""
    dtype = np.float64 if isinstance(backend, Reference) else np.float32
    graph = one_node_graph(operator, [x], [0], attributes).astype(dtype)
    found = Runner(graph, Resolver(), backend).multipliers([x[None]], [x0[None]], seed[None])[0]
    first: Array = found[0, 0, 0]
    return first


def replica(x: Array, x0: Array, seed: Array) -> Array:
    """Softmax along the last axis by its formula, with divisions, in float64."""
    log_p, log_q = (z - np.logaddexp.reduce(z, axis=-1, keepdims=True) for z in (x, x0))
    same = log_p == log_q
    means = np.where(same, np.exp(log_p), (np.exp(log_p) - np.exp(log_q)) / np.where(same, 1, log_p - log_q))
    total = means.sum(-1, keepdims=True)
    return np.asarray(means * seed - means * (means * seed).sum(-1, keepdims=True) / total)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [((5,), {}), ((2, 5), {}), ((2, 3, 4), {"axis": 0}), ((2, 3, 4), {"axis": 1}), ((1, 2, 3, 4), {"axis": -2})],
)
def test_laws(operator: str, shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check_rule(operator, [shape], attributes=attributes)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, [1], [-1], [0, 2], [2, 0, 1]], ids=str)
def test_laws_of_log_sum_exp(keepdims: int, axes: list[int] | None) -> None:
    given = [] if axes is None else [np.array(axes)]
    check_rule("ReduceLogSumExp", [(2, 3, 4), *given], attributes={"keepdims": keepdims})


def test_log_sum_exp_of_nothing() -> None:
    check_rule("ReduceLogSumExp", [(2, 3), np.array([], np.int64)], attributes={"noop_with_empty_axes": 1})


CASES = [c for m in ("softmax", "logsoftmax", "hardmax", "reduce_log_sum_exp") for c in node_cases(m)]


@pytest.mark.parametrize("case", [c for c in CASES if "empty_set" not in c.name], ids=str)
def test_standard_cases(case: Case) -> None:
    drawn = [a.shape if a is not None and a.dtype.kind == "f" else a for a in case.inputs]
    check_rule(case.operator, drawn, attributes=case.attributes, opset=case.opset)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "ReduceLogSumExp"])
@pytest.mark.parametrize("spread", [10.0, 80.0, 1000.0])
def test_wide_spreads(operator: str, spread: float) -> None:
    """Probabilities that vanish in float32."""
    check_rule(operator, [(3, 6)], domain=(-spread, spread), derivative=spread < 100)


@pytest.mark.parametrize("backend", BACKENDS, ids=["float64", "float32"])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 0.1, 3.0, 30.0])
def test_replica(backend: Backend, size: float) -> None:
    """Near and far."""
    rng = np.random.default_rng(3)
    x0 = rng.normal(size=(4, 7)).astype(np.float32).astype(np.float64)
    x = (x0 + size * rng.normal(size=(4, 7))).astype(np.float32).astype(np.float64)
    seed = rng.normal(size=(4, 7))
    tolerance = 1e-6 if isinstance(backend, Reference) else 1e-5
    found = multipliers("Softmax", x, x0, seed, backend=backend)
    np.testing.assert_allclose(found, replica(x, x0, seed), rtol=10 * tolerance, atol=tolerance)


def test_numbers_to_agree_on() -> None:
    """With two logits that move apart, both are given the same: the exact Shapley values."""
    x, x0, seed = np.array([1.0, -1.0]), np.zeros(2), np.array([1.0, 0.0])
    found = multipliers("Softmax", x, x0, seed) * (x - x0)
    np.testing.assert_allclose(found, [0.19040, 0.19040], atol=1e-5)
    exact = exact_shapley(lambda z: np.exp(z[:, 0]) / np.exp(z).sum(1), x, x0)
    np.testing.assert_allclose(found, exact, atol=1e-12)


def test_bounded_and_indifferent_to_a_shift() -> None:
    rng = np.random.default_rng(4)
    x, x0 = 5 * rng.normal(size=(2, 8))
    for k, seed in enumerate(np.eye(8)):
        m = multipliers("Softmax", x, x0, seed)
        assert abs(m).max() <= 1
        assert abs(m.sum()) < 1e-12
        assert m[k] >= 0
        np.testing.assert_allclose(multipliers("Softmax", x + 2, x0 - 3, seed), m, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS, ids=["float64", "float32"])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "ReduceLogSumExp"])
@pytest.mark.parametrize("mask", [-np.inf, float(np.finfo(np.float32).min), -1e9])
def test_masked_on_both_sides(operator: str, mask: float, backend: Backend) -> None:
    """Masked logits are given nothing; the others are given what they are given alone."""
    rng = np.random.default_rng(5)
    x, x0 = rng.normal(size=(2, 1, 6))
    seed = rng.normal(size=(1, 1) if operator == "ReduceLogSumExp" else (1, 6))
    keep = np.array([0, 2, 3])
    x[:, [1, 4, 5]] = x0[:, [1, 4, 5]] = mask
    attributes = {} if operator != "ReduceLogSumExp" else {"keepdims": 1}
    if operator == "LogSoftmax":
        seed[:, [1, 4, 5]] = 0  # its masked outputs are -inf
    alone = multipliers(
        operator, x[:, keep], x0[:, keep], seed if seed.shape == (1, 1) else seed[:, keep], attributes, backend
    )
    m = multipliers(operator, x, x0, seed, attributes, backend)
    np.testing.assert_allclose(m[:, keep], alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(m[:, [1, 4, 5]], 0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS, ids=["float64", "float32"])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "ReduceLogSumExp"])
@pytest.mark.parametrize(("masked", "masked0"), [([2], []), ([], [2]), ([1, 2], [2]), ([1], [2]), ([0, 3], [1, 2])])
def test_masked_on_one_side_is_not_finite(
    operator: str, masked: list[int], masked0: list[int], backend: Backend
) -> None:
    """No multiplier of the row is a number, so that none is taken for an answer; other rows are as they were."""
    rng = np.random.default_rng(6)
    x, x0 = rng.normal(size=(2, 2, 4))
    x[0, masked] = -np.inf
    x0[0, masked0] = -np.inf
    attributes = {} if operator != "ReduceLogSumExp" else {"keepdims": 1}
    seed = np.ones((2, 4))
    if operator == "ReduceLogSumExp":
        graph = one_node_graph(operator, [x, np.array([1])], [0])
        dtype = np.float64 if isinstance(backend, Reference) else np.float32
        run = Runner(graph.astype(dtype), Resolver(), backend)
        m = run.multipliers([x[None]], [x0[None]], seed[None, :, :1])[0][0, 0, 0]
    else:
        m = multipliers(operator, x, x0, seed, attributes, backend)
    assert not np.isfinite(m[0]).any()
    assert np.isfinite(m[1]).all()


def test_hardmax_books_the_step_to_the_two_winners() -> None:
    """The winner changes from 0 to 1, as ``x_1 - x_0`` rises by 4 from -2."""
    x, x0, seed = np.array([0.0, 2, 1]), np.array([3.0, 1, 0]), np.array([1.0, 5, 7])
    np.testing.assert_allclose(multipliers("Hardmax", x, x0, seed), [-1, 1, 0])
    np.testing.assert_array_equal(multipliers("Hardmax", x, x, seed), [0, 0, 0])


def test_a_rule_that_is_slightly_wrong_is_rejected() -> None:
    def inflated(ctx: Context, m: Any) -> Value:
        return softmax(ctx, m) * 1.0005  # type: ignore[no-any-return]

    with pytest.raises(AssertionError, match="miss the delta"):
        check_rule("Softmax", [(1, 6)], rule=inflated)


@pytest.mark.parametrize("n", [3, 7, 17, 40])
def test_what_is_masked_at_both_points_in_batches_of_any_size(n: int) -> None:
    """The two programs of samples and of references may add up in different orders: they must find the same masks."""
    model = parsed(
        "{ m = Where(seen, x, low) \n p = Softmax(m) \n y = ReduceMax <keepdims = 0> (p, last) }",
        f"(float[N,{n},{n}] x) => (float[N,{n}] y)",
    )
    for name, array in {
        "seen": np.tri(n, dtype=bool),
        "low": np.float32(-np.inf),
        "last": np.array([-1]),
    }.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    background, samples = data(5, n, n), data(4, n, n, seed=1)
    y, y0 = (runner.Runner(model).run({"x": rows})["y"] for rows in (samples, background))
    for k in (1, 3, 4):
        phi = DeepExplainer(model, background).shap_values(samples[:k])
        np.testing.assert_allclose(phi.sum((1, 2)), (y - y0.mean(0))[:k], atol=1e-5)
