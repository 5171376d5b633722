"""Products: the midpoint rule, in every form of MatMul, Gemm, Mul and Div."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deepshap_ir.testing import check_rule

RNG = np.random.default_rng(7)


def draw(*shape: int) -> Any:
    return RNG.normal(size=shape)


def away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], size=(1,) * len(shape))


@pytest.mark.parametrize("operator", ["Mul", "Div"])
@pytest.mark.parametrize("varying", [[0], [1], [0, 1]])
@pytest.mark.parametrize(
    "shapes", [[(1, 4), (1, 4)], [(1, 3, 4), (4,)], [(4,), (2, 3, 4)], [(1, 3, 1), (2, 1, 4)], [(), (2,)]]
)
def test_mul_div(operator: str, varying: list[int], shapes: list[tuple[int, ...]]) -> None:
    inputs = [s if i in varying else draw(*s) + 3.0 for i, s in enumerate(shapes)]
    check_rule(operator, inputs, varying=varying, domain={1: away_from_zero} if operator == "Div" else (-2.0, 2.0))


MATMUL = [
    [(1, 3), (3, 4)],
    [(2, 3), (3, 4)],
    [(3,), (3,)],
    [(3,), (3, 4)],
    [(2, 3), (3,)],
    [(3,), (5, 3, 4)],
    [(5, 2, 3), (3,)],
    [(1, 2, 3), (1, 3, 4)],
    [(1, 5, 2, 3), (5, 3, 4)],
    [(5, 1, 2, 3), (1, 6, 3, 2)],
    [(2, 3), (5, 3, 2)],
    [(5, 2, 3), (3, 2)],
]


@pytest.mark.parametrize("varying", [[0], [1], [0, 1]])
@pytest.mark.parametrize("shapes", MATMUL, ids=str)
def test_matmul(shapes: list[tuple[int, ...]], varying: list[int]) -> None:
    check_rule("MatMul", [s if i in varying else draw(*s) for i, s in enumerate(shapes)], varying=varying)


C_SHAPES: list[tuple[int, ...] | None] = [None, (), (1,), (4,), (1, 4), (2, 1), (2, 4)]


@pytest.mark.parametrize("varying", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("c", C_SHAPES, ids=str)
def test_gemm(c: tuple[int, ...] | None, varying: list[int]) -> None:
    if c is None and 2 in varying:
        varying = [i for i in varying if i != 2] or [0]
    for flip_a, flip_b in [(0, 0), (1, 1)] if len(varying) == 1 else [(0, 1), (1, 0)]:
        shapes = [(3, 2) if flip_a else (2, 3), (4, 3) if flip_b else (3, 4), *([] if c is None else [c])]
        scales = {"alpha": 0.5, "beta": -2.0} if flip_a != flip_b else {}
        inputs = [s if i in varying else draw(*s) for i, s in enumerate(shapes)]
        check_rule("Gemm", inputs, varying=varying, attributes={"transA": flip_a, "transB": flip_b, **scales})
