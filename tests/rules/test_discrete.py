"""Indices of largest elements and one-hot vectors."""

from typing import Any

import numpy as np
import pytest

from deepshap_ir.engine.registry import BUILT_IN
from deepshap_ir.testing import check_rule

DEPTH = np.array(3.0)
"""A floating-point number as the indices are: onnxruntime has no kernel for mixed types."""


def ids(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    return rng.integers(-3, 3, shape).astype(np.float64)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    inputs = [(2, 3), DEPTH, np.array([0.5, 2.0])]
    attributes = {"axis": axis}
    check_rule("OneHot", inputs, attributes=attributes, domain={0: ids}, derivative=False)
    values = [np.array([[0.0, 2.0, -1.0]]), DEPTH, (2,)]
    check_rule("OneHot", values, varying=[2], attributes=attributes)
    both = [(2, 3), DEPTH, (2,)]
    check_rule("OneHot", both, varying=[0, 2], attributes=attributes, domain={0: ids}, derivative=False)


def test_where_the_largest_element_is_stays_unattributed() -> None:
    assert [rule.exact for name in ("ArgMax", "ArgMin") for rule in BUILT_IN.rules[name]] == [False, False]
