"""MaxPool."""

import numpy as np

from deepshap_ir.testing import check_rule


def test_overlapping_windows_add() -> None:
    """Both windows of an element that wins twice count."""
    checked = check_rule(
        "MaxPool",
        [(1, 1, 4)],
        attributes={"kernel_shape": [2], "strides": [1]},
        domain=lambda rng, shape: rng.normal(size=shape),
    )
    assert checked.gap < 1e-12
    assert np.isfinite(checked.multipliers[0]).all()
