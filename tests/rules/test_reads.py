"""What was read along an axis goes back to where it was read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepshap_ir.engine.emitter import Emitter
from deepshap_ir.engine.value import SAMPLE
from deepshap_ir.rules.reads import given_back, surrounded, taken

RNG = np.random.default_rng(2)


def expected(m: Any, axis: int, reads: Any, size: int) -> Any:
    total = np.zeros((*m.shape[:axis], size, *m.shape[axis + 1 :]))
    np.add.at(total, (*[slice(None)] * axis, reads), m)
    return total


def emitted(axis: int, reads: list[int], size: int, shape: tuple[int, ...] = (2, 0, 3)) -> list[str]:
    op = Emitter({"": 18})
    lengths = [len(reads) if k == axis else n or 4 for k, n in enumerate(shape)]
    given_back(op.input("m", lengths, np.float32, [SAMPLE]), axis, np.array(reads), size)
    return [step.op_type for step in op.steps]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    "reads",
    [
        [],
        [3],
        [0, 1, 2, 3, 4],
        [1, 2, 3],
        [4, 3, 2, 1, 0],
        [3, 2],
        [0, 2, 4],
        [4, 0, 2],
        [2, 4, 1, 0, 3],
        [0, 0],
        [1, 2, 1],
        [0, 0, 0, 1, 2, 3, 4, 4],
        [3] * 9,
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [5, 60_000])
def test_every_kind_of_reading(axis: int, reads: list[int], size: int) -> None:
    shape = [2, 3, 2]
    shape[axis] = len(reads)
    m, places = RNG.normal(size=shape), np.array(reads, np.int64)
    got = given_back(Emitter({"": 18}, np.dtype(np.float64)).constant(m), axis, places, size).data
    assert got is not None
    np.testing.assert_allclose(got, expected(m, axis, places, size), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(0, size - 1), min_size=1))))
def test_any_reading(case: tuple[int, list[int]]) -> None:
    size, reads = case
    m = RNG.normal(size=(len(reads), 2))
    got = given_back(Emitter({"": 18}, np.dtype(np.float64)).constant(m), 0, np.array(reads), size).data
    assert got is not None
    np.testing.assert_allclose(got, expected(m, 0, np.array(reads), size), atol=1e-12)


@pytest.mark.parametrize(
    ("axis", "reads", "size", "operators"),
    [
        (1, [0, 1, 2], 3, []),
        (1, [1, 2], 5, ["Pad"]),
        (1, [2, 1], 5, ["Slice", "Pad"]),
        (1, [2, 1, 0], 3, ["Slice"]),
        (1, [2, 0, 1], 3, ["Gather"]),
        (1, [0, 2], 4, ["Pad", "Gather"]),
        (1, [0, 1, 2, 0, 1, 2], 3, ["Gather", "Reshape", "ReduceSum"]),
        (1, [0, 0, 1, 1, 2, 2], 3, ["Reshape", "ReduceSum"]),
        (2, [0, 0, 1], 3, ["MatMul"]),
        (2, [2, 0, 1], 1 << 18, ["Pad", "Gather"]),
    ],
    ids=str,
)
def test_each_kind_by_its_cheapest_operators(axis: int, reads: list[int], size: int, operators: list[str]) -> None:
    assert [name for name in emitted(axis, reads, size) if name != "Reshape" or "Reshape" in operators] == operators


def test_tables_look_up_at_most_twice_as_many_elements_as_were_read() -> None:
    reads = np.repeat(np.arange(10), [1, 1, 2, 3, 5, 9, 17, 33, 1, 0])
    op = Emitter({"": 18})
    given_back(op.input("m", (1, len(reads), 3), np.float32, [SAMPLE]), 1, reads, 10)
    looked_up = [step.inputs[1] for step in op.steps if step.op_type == "Gather"]
    assert sum(v.size for v in looked_up[:-1] if v is not None) <= 2 * len(reads)


def test_surrounded_adds_and_cuts() -> None:
    m = Emitter({"": 18}).constant(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(surrounded(m, {1: (1, -1)}).data, [[0, 0, 1], [0, 3, 4]])
    np.testing.assert_array_equal(surrounded(m, {0: (-1, 0), 1: (0, -2)}).data, [[3]])
    assert surrounded(m, {0: (0, 0)}) is m


def test_taken() -> None:
    m = Emitter({"": 18}).constant(np.arange(24.0).reshape(2, 3, 4))
    got = taken(m, range(2), np.array([[5, 0]])).data
    np.testing.assert_array_equal(got, np.arange(24.0).reshape(6, 4)[[[5, 0]]])
