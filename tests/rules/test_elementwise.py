import pytest

from deepshap_ir.testing import check_rule


@pytest.mark.parametrize("operator", ["Relu", "Sigmoid", "Tanh"])
def test_laws(operator: str) -> None:
    check_rule(operator, [(1, 3, 4)], domain=(-4.0, 4.0))
