"""Random graphs of many operators: attributions are finite, sum to delta, leak nowhere; the backends agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx.printer
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from deepshap_ir import DeepExplainer
from tests.onnx_text import Array

Shape = tuple[int, ...]
"""Of one example, without the batch axis."""
N, B = 3, 4
OUTPUTS = 2


class Draft:
    """A model that grows node by node. Numbers stay moderate: what can grow is squashed first."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], inputs: dict[str, Shape]) -> None:
        self.draw = draw
        self.inputs = inputs
        self.shapes: dict[str, Shape] = dict(inputs)
        self.unread = list(inputs)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def pick(self, fits: Callable[[Shape], bool] = lambda shape: True) -> str | None:
        """A value; one that nothing reads yet as often as not."""
        names = [name for name, shape in self.shapes.items() if fits(shape)]
        fresh = [name for name in names if name in self.unread]
        if not names:
            return None
        if fresh and self.draw(st.booleans()):
            names = fresh
        return str(self.draw(st.sampled_from(names)))

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        rng = np.random.default_rng(self.draw(st.integers(0, 99)))
        return self.constant((rng.normal(size=shape) / np.sqrt(max(shape[0], 1))).astype(np.float32))

    def add(self, op_type: str, operands: list[str], shape: Shape | None, **attributes: Any) -> str:
        """A node with one output; not to be chosen as an operand where `shape` is None."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, operands, [name], name=f"{op_type}_{name}", **attributes))
        self.unread = [n for n in self.unread if n not in operands]
        if shape is not None:
            self.shapes[name] = shape
            self.unread.append(name)
        return name

    def model(self) -> ModelProto:
        """All that nothing reads, squashed, flattened and mixed into the outputs."""
        parts = []
        for name in self.unread:
            size = int(np.prod(self.shapes[name]))
            tamed = self.add("Tanh", [name], None)
            parts.append((self.add("Reshape", [tamed, self.constant(np.array([0, size]))], None), size))
        joined = self.add("Concat", [name for name, _ in parts], None, axis=1)
        mix = self.weight(sum(size for _, size in parts), OUTPUTS)
        self.nodes.append(helper.make_node("MatMul", [joined, mix], ["y"], name="mix"))
        fed = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *s]) for n, s in self.inputs.items()]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", OUTPUTS])
        graph = helper.make_graph(self.nodes, "random", fed, [output], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def unary(draft: Draft) -> None:
    name = draft.pick()
    assert name is not None
    kinds = [
        "Relu",
        "Sigmoid",
        "Tanh",
        "LeakyRelu",
        "Elu",
        "Softplus",
        "Abs",
        "Neg",
        "Erf",
        "Sin",
        "Selu",
        "HardSigmoid",
    ]
    draft.add(draft.draw(st.sampled_from(kinds)), [name], draft.shapes[name])


def binary(draft: Draft) -> None:
    a = draft.pick()
    assert a is not None
    shape = draft.shapes[a]
    b = draft.pick(lambda s: len(s) == len(shape) and all(n in (1, m) for n, m in zip(s, shape, strict=True)))
    assert b is not None
    kind = draft.draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min", "Div"]))
    if kind in ("Mul", "Div"):
        a = draft.add("Tanh", [a], None)
    if kind == "Div":
        b = draft.add("Add", [draft.add("Sigmoid", [b], None), draft.constant(np.float32(0.5))], None)
    draft.add(kind, [a, b], shape)


def power(draft: Draft) -> None:
    name = draft.pick()
    assert name is not None
    base = draft.add("Add", [draft.add("Sigmoid", [name], None), draft.constant(np.float32(0.2))], None)
    kind = draft.draw(st.sampled_from(["Sqrt", "Log", "Reciprocal", "Exp"]))
    draft.add(kind, [base], draft.shapes[name])


def where(draft: Draft) -> None:
    a = draft.pick()
    assert a is not None
    b, c = draft.pick(lambda s: s == draft.shapes[a]), draft.pick(lambda s: s == draft.shapes[a])
    assert b is not None
    assert c is not None
    kind = draft.draw(st.sampled_from(["Greater", "Less"]))
    draft.add("Where", [draft.add(kind, [a, b], None), b, c], draft.shapes[a])


def dense(draft: Draft) -> None:
    name = draft.pick(lambda s: len(s) <= 2)
    if name is not None:
        *lead, last = draft.shapes[name]
        width = draft.draw(st.integers(1, 4))
        product = draft.add("MatMul", [name, draft.weight(last, width)], None)
        draft.add("Add", [product, draft.weight(width)], (*lead, width))


def attention(draft: Draft) -> None:
    name = draft.pick(lambda s: len(s) == 2)
    if name is not None:
        rows, _ = draft.shapes[name]
        tamed = draft.add("Tanh", [name], None)
        turned = draft.add("Transpose", [tamed], None, perm=[0, 2, 1])
        scores = draft.add("MatMul", [tamed, turned], None)
        draft.add("MatMul", [draft.add("Softmax", [scores], None, axis=-1), tamed], draft.shapes[name])
        assert rows


def concat(draft: Draft) -> None:
    a = draft.pick(lambda s: s[-1] <= 6)
    if a is not None:
        shape = draft.shapes[a]
        b = draft.pick(lambda s: s[:-1] == shape[:-1] and s[-1] <= 6)
        assert b is not None
        draft.add("Concat", [a, b], (*shape[:-1], shape[-1] + draft.shapes[b][-1]), axis=-1)


def split(draft: Draft) -> None:
    name = draft.pick(lambda s: s[-1] >= 2)
    if name is not None:
        *lead, last = draft.shapes[name]
        cut = draft.draw(st.integers(1, last - 1))
        sizes = draft.constant(np.array([cut, last - cut]))
        first, second = f"s{len(draft.nodes)}a", f"s{len(draft.nodes)}b"
        draft.nodes.append(helper.make_node("Split", [name, sizes], [first, second], axis=len(lead) + 1))
        draft.unread = [n for n in draft.unread if n != name] + [first, second]
        draft.shapes |= {first: (*lead, cut), second: (*lead, last - cut)}


def cut(draft: Draft) -> None:
    name = draft.pick(lambda s: s[-1] >= 2)
    if name is not None:
        *lead, last = draft.shapes[name]
        start, stop, step = draft.draw(st.sampled_from([(1, last, 1), (0, last, 2), (-1, -last - 1, -1)]))
        ends = [draft.constant(np.array([n])) for n in (start, stop, len(lead) + 1, step)]
        draft.add("Slice", [name, *ends], (*lead, len(range(*slice(start, stop, step).indices(last)))))


def gather(draft: Draft) -> None:
    name = draft.pick()
    assert name is not None
    *lead, last = draft.shapes[name]
    indices = draft.draw(st.lists(st.integers(-last, last - 1), min_size=1, max_size=4))
    draft.add("Gather", [name, draft.constant(np.array(indices))], (*lead, len(indices)), axis=-1)


def pad(draft: Draft) -> None:
    name = draft.pick()
    assert name is not None
    *lead, last = draft.shapes[name]
    mode = draft.draw(st.sampled_from(["constant", "edge"]))
    pads = draft.constant(np.array([0] * (len(lead) + 1) + [1] + [0] * (len(lead) + 1) + [1]))
    draft.add("Pad", [name, pads], (*lead, last + 2), mode=mode)


def transpose(draft: Draft) -> None:
    name = draft.pick(lambda s: len(s) > 1)
    if name is not None:
        shape = draft.shapes[name]
        order = draft.draw(st.permutations(range(1, len(shape) + 1)))
        draft.add("Transpose", [name], tuple(shape[k - 1] for k in order), perm=[0, *order])


def reshape(draft: Draft) -> None:
    name = draft.pick()
    assert name is not None
    size = int(np.prod(draft.shapes[name]))
    targets = [(size,), *((k, size // k) for k in (2, 3) if size % k == 0)]
    target = draft.draw(st.sampled_from(targets))
    draft.add("Reshape", [name, draft.constant(np.array([0, *target]))], target)


def reduce(draft: Draft) -> None:
    name = draft.pick(lambda s: len(s) > 1)
    if name is not None:
        shape = draft.shapes[name]
        axis = draft.draw(st.integers(1, len(shape)))
        kinds = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceLogSumExp", "ReduceSumSquare"]
        kind, keep = draft.draw(st.sampled_from(kinds)), draft.draw(st.booleans())
        left = (
            tuple(n for k, n in enumerate(shape, 1) if k != axis)
            if not keep
            else (*shape[: axis - 1], 1, *shape[axis:])
        )
        draft.add(kind, [name, draft.constant(np.array([axis]))], left, keepdims=int(keep))


def softmax(draft: Draft) -> None:
    name = draft.pick()
    assert name is not None
    draft.add(draft.draw(st.sampled_from(["Softmax", "LogSoftmax"])), [name], draft.shapes[name], axis=-1)


def normalise(draft: Draft) -> None:
    name = draft.pick(lambda s: s[-1] > 1)
    if name is not None:
        last = draft.shapes[name][-1]
        draft.add("LayerNormalization", [name, draft.weight(last), draft.weight(last)], draft.shapes[name], epsilon=0.1)


def conv(draft: Draft) -> None:
    name = draft.pick(lambda s: len(s) == 3 and min(s[1:]) >= 2)
    if name is not None:
        channels, *sizes = draft.shapes[name]
        made, stride = draft.draw(st.integers(1, 3)), draft.draw(st.integers(1, 2))
        kernel = draft.weight(made, channels, 2, 2)
        out = [(n + 1 - 2) // stride + 1 for n in sizes]
        draft.add("Conv", [name, kernel], (made, *out), strides=[stride, stride], pads=[0, 1, 1, 0])


def pool(draft: Draft) -> None:
    name = draft.pick(lambda s: len(s) == 3 and min(s[1:]) >= 2)
    if name is not None:
        channels, *sizes = draft.shapes[name]
        kind, stride = draft.draw(st.sampled_from(["MaxPool", "AveragePool"])), draft.draw(st.integers(1, 2))
        out = [(n - 2) // stride + 1 for n in sizes]
        draft.add(kind, [name], (channels, *out), kernel_shape=[2, 2], strides=[stride, stride])


def pair(draft: Draft) -> None:
    """Two varying operands of one function."""
    a = draft.pick()
    assert a is not None
    shape = draft.shapes[a]
    b = draft.pick(lambda s: s == shape)
    assert b is not None
    kind = draft.draw(st.sampled_from(["Pow", "PRelu", "Mod", "Einsum"]))
    if kind == "Pow":
        base = draft.add("Add", [draft.add("Sigmoid", [a], None), draft.constant(np.float32(0.3))], None)
        draft.add("Pow", [base, draft.add("Tanh", [b], None)], shape)
    elif kind == "Einsum" and len(shape) > 1:
        letters = "abc"[: len(shape)]
        tamed = [draft.add("Tanh", [name], None) for name in (a, b)]
        draft.add("Einsum", tamed, shape[:-1], equation=f"n{letters},n{letters}->n{letters[:-1]}")
    elif kind == "Mod":
        draft.add("Mod", [a, draft.constant(np.float32(0.75))], shape, fmod=1)
    else:
        draft.add("PRelu", [a, b], shape)


def along(draft: Draft) -> None:
    """Operators that know an axis."""
    name = draft.pick(lambda s: len(s) > 1 or s[-1] > 1)
    if name is not None:
        *lead, last = shape = draft.shapes[name]
        axis = len(lead) + 1
        kind = draft.draw(
            st.sampled_from(["CumSum", "TopK", "Tile", "Expand", "ReduceProd", "ReduceL2", "ReverseSequence"])
        )
        if kind == "CumSum":
            reverse = draft.draw(st.integers(0, 1))
            draft.add(kind, [name, draft.constant(np.array(axis))], shape, reverse=reverse)
        elif kind == "TopK":
            made, count = draft.add(kind, [name, draft.constant(np.array([last - 1]))], None, axis=axis), last - 1
            draft.nodes[-1].output.append(f"{made}_places")
            if count:
                draft.shapes[made] = (*lead, count)
                draft.unread.append(made)
        elif kind == "Tile":
            repeats = draft.constant(np.array([1] * len(shape) + [2]))
            draft.add(kind, [name, repeats], (*lead, 2 * last))
        elif kind == "Expand":
            row = draft.add("ReduceSum", [name, draft.constant(np.array([axis]))], None)
            draft.add(kind, [row, draft.constant(np.array([1] * len(shape) + [2]))], (*lead, 2))
        elif kind == "ReverseSequence":
            if len(shape) == 1:
                draft.add("Neg", [name], shape)
            else:
                turned = draft.add("Slice", [name, *(draft.constant(np.array([n])) for n in (-1, -99, 1, -1))], shape)
                draft.add("Add", [turned, name], shape)
        else:
            tamed = draft.add("Sigmoid", [name], None)
            draft.add(kind, [tamed, draft.constant(np.array([axis]))], tuple(lead) or (1,), keepdims=int(not lead))


def scatter(draft: Draft) -> None:
    name = draft.pick(lambda s: s[-1] >= 2)
    if name is not None:
        last = (shape := draft.shapes[name])[-1]
        first = draft.add("Slice", [name, *(draft.constant(np.array([n])) for n in (0, 1, len(shape)))], None)
        place = helper.make_tensor("value", TensorProto.INT64, [1], [last - 1])
        places = draft.add("ConstantOfShape", [draft.add("Shape", [first], None)], None, value=place)
        reduction = draft.draw(st.sampled_from(["none", "add"]))
        draft.add("ScatterElements", [name, places, first], shape, axis=len(shape), reduction=reduction)


def channels(draft: Draft) -> None:
    """Operators on pictures."""
    name = draft.pick(lambda s: len(s) == 3)
    if name is not None:
        c, h, w = shape = draft.shapes[name]
        kinds = ["BatchNormalization", "InstanceNormalization", "GlobalMaxPool", "GlobalAveragePool", "ConvTranspose"]
        kind = draft.draw(st.sampled_from([*kinds, "Resize", "LRN", "DepthToSpace"]))
        if kind == "BatchNormalization":
            spread = draft.constant(np.linspace(0.5, 1.5, c).astype(np.float32))
            draft.add(kind, [name, draft.weight(c), draft.weight(c), draft.weight(c), spread], shape)
        elif kind == "InstanceNormalization":
            draft.add(kind, [name, draft.weight(c), draft.weight(c)], shape, epsilon=0.1)
        elif kind.startswith("Global"):
            draft.add(kind, [name], (c, 1, 1))
        elif kind == "ConvTranspose":
            draft.add(kind, [name, draft.weight(c, 2, 2, 2)], (2, 2 * h, 2 * w), strides=[2, 2])
        elif kind == "Resize":
            sizes = draft.add("Shape", [name], None, start=0, end=2)
            sizes = draft.add("Concat", [sizes, draft.constant(np.array([h + 1, 2 * w]))], None, axis=0)
            mode = draft.draw(st.sampled_from(["nearest", "linear"]))
            draft.add(kind, [name, "", "", sizes], (c, h + 1, 2 * w), mode=mode)
        elif kind == "LRN":
            draft.add(kind, [name], shape, size=3)
        elif c % 4 == 0:
            draft.add(kind, [name], (c // 4, 2 * h, 2 * w), blocksize=2)


def recurrent(draft: Draft) -> None:
    name = draft.pick(lambda s: len(s) == 2)
    if name is not None:
        steps, width = draft.shapes[name]
        kind, gates = draft.draw(st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)]))
        first = draft.add("Transpose", [name], None, perm=[1, 0, 2])
        weights = [draft.weight(1, gates * 2, width), draft.weight(1, gates * 2, 2)]
        made = draft.add(kind, [first, *weights], None, hidden_size=2)
        axes = draft.constant(np.array([1]))
        draft.add("Transpose", [draft.add("Squeeze", [made, axes], None)], (steps, 2), perm=[1, 0, 2])


STEPS = [
    unary, unary, binary, binary, power, where, dense, attention, concat, split, cut, gather, pad, transpose, reshape,
    reduce, softmax, normalise, conv, conv, pool, pool, pair, pair, along, along, scatter, channels, channels,
    recurrent,
]  # fmt: skip
INPUTS: list[dict[str, Shape]] = [
    {"x": (4,)},
    {"x": (3,), "z": (3,)},
    {"x": (2, 3)},
    {"x": (3, 2), "z": (2,)},
    {"x": (2, 4, 4)},
    {"x": (1, 3, 4), "z": (3,)},
]


@st.composite
def models(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[ModelProto, dict[str, Shape], int]:
    inputs = draw(st.sampled_from(INPUTS))
    draft = Draft(draw, inputs)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=8)):
        if sum(int(np.prod(shape)) for shape in draft.shapes.values()) < 400:
            step(draft)
    return draft.model(), inputs, draw(st.integers(0, 9))


@given(models())
@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_random_graphs(drawn: tuple[ModelProto, dict[str, Shape], int]) -> None:
    model, inputs, seed = drawn
    note(onnx.printer.to_text(model))
    rng = np.random.default_rng(seed)
    background = {name: rng.normal(size=(B, *shape)).astype(np.float32) for name, shape in inputs.items()}
    samples = {name: rng.normal(size=(N, *shape)).astype(np.float32) for name, shape in inputs.items()}
    samples["x"][0] = background["x"][0]  # some deltas of a pair are zero, or all

    single = DeepExplainer(model, background, threads=1)
    double = DeepExplainer(model, background, precision="float64")
    found, exact = listed(single(samples)), listed(double(samples))
    scale = sum(np.abs(part.values).reshape(N, -1, OUTPUTS).sum(1) for part in exact) + np.abs(exact[0].outputs)
    scale = np.maximum(scale, 0.01)  # an output may be 0 whatever the input
    assert gap(found, scale) < 1e-4
    assert gap(exact, scale) < 1e-8
    for got, expected in zip(found, exact, strict=True):
        assert np.isfinite(got.values).all()
        over = scale.reshape(N, *[1] * (got.values.ndim - 2), OUTPUTS)
        assert (np.abs(got.values - expected.values) / over).max() < 2e-3
    for node, residual in double.ledger(samples).items():
        assert np.abs(residual / scale).max() < 1e-8, node


@given(models())
@settings(max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore:one triple")
def test_every_way_of_asking_gives_the_same(drawn: tuple[ModelProto, dict[str, Shape], int]) -> None:
    """References by a function, ranked outputs and the smallest pieces."""
    model, inputs, seed = drawn
    note(onnx.printer.to_text(model))
    rng = np.random.default_rng(seed)
    background = {name: rng.normal(size=(B, *shape)).astype(np.float32) for name, shape in inputs.items()}
    samples = {name: rng.normal(size=(N, *shape)).astype(np.float32) for name, shape in inputs.items()}
    explainer = DeepExplainer(model, background, precision="float64")
    expected = listed(explainer.shap_values(samples))
    own = DeepExplainer(model, lambda sample: background, precision="float64")
    pieces = DeepExplainer(model, background, precision="float64", memory_limit=1)
    for other in (own, pieces):
        for got, values in zip(listed(other.shap_values(samples)), expected, strict=True):
            np.testing.assert_allclose(got, values, rtol=1e-6, atol=1e-9)
    ranked, indexes = own.shap_values(samples, ranked_outputs=1)
    for got, values in zip(listed(ranked), expected, strict=True):
        chosen = np.take_along_axis(values, indexes.reshape(N, *[1] * (values.ndim - 2), 1), -1)
        np.testing.assert_allclose(got, chosen, rtol=1e-6, atol=1e-9)


def listed(explanation: Any) -> list[Any]:
    return explanation if isinstance(explanation, list) else [explanation]


def gap(parts: list[Any], scale: Array) -> float:
    """Largest miss of the sum over all inputs, relative to `scale`."""
    total = sum(part.values.reshape(N, -1, OUTPUTS).sum(1) for part in parts)
    return float((np.abs(total - (parts[0].outputs - parts[0].base_values)) / scale).max())


@pytest.mark.parametrize("rules", ["reveal_cancel", "integrated_gradients"])
@given(drawn=models())
@settings(max_examples=4, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore:one triple")
def test_named_rules_sum_to_delta(rules: str, drawn: tuple[ModelProto, dict[str, Shape], int]) -> None:
    model, inputs, seed = drawn
    note(onnx.printer.to_text(model))
    rng = np.random.default_rng(seed)
    background = {name: rng.normal(size=(B, *shape)).astype(np.float32) for name, shape in inputs.items()}
    samples = {name: rng.normal(size=(N, *shape)).astype(np.float32) for name, shape in inputs.items()}
    samples["x"][0] = background["x"][0]
    explainer = DeepExplainer(model, background, precision="float64", rules=rules)
    found = listed(explainer(samples, check_additivity=False))
    scale = sum(np.abs(part.values).reshape(N, -1, OUTPUTS).sum(1) for part in found) + np.abs(found[0].outputs)
    assert gap(found, np.maximum(scale, 0.01)) < 1e-8
    for node, residual in explainer.ledger(samples).items():
        assert np.abs(residual / np.maximum(scale, 0.01)).max() < 1e-8, node
