"""Softmax, LogSoftmax and LogSumExp."""

import pytest

from deepshap_ir.testing import check_rule


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_laws(operator: str, axis: int) -> None:
    """The laws of a rule, along any axis."""
    check_rule(operator, [(2, 3, 4)], attributes={"axis": axis})
