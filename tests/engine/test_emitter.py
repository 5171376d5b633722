"""What the emitter records: axes, shapes, dtypes, constants, and operators that it leaves out."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.value import BACKGROUND, OUTPUT, SAMPLE, Value
from deepshap_ir.errors import RuleError
from deepshap_ir.extend import Graph, Node


@pytest.fixture
def op() -> Emitter:
    return Emitter({"": 18})


def array(values: Any) -> NDArray[Any]:
    return np.asarray(values, np.float32)


def data_of(value: Value) -> NDArray[Any]:
    assert value.data is not None
    return value.data


def fed(op: Emitter, *shape: int, axes: tuple[str, ...] = (SAMPLE,), name: str = "x", dtype: Any = np.float32) -> Value:
    return op.input(name, shape, dtype, axes)


def test_results_have_the_union_of_the_axes_in_order(op: Emitter) -> None:
    x, x0, m = (
        fed(op, 3),
        fed(op, 3, axes=(BACKGROUND,), name="x0"),
        fed(op, 3, axes=(OUTPUT,), name="m"),
    )
    assert (x0 - x).axes == (SAMPLE, BACKGROUND)
    assert ((x0 - x) * m).axes == (OUTPUT, SAMPLE, BACKGROUND)
    assert (m * 2.0).axes == (OUTPUT,)
    assert op.input("z", (1,), np.float32, [BACKGROUND, OUTPUT]).axes == (OUTPUT, BACKGROUND)


def test_sum_over_drops_one_axis(op: Emitter) -> None:
    value = fed(op, 3, axes=(SAMPLE, BACKGROUND))
    assert op.sum_over(value, BACKGROUND).axes == (SAMPLE,)
    assert op.sum_over(value, SAMPLE, "ReduceL1").axes == (BACKGROUND,)


BINARY: list[Callable[[Any, Any], Any]] = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.matmul,
    operator.gt,
    operator.lt,
    operator.ge,
    operator.le,
]


@pytest.mark.parametrize("function", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("side", ["values", "left", "right"])
def test_python_operators_are_those_of_numpy(op: Emitter, function: Callable[[Any, Any], Any], side: str) -> None:
    a, b = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32), np.array([[2.0, -2.0], [3.0, 0.25]], np.float32)
    left: Any = a if side == "right" else op.constant(a)
    right: Any = b if side == "left" else op.constant(b)
    got = function(left, right)
    assert isinstance(got, Value)
    np.testing.assert_allclose(data_of(got), function(a, b))


def test_logic_and_sign(op: Emitter) -> None:
    a, b = np.array([True, True, False]), np.array([True, False, False])
    np.testing.assert_array_equal((op.constant(a) & b).data, a & b)
    np.testing.assert_array_equal((op.constant(a) | b).data, a | b)
    np.testing.assert_array_equal((~op.constant(a)).data, ~a)
    np.testing.assert_array_equal((-op.constant(array([1, -2]))).data, [-1, 2])
    np.testing.assert_array_equal(abs(op.constant(array([1, -2]))).data, [1, 2])


def test_an_array_times_a_value_is_one_value(op: Emitter) -> None:
    product = np.ones((2, 3)) * 2.0 * fed(op, 3)
    assert isinstance(product, Value)
    assert product.shape == (2, 3)
    assert product.dtype == np.float32


def test_numbers_and_float_arrays_take_the_dtype_of_the_value_beside_them(op: Emitter) -> None:
    x, n = fed(op, 3), fed(op, 3, dtype=np.int64, name="n")
    double = fed(op, 3, dtype=np.float64, name="d")
    assert (x * 2).dtype == (x * 2.5).dtype == (x * np.array([1.0, 2.0, 3.0])).dtype == np.float32
    assert (double * 2).dtype == (1.5 - double).dtype == np.float64
    assert (n + 2).dtype == np.int64
    assert op.Where(x > 0, 1.0, x).dtype == np.float32


def test_lists_of_integers_are_int64(op: Emitter) -> None:
    x = fed(op, 2, 3)
    assert op.ReduceSum(x, [-1], keepdims=0).shape == (2,)
    assert op.Reshape(x, [3, -1]).shape == (3, 2)
    assert op.Unsqueeze(x, [0]).shape == (1, 2, 3)
    assert op.ReduceSum(x, [], noop_with_empty_axes=1).shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda op, x: op.Add(x, np.ones((2, 2), np.float32)), r"Add cannot broadcast \[\(3,\), \(2, 2\)\]"),
        (lambda op, x: x + op.cast(x, np.float64), r"Add of different dtypes \['float32', 'float64'\]: cast first"),
        (lambda op, x: op.Where(x > 0, x, op.cast(x, np.int64)), "Where of different dtypes"),
        (lambda op, x: x * np.int64(2), "cast first"),
        (lambda op, x: op.MatMul(x, np.ones((4, 4))), r"MatMul does not fit operands of shapes \[\(3,\), \(4, 4\)\]"),
        (lambda op, x: op.Relu(x, outputs=2), r"Relu does not fit operands of shapes \[\(3,\)\]"),
        (lambda op, x: op.Nonsense(x), r"ONNX has no operator 'Nonsense'"),
        (lambda op, x: op.NonZero(x), r"NonZero on shapes \[\(3,\)\]: the shape of output 0 depends on data"),
        (lambda op, x: op.call("my::Op", x), "my::Op: the shapes of its outputs are not known here; pass types="),
    ],
)
def test_what_does_not_fit_is_said(op: Emitter, make: Callable[[Emitter, Value], Any], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        make(op, fed(op, 3))


def test_a_value_is_neither_true_nor_false(op: Emitter) -> None:
    with pytest.raises(TypeError, match=r"known only when the program runs: select with op\.Where, not with 'if'"):
        bool(fed(op, 3) > 0)


def test_only_operators_are_methods(op: Emitter) -> None:
    with pytest.raises(AttributeError, match="relu"):
        op.relu  # noqa: B018


def test_constants_are_computed_at_once(op: Emitter) -> None:
    total = op.ReduceSum(op.Mul(np.arange(6.0).reshape(2, 3), 2.0), [1], keepdims=0)
    np.testing.assert_array_equal(total.data, [6.0, 24.0])
    values, indices = op.TopK(array([3, 1, 2]), [2], outputs=2)
    np.testing.assert_array_equal(values.data, [3, 2])
    np.testing.assert_array_equal(indices.data, [0, 2])
    assert op.steps == []


def test_shapes_are_known_whatever_the_value(op: Emitter) -> None:
    x = fed(op, 2, 3, 4)
    np.testing.assert_array_equal(op.Shape(x).data, [2, 3, 4])
    np.testing.assert_array_equal(op.Shape(x, start=1, end=-1).data, [3])
    assert op.Size(x).data == 24
    assert op.Identity(x) is x
    assert op.cast(x, np.float32) is x
    assert op.Cast(x, to=1) is x
    assert op.steps == []


def test_equal_operators_are_emitted_once(op: Emitter) -> None:
    x = fed(op, 3)
    assert op.Relu(x) is op.Relu(x)
    assert x * 2.0 is x * 2.0
    assert op.LeakyRelu(x, alpha=0.1) is not op.LeakyRelu(x, alpha=0.2)
    assert op.constant([1.0, 2.0]) is op.constant(np.array([1.0, 2.0]))
    assert op.constant([1.0]) is not op.constant([1])
    assert len(op.steps) == 4


def test_values_that_are_gone_leave_nothing_behind(op: Emitter) -> None:
    for k in range(50):
        x = fed(op, k % 7 + 1, name=f"x{k}")  # may get the address, and so the id, of the one before
        np.testing.assert_array_equal(op.Shape(x).data, [k % 7 + 1])
        assert op.Identity(x) is x


def test_large_constants_are_kept_not_copied(op: Emitter) -> None:
    weights = np.ones((100, 100), np.float32)
    assert op.constant(weights).data is weights
    assert op.constant(weights) is op.constant(weights)


def test_what_broadcasting_does_anyway_is_left_out(op: Emitter) -> None:
    x, y = fed(op, 1, 3), fed(op, 4, 3, name="y")
    (op.Expand(x, [4, 3]) + y)
    assert op.steps[-1].inputs[0] is x
    assert (op.Expand(x, [4, 3]) + x).shape == (4, 3)
    assert op.steps[-1].inputs[0] is not x


def test_a_product_with_ones_is_the_other_factor(op: Emitter) -> None:
    x = fed(op, 2, 3)
    assert x * np.ones(3) is x
    assert 1.0 * x is x
    assert (x * np.ones((4, 2, 3))).shape == (4, 2, 3)
    assert op.steps[-1].op_type == "Mul"


def test_what_only_the_multiplier_makes_triple_is_multiplied_last(op: Emitter) -> None:
    m = fed(op, 3, axes=(OUTPUT,), name="m")
    slope, delta = (fed(op, 3, axes=(SAMPLE, BACKGROUND), name=n) for n in ("slope", "delta"))
    contribution = (m * slope) * delta
    step = op.by_output[contribution.name]
    assert step.inputs[0] is m
    assert step.inputs[1] is slope * delta


def test_a_node_is_emitted_as_its_body(op: Emitter) -> None:
    types = {n: np.dtype(np.float32) for n in "abcd"}
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys("abcd", (1, 3))
    body = Graph(
        ("a",),
        ("d",),
        (
            Node("square", "Mul", ("a", "a"), ("b",)),
            Node("shift", "Add", ("b", "c"), ("d",)),
        ),
        {"c": array([[1, 2, 3]])},
        shapes,
        types,
        {"a": 0},
        {"": 18},
    )
    node = Node("joined", "Joined", ("a",), ("d",), {"body": body}, "deepshap_ir")
    (result,) = op.node(node, [fed(op, 1, 3)], body)
    assert result is not None
    assert [step.op_type for step in op.steps] == ["Mul", "Add"]
    assert (result.shape, result.axes) == ((1, 3), (SAMPLE,))


def test_an_output_that_a_node_leaves_out_is_none(op: Emitter) -> None:
    shapes: dict[str, tuple[int, ...]] = {"x": (1, 4), "i": (1, 2)}
    dtypes: dict[str, np.dtype[Any]] = {"x": np.dtype(np.float32), "i": np.dtype(np.int64)}
    graph = Graph(("x",), ("i",), (), {}, shapes, dtypes, {"x": 0}, {"": 18})
    node = Node("top", "TopK", ("x", "k"), ("", "i"))
    values, indices = op.node(node, [fed(op, 1, 4), op.constant([2])], graph)
    assert values is None
    assert indices is not None
    assert indices.shape == (1, 2)
    assert indices.dtype == np.int64
