"""Conv and ConvTranspose, with fixed and with varying weights."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.backends import Reference
from deepshap_ir.engine.program import build_plan
from deepshap_ir.engine.registry import Resolver
from deepshap_ir.testing import Runner, check_rule, exact_shapley, one_node_graph
from tests.rules.onnx_cases import node_cases

RNG = np.random.default_rng(11)


def draw(*shape: int) -> Any:
    return RNG.normal(size=shape)


ATTRIBUTES: list[dict[str, Any]] = [
    {},
    {"pads": [1, 1, 1, 1]},
    {"pads": [2, 0, 1, 3]},
    {"strides": [2, 3]},
    {"strides": [2, 1], "pads": [1, 0, 2, 1]},
    {"dilations": [2, 1]},
    {"dilations": [1, 2], "strides": [3, 2], "pads": [0, 2, 1, 1]},
    {"pads": [4, 4, 4, 4]},
    {"auto_pad": "VALID", "strides": [2, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
    {"auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 2], "auto_pad": "NOTSET"},
]


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_conv(attributes: dict[str, Any], group: int) -> None:
    check_rule("Conv", [(2, 4, 7, 8), draw(6, 4 // group, 3, 2)], attributes={**attributes, "group": group})


@pytest.mark.parametrize(
    ("channels", "outputs", "group", "kernel", "emitted"),
    [
        (1, 8, 1, 3, "ConvTranspose"),
        (3, 16, 1, 3, "ConvTranspose"),
        (10, 20, 1, 3, "ConvTranspose"),
        (12, 16, 1, 3, "Conv"),
        (6, 3, 1, 1, "Conv"),
        (4, 4, 4, 3, "Conv"),
        (4, 8, 4, 3, "ConvTranspose"),
        (8, 4, 2, 3, "Conv"),
    ],
)
@pytest.mark.parametrize("pads", [[0, 0], [1, 0], [3, 3]], ids=str)
def test_conv_of_stride_1_goes_back_by_the_faster_of_two_operators(
    channels: int, outputs: int, group: int, kernel: int, emitted: str, pads: list[int]
) -> None:
    weights, attributes = draw(outputs, channels // group, kernel), {"group": group, "pads": pads}
    check_rule("Conv", [(1, channels, 6), weights, draw(outputs)], attributes=attributes)
    graph = one_node_graph("Conv", [draw(1, channels, 6), weights], [0], attributes)
    plan = build_plan(graph, Resolver(), explained=["x0"])
    # the forward pass at samples and at references are two Conv in programs of their own
    operators = Counter(step.op_type for step in plan.explain.steps if step.op_type.startswith("Conv"))
    assert operators == {"ConvTranspose" if max(pads) >= kernel else emitted: 1}


@pytest.mark.parametrize("sizes", [(9,), (5, 6), (4, 5, 6)], ids=str)
@pytest.mark.parametrize("channels", [(2, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_rank(sizes: tuple[int, ...], channels: tuple[int, int], operator: str, stride: int) -> None:
    rank = len(sizes)
    attributes = {"strides": [stride] * rank, "pads": [1, 0, 1][:rank] + [0, 1, 1][:rank]}
    weights = draw(*(channels if operator == "ConvTranspose" else channels[::-1]), *[3, 2, 2][:rank])
    check_rule(operator, [(1, channels[0], *sizes), weights, draw(channels[1])], attributes=attributes)


TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"pads": [1, 0, 2, 1]},
    {"strides": [2, 3]},
    {"strides": [2, 3], "output_padding": [1, 2]},
    {"strides": [2, 3], "output_padding": [1, 0], "pads": [1, 1, 0, 2]},
    {"dilations": [2, 1]},
    {"dilations": [2, 3], "strides": [2, 2], "pads": [2, 0, 1, 1]},
    {"auto_pad": "VALID", "strides": [2, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
    {"strides": [2, 2], "output_shape": [7, 8]},
    {"strides": [2, 2], "output_shape": [8, 7], "auto_pad": "SAME_UPPER"},
    {"strides": [3, 2], "output_shape": [10, 8], "auto_pad": "SAME_LOWER"},
    {"strides": [2, 2], "output_shape": [7, 8], "output_padding": [1, 0]},
]


@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(attributes: dict[str, Any], group: int) -> None:
    check_rule("ConvTranspose", [(2, 4, 4, 4), draw(4, 6 // group, 3, 2)], attributes={**attributes, "group": group})


@pytest.mark.parametrize("varying", [[1], [2], [0, 1], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"group": 2, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_varying_weights(operator: str, varying: list[int], attributes: dict[str, Any]) -> None:
    group = attributes.get("group", 1)
    weights = (6, 4 // group, 3, 2) if operator == "Conv" else (4, 6 // group, 3, 2)
    inputs = [draw(*s) if i not in varying else s for i, s in enumerate([(2, 4, 5, 6), weights, (6,)])]
    check_rule(operator, inputs, varying=varying, attributes=attributes)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_input_and_weights_share_as_the_shapley_value_says(operator: str) -> None:
    """Every product of an input and a weight is shared half and half: the Shapley value of all eight numbers."""
    mixed = "roc,rcp->rop" if operator == "Conv" else "rco,rcp->rop"
    x, x0, seed = [draw(1, 2, 2), draw(2, 2, 1)], [draw(1, 2, 2), draw(2, 2, 1)], draw(1, 2, 2)

    def explained(rows: Any) -> Any:
        values, weights = rows[:, :4].reshape(-1, 2, 2), rows[:, 4:].reshape(-1, 2, 2)
        return np.einsum(mixed, weights, values).reshape(-1, 4) @ seed.reshape(-1)

    def flat(arrays: list[Any]) -> Any:
        return np.concatenate([a.reshape(-1) for a in arrays])

    phi = exact_shapley(explained, flat(x), flat(x0))
    ms = multipliers(operator, x, x0, seed, [0, 1])
    np.testing.assert_allclose(flat(ms) * (flat(x) - flat(x0)), phi, rtol=1e-10)


def multipliers(
    operator: str, x: list[Any], x0: list[Any], seed: Any, varying: list[int], attributes: dict[str, Any] | None = None
) -> list[Any]:
    run = Runner(one_node_graph(operator, x, varying, attributes), Resolver(), Reference())
    found = run.multipliers([x[i][None] for i in varying], [x0[i][None] for i in varying], seed[None])
    return [m[0, 0, 0] for m in found]


@pytest.mark.parametrize("module", ["conv", "convtranspose", "col2im"])
def test_cases_of_onnx(module: str) -> None:
    tried = node_cases(module)
    assert len(tried) > 4
    for case in tried:
        x, *rest = case.inputs
        assert x is not None
        check_rule(case.operator, [x.shape, *rest], attributes=case.attributes, opset=case.opset)


def test_the_multiplier_is_that_of_a_loop() -> None:
    """A direct replica of ``m_x = sum m_y w`` over all products that Conv adds up."""
    x, weights, seed = draw(1, 2, 5), draw(4, 1, 3), draw(1, 4, 2)
    expected = np.zeros((1, 2, 5))
    for o, p, k in itertools.product(range(4), range(2), range(3)):
        if 0 <= p * 2 + k - 1 < 5:
            expected[0, o // 2, p * 2 + k - 1] += seed[0, o, p] * weights[o, 0, k]
    attributes = {"group": 2, "strides": [2], "pads": [1, 0]}
    (got,) = multipliers("Conv", [x, weights], [x * 0, weights], seed, [0], attributes)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("columns", "image", "block", "attributes"),
    [
        ((1, 8, 12), [4, 5], [2, 2], {}),
        ((2, 18, 6), [4, 5], [2, 3], {"strides": [2, 1]}),
        ((1, 8, 9), [5, 5], [2, 2], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
        ((1, 12, 9), [5, 7], [2, 3], {"dilations": [2, 2]}),
        ((1, 10, 3), [7], [5], {}),
        ((1, 16, 4), [3, 3, 2], [2, 2, 2], {}),
    ],
    ids=str,
)
def test_columns_to_image(
    columns: tuple[int, ...], image: list[int], block: list[int], attributes: dict[str, Any]
) -> None:
    check_rule("Col2Im", [columns, np.array(image), np.array(block)], attributes=attributes)
