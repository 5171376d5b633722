"""RNN, LSTM and GRU: every form against onnxruntime, their multipliers by the laws, and layers written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepshap_ir.engine.expand import expand_graph
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.errors import RuleError
from deepshap_ir.importing.runner import Runner
from deepshap_ir.onnx_io import graph_to_model
from deepshap_ir.testing import check_rule, exact_shapley, one_node_graph
from tests.rules.onnx_cases import node_cases

Array = NDArray[Any]

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
T, B, H = 3, 2, 2
WIDTH = 2
NAMES = ("X", "W", "R", "B", "lengths", "initial_h", "initial_c", "P")


def operands(operator: str, directions: int = 1, steps: int = T, **changes: Any) -> list[Array | None]:
    """X, W, R, B, lengths, initial_h, initial_c, P; those of `changes` replaced, None for absent ones."""
    rng, g = np.random.default_rng(5), GATES[operator] * H
    shapes = [(steps, B, WIDTH), (directions, g, WIDTH), (directions, g, H), (directions, 2 * g)]
    arrays: dict[str, Array | None] = {
        name: rng.uniform(-1, 1, shape) for name, shape in zip(NAMES, shapes, strict=False)
    }
    arrays["lengths"] = np.full(B, steps, np.int32)
    arrays["initial_h"] = rng.uniform(-1, 1, (directions, B, H))
    if operator == "LSTM":
        arrays["initial_c"] = rng.uniform(-1, 1, (directions, B, H))
        arrays["P"] = rng.uniform(-1, 1, (directions, 3 * H))
    return list((arrays | changes).values())


def outputs(operator: str) -> int:
    return 3 if operator == "LSTM" else 2


def forwards(
    operator: str,
    inputs: list[Array | None],
    attributes: dict[str, Any],
    explained: int = 0,
    engine: str = "onnxruntime",
) -> list[Array]:
    """The output of the loop that the layer becomes, and that of the layer itself, in float32."""
    attributes = {"hidden_size": H, **attributes}
    arrays = [a.astype(np.float32) if a is not None and a.dtype.kind == "f" else a for a in inputs]
    varying = [i for i, a in enumerate(arrays) if a is not None]
    graph = one_node_graph(operator, arrays, varying, attributes, 18, outputs(operator), explained)
    feeds = {name: arrays[i] for name, i in zip(graph.inputs, varying, strict=True)}
    runner = Runner(graph_to_model(graph))
    assert runner.engine == engine
    loop = Runner(graph_to_model(expand_graph(graph, Resolver())))
    return [np.asarray(each.run(feeds)[graph.outputs[0]]) for each in (loop, runner)]


FORMS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("RNN", {}, {}),
    ("RNN", {"activations": ["Relu"]}, {"B": None, "initial_h": None, "lengths": None}),
    ("RNN", {"clip": 0.4}, {"lengths": np.array([1, 3], np.int32)}),
    ("GRU", {}, {}),
    ("GRU", {"linear_before_reset": 1}, {"lengths": np.array([3, 2], np.int32)}),
    ("GRU", {"linear_before_reset": 1, "clip": 0.4}, {"initial_h": None, "lengths": None}),
    ("GRU", {}, {"B": None, "initial_h": None}),
    ("LSTM", {}, {}),
    ("LSTM", {}, {"P": None, "lengths": np.array([2, 1], np.int32)}),
    ("LSTM", {"clip": 0.1}, {"B": None, "initial_h": None, "lengths": None}),
    ("LSTM", {"input_forget": 1}, {"P": None, "initial_c": None}),
    ("LSTM", {"input_forget": 1}, {}),
]


@pytest.mark.parametrize(("operator", "attributes", "changes"), FORMS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_the_loop_is_the_layer(
    operator: str, attributes: dict[str, Any], changes: dict[str, Any], direction: str
) -> None:
    both = direction == "bidirectional"
    attributes = {**attributes, "direction": direction}
    if both and "activations" in attributes:
        attributes["activations"] = attributes["activations"] * 2
    for explained in range(outputs(operator)):
        ours, theirs = forwards(operator, operands(operator, 1 + both, **changes), attributes, explained)
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


ACTIVATIONS: list[tuple[str, list[float], list[float]]] = [
    ("Relu", [], []),
    ("Tanh", [], []),
    ("Sigmoid", [], []),
    ("Affine", [0.5], [0.1]),
    ("LeakyRelu", [0.2], []),
    ("LeakyRelu", [], []),
    ("ThresholdedRelu", [0.3], []),
    ("ThresholdedRelu", [], []),
    ("ScaledTanh", [0.7], [1.5]),
    ("HardSigmoid", [0.3], [0.4]),
    ("HardSigmoid", [], []),
    ("Elu", [0.5], []),
    ("Elu", [], []),
    ("Softsign", [], []),
    ("Softplus", [], []),
]


@pytest.mark.parametrize(("activation", "alpha", "beta"), ACTIVATIONS)
def test_every_activation(activation: str, alpha: list[float], beta: list[float]) -> None:
    attributes = {"activations": [activation], "activation_alpha": alpha, "activation_beta": beta}
    attributes = {key: value for key, value in attributes.items() if value}
    ours, theirs = forwards("RNN", operands("RNN"), attributes)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_parameters_of_activations_are_taken_in_turn() -> None:
    attributes = {
        "activations": ["HardSigmoid", "Elu", "ScaledTanh", "Sigmoid", "LeakyRelu", "Affine"],
        "activation_alpha": [0.3, 0.7, 0.9, 0.2, 0.8],
        "activation_beta": [0.4, 1.2, 0.1],
        "direction": "bidirectional",
    }
    ours, theirs = forwards("LSTM", operands("LSTM", 2), attributes)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_an_unknown_activation_is_refused() -> None:
    graph = one_node_graph("RNN", operands("RNN"), [0], {"hidden_size": H}, outputs=2)
    node = replace(graph.nodes[0], attributes={"hidden_size": H, "activations": ["Gelu"]})
    with pytest.raises(RuleError, match=r"no activation 'Gelu'; known are relu, tanh, .*softplus"):
        expand_graph(replace(graph, nodes=(node,)), Resolver())


def layer_check(
    operator: str, inputs: list[Array | None], varying: list[int], explained: int, **attributes: Any
) -> Any:
    given = [a.shape if i in varying and a is not None else a for i, a in enumerate(inputs)]
    return check_rule(
        operator,
        given,
        varying=varying,
        attributes={"hidden_size": H, **attributes},
        outputs=outputs(operator),
        explained=explained,
        domain=(-1.0, 1.0),
    )


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize(
    ("varying", "explained"), [([0], 0), ([5], 1), ([0, 5], 1), ([1, 2, 3], 0), ([0, 1, 2, 3, 5], 1)]
)
def test_laws_for_every_operand(operator: str, varying: list[int], explained: int) -> None:
    layer_check(operator, operands(operator), varying, explained)


@pytest.mark.parametrize(("varying", "explained"), [([6], 0), ([7], 2), ([0, 2, 5, 6, 7], 2)])
def test_laws_for_cell_states_and_peepholes(varying: list[int], explained: int) -> None:
    layer_check("LSTM", operands("LSTM"), varying, explained)


@pytest.mark.parametrize(
    ("operator", "attributes", "changes"),
    [
        (
            "RNN",
            {"activations": ["Softplus"] * 2, "direction": "bidirectional"},
            {"lengths": np.array([1, 3], np.int32)},
        ),
        ("GRU", {"linear_before_reset": 1, "direction": "reverse"}, {"B": None}),
        ("LSTM", {"direction": "bidirectional"}, {"P": None, "lengths": np.array([3, 2], np.int32)}),
        ("LSTM", {"input_forget": 1, "direction": "reverse"}, {}),
    ],
)
def test_laws_for_forms(operator: str, attributes: dict[str, Any], changes: dict[str, Any]) -> None:
    directions = 1 + (attributes["direction"] == "bidirectional")
    layer_check(operator, operands(operator, directions, **changes), [0], 0, **attributes)


def test_lengths_that_vary() -> None:
    """By the rules of the comparison and of Where: what a length adds is booked to the length."""
    inputs = operands("GRU")
    checked = check_rule(
        "GRU",
        [(T, B, WIDTH), *inputs[1:4], np.zeros(B, np.int32), inputs[5]],
        varying=[0, 4],
        attributes={"hidden_size": H},
        outputs=2,
        domain={0: (-1.0, 1.0), 4: lambda rng, shape: rng.integers(1, T + 1, shape)},
        derivative=False,
    )
    assert np.abs(checked.multipliers[1]).max() > 0


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_batch_first_is_the_same_transposed(operator: str, direction: str) -> None:
    """onnxruntime knows no layout 1."""
    inputs = operands(operator, 1 + (direction == "bidirectional"), lengths=np.array([2, 3], np.int32))
    attributes = {"direction": direction}
    flipped = [a if a is None or i not in (0, 5, 6) else a.swapaxes(0, 1) for i, a in enumerate(inputs)]
    for explained in range(outputs(operator)):
        time_first, _ = forwards(operator, inputs, attributes, explained)
        ours, theirs = forwards(operator, flipped, {**attributes, "layout": 1}, explained, "onnx.reference")
        order = (2, 0, 1, 3) if explained == 0 else (1, 0, 2)
        np.testing.assert_allclose(time_first.transpose(order), ours, atol=1e-6)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    layer_check(operator, flipped, [0, 5], 0, direction=direction, layout=1)


def test_shapley_values_of_one_step() -> None:
    """With an affine cell and a fixed output gate the cell has two products of two players each."""
    w, r = np.zeros((1, 4, 4)), np.zeros((1, 4, 1))
    w[0, [0, 2, 3], [0, 1, 2]] = [0.7, -0.4, 1.1]
    inputs: list[Any] = [(1, 1, 4), w, r, np.full((1, 8), 0.3), None, None, np.full((1, 1, 1), 0.8)]
    attributes = {
        "hidden_size": 1,
        "activations": ["Affine"] * 3,
        "activation_alpha": [1.0] * 3,
        "activation_beta": [0.0] * 3,
    }
    checked = check_rule("LSTM", inputs, attributes=attributes, outputs=3, explained=2)
    x, x0 = checked.samples[0][1].ravel(), checked.references[0][2].ravel()
    phi = exact_shapley(lambda v: (v[:, 0] * 0.7 + 0.6) * (v[:, 2] * 1.1 + 0.6) + (0.6 - v[:, 1] * 0.4) * 0.8, x, x0)
    got = checked.multipliers[0][1, 2].ravel() * (x - x0)
    np.testing.assert_allclose(got / got.sum(), phi / phi.sum(), atol=1e-9)


@pytest.mark.parametrize("module", ["rnn", "gru", "lstm"])
def test_cases_of_onnx(module: str) -> None:
    tried = node_cases(module)
    assert len(tried) >= 5
    for case in tried:
        inputs: list[Any] = [case.inputs[0].shape, *case.inputs[1:]]  # type: ignore[union-attr]
        check_rule(case.operator, inputs, attributes=case.attributes, opset=case.opset, outputs=2, explained=1)


@pytest.mark.parametrize("operator", GATES)
def test_one_step_of_time_needs_no_loop(operator: str) -> None:
    graph = one_node_graph(operator, operands(operator, 2, 1), [0], {"hidden_size": H, "direction": "bidirectional"})
    assert "Scan" not in {node.op_type for node in expand_graph(graph, Resolver()).nodes}
    layer_check(operator, operands(operator, 2, 1), [0, 5], 0, direction="bidirectional")
