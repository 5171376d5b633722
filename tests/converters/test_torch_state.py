"""What is around a module while it is looked at: other threads, and a block of lower precision."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import nn

from deepshap_ir import DeepExplainer
from tests.converters.modules import N, delta, rows, total


def gap(module: nn.Module) -> float:
    phi = DeepExplainer(module, rows(6)).shap_values(rows(6, n=N, seed=1))
    return float(np.abs(total(phi) - delta(module, rows(6, n=N, seed=1), rows(6))).max())


def test_explainers_are_made_in_threads() -> None:
    before = sys.stdout, sys.stderr, logging.getLogger("torch.onnx").level
    modules = [nn.Sequential(nn.Linear(6, 4), layer, nn.Linear(4, 1)) for layer in (nn.Tanh(), nn.ReLU(), nn.ELU())]
    with ThreadPoolExecutor(3) as pool:
        assert max(pool.map(gap, modules)) < 1e-5
    assert (sys.stdout, sys.stderr, logging.getLogger("torch.onnx").level) == before


def test_a_block_of_lower_precision_is_not_the_modules() -> None:
    module = nn.Linear(6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explainer = DeepExplainer(module, rows(6))
        assert torch.is_autocast_enabled("cpu")
    phi = explainer.shap_values(rows(6, n=N, seed=1))
    np.testing.assert_allclose(total(phi), delta(module, rows(6, n=N, seed=1), rows(6)), atol=1e-6)
