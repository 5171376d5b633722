"""Sums, signs, scales, casts and batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from deepshap_ir.engine.value import Value
from deepshap_ir.errors import RuleError
from deepshap_ir.extend import Context
from deepshap_ir.graph import Graph, Node
from deepshap_ir.testing import check_rule, exact_shapley
from tests.rules.onnx_cases import Case, node_cases

RNG = np.random.default_rng(3)


def whole(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.integers(-5, 6, shape)


@pytest.mark.parametrize("operator", ["Add", "Sub"])
@pytest.mark.parametrize("varying", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize(
    "shapes", [[(1, 4), (1, 4)], [(1, 3, 4), (4,)], [(4,), (2, 3, 4)], [(1, 3, 1), (2, 1, 4)], [(), (2,)]], ids=str
)
def test_add_and_subtract(operator: str, varying: list[int], shapes: list[tuple[int, ...]]) -> None:
    inputs = [s if i in varying else RNG.normal(size=s) for i, s in enumerate(shapes)]
    check_rule(operator, inputs, varying=varying)


@pytest.mark.parametrize("operator", ["Sum", "Mean"])
@pytest.mark.parametrize("shapes", [[(1, 4)], [(1, 4), (2, 1, 1)], [(3,), (1, 3), (2, 1)]], ids=str)
def test_sum_and_mean_of_any_number(operator: str, shapes: list[tuple[int, ...]]) -> None:
    check_rule(operator, shapes, varying=range(len(shapes)))
    check_rule(operator, [shapes[0], *(RNG.normal(size=s) for s in shapes[1:])])


@pytest.mark.parametrize("operator", ["Identity", "Neg"])
@pytest.mark.parametrize("shape", [(), (1, 5), (2, 3, 4)], ids=str)
def test_of_one_operand(operator: str, shape: tuple[int, ...]) -> None:
    check_rule(operator, [shape])


@pytest.mark.parametrize("operator", ["Add", "Sub", "Neg"])
def test_of_integers(operator: str) -> None:
    graph = chain(Node("n", operator, ("x", "b") if operator != "Neg" else ("x",), ("i",)), np.int64, np.int64)
    check_rule(graph, domain=whole, derivative=False)


def chain(node: Node, x: Any, y: Any, constants: dict[str, Any] | None = None) -> Graph:
    """`node` on ``x [1, 4]`` with a result of dtype `y`, which is cast to a float."""
    return Graph(
        ("x",),
        ("out",),
        (node, Node("to_float", "Cast", ("i",), ("out",), {"to": TensorProto.DOUBLE})),
        constants or {"b": np.arange(4, dtype=x)},
        {"x": (1, 4), "i": (1, 4), "b": (4,), "out": (1, 4)},
        {"x": np.dtype(x), "i": np.dtype(y), "b": np.dtype(x), "out": np.dtype(np.float64)},
        {"x": 0},
        {"": 18},
    )


@pytest.mark.parametrize(
    ("source", "code", "target"),
    [
        (np.float64, TensorProto.INT64, np.int64),
        (np.float64, TensorProto.INT32, np.int32),
        (np.float64, TensorProto.BOOL, np.bool_),
        (np.int64, TensorProto.INT8, np.int8),
        (np.int32, TensorProto.INT64, np.int64),
        (np.int64, TensorProto.BOOL, np.bool_),
        (np.bool_, TensorProto.INT64, np.int64),
        (np.bool_, TensorProto.BOOL, np.bool_),
    ],
)
@pytest.mark.parametrize("operator", ["Cast", "CastLike"])
def test_casts_that_round_have_the_secant_of_the_step(operator: str, source: Any, code: int, target: Any) -> None:
    if operator == "Cast":
        node = Node("n", "Cast", ("x",), ("i",), {"to": code})
    else:
        node = Node("n", "CastLike", ("x", "b"), ("i",))

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        values = rng.uniform(-3, 3, shape) if source == np.float64 else rng.integers(-3, 4, shape)
        return (values * (rng.random(shape) < 0.7)).astype(source)

    graph = chain(node, source, target, {"b": np.zeros(4, target)})
    graph.dtypes["b"] = np.dtype(target)
    checked = check_rule(graph, domain=draw, derivative=False)
    if np.can_cast(source, target):
        assert np.unique(checked.multipliers[0], axis=0).shape[0] == 1


@pytest.mark.parametrize("operator", ["Cast", "CastLike"])
def test_casts_to_floats_pass(operator: str) -> None:
    attributes, more = ({"to": TensorProto.DOUBLE}, []) if operator == "Cast" else ({}, [np.zeros(1)])
    check_rule(operator, [(1, 4), *more], attributes=attributes)
    integers = np.zeros((1, 4), np.int64)
    check_rule(operator, [integers, *more], attributes=attributes, domain=whole, derivative=False)


def test_the_value_whose_type_is_taken_has_no_contribution() -> None:
    checked = check_rule("CastLike", [(1, 4), (1,)], varying=[0, 1])
    assert not checked.multipliers[1].any()


@pytest.mark.parametrize(
    "more", [[], [np.array(0.3)], [np.array(0.3), np.array(False)], [np.array(0.0), np.array(True)]]
)
@pytest.mark.parametrize("outputs", [1, 2])
def test_dropout_drops_nothing(more: list[Any], outputs: int) -> None:
    check_rule("Dropout", [(2, 3), *more], outputs=outputs)


def test_dropout_in_training_is_refused() -> None:
    with pytest.raises(RuleError, match=r"drops elements at random.*inference mode"):
        check_rule("Dropout", [(2, 3), np.array(0.3), np.array(True)])


def statistics(n: int) -> list[Any]:
    return [RNG.normal(size=n), RNG.normal(size=n), RNG.normal(size=n), RNG.uniform(0.5, 2, n)]


@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 4), (2, 3, 4, 5), (1, 2, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("epsilon", [None, 0.1])
def test_batch_normalization(shape: tuple[int, ...], epsilon: float | None) -> None:
    attributes = {} if epsilon is None else {"epsilon": epsilon}
    check_rule("BatchNormalization", [shape, *statistics(shape[1])], attributes=attributes)


@pytest.mark.parametrize("varying", [[1], [2], [3], [4], [0, 1], [0, 4], [1, 3], [0, 1, 2, 3, 4]], ids=str)
def test_batch_normalization_with_varying_statistics(varying: list[int]) -> None:
    operands = [RNG.normal(size=(2, 3, 4)), *statistics(3)]
    inputs = [a.shape if i in varying else a for i, a in enumerate(operands)]
    check_rule("BatchNormalization", inputs, varying=varying, domain={4: (0.3, 2.0)})


def test_batch_normalization_gives_shapley_values_of_its_three_factors() -> None:
    """``x - mean``, the scale and the reciprocal root of one number each are the players."""
    inputs = [(1, 1), (1,), np.ones(1), np.zeros(1), (1,)]
    checked = check_rule(
        "BatchNormalization", inputs, varying=[0, 1, 4], attributes={"epsilon": 0.0}, domain={4: (0.3, 2.0)}
    )
    x = np.array([v[1].item() for v in checked.samples])
    x0 = np.array([v[2].item() for v in checked.references])
    phi = exact_shapley(lambda v: v[:, 0] * v[:, 1] / np.sqrt(v[:, 2]), x, x0)
    got = np.array([m[1, 2].item() for m in checked.multipliers]) * (x - x0)
    np.testing.assert_allclose(got / got.sum(), phi / phi.sum(), rtol=1e-10)


def test_batch_normalization_in_training_is_refused() -> None:
    with pytest.raises(RuleError, match=r"statistics of the batch \(training_mode=1\).*eval mode"):
        check_rule(
            "BatchNormalization", [(2, 3), *statistics(3)], attributes={"training_mode": 1}, outputs=3, varying=[0]
        )


@pytest.mark.parametrize("module", ["add", "sub", "neg", "sum", "mean", "identity", "dropout", "batch_normalization"])
def test_cases_of_onnx(module: str) -> None:
    tried = [case for case in node_cases(module) if not is_random(case)]
    assert tried
    for case in tried:
        check_rule(
            case.operator,
            [case.inputs[0].shape, *case.inputs[1:]],  # type: ignore[union-attr]
            attributes=case.attributes,
            opset=case.opset,
            outputs=case.n_outputs,
        )


def is_random(case: Case) -> bool:
    return "train" in case.name


def test_a_rule_that_is_slightly_wrong_is_rejected() -> None:
    def wrong(ctx: Context, m: list[Value]) -> Value:
        return m[0] * (1.0005 / ctx.n_inputs)

    with pytest.raises(AssertionError, match=r"miss the delta .*law 1"):
        check_rule("Mean", [(1, 4), np.ones(4)], rule=wrong)
