"""Against shap's DeepExplainer for PyTorch: the same numbers where shap is right, and where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import shap
import torch
from torch import Tensor, nn

from benchmarks.models import cnn, export, mlp
from deepshap_ir import DeepExplainer
from tests.onnx_text import Array, data


class Pair(NamedTuple):
    """One network in both forms, with data."""

    module: nn.Module
    onnx: bytes
    background: Array
    samples: Array

    def ours(self, **settings: Any) -> Any:
        return DeepExplainer(self.onnx, self.background, **settings)

    def theirs(self) -> Array:
        """Attributions of shap, ``[N, *features, K]``."""
        explainer = shap.DeepExplainer(self.module, torch.from_numpy(self.background))
        values = explainer.shap_values(torch.from_numpy(self.samples), check_additivity=False)
        return np.asarray(values, np.float64)

    def delta(self) -> Array:
        """``f(x) - mean f(x0)``, ``[N, K]``."""
        with torch.no_grad():
            outputs = self.module(torch.from_numpy(self.samples)).double()
            return np.asarray(outputs - self.module(torch.from_numpy(self.background)).double().mean(0))


def made(build: Callable[[], nn.Module], *features: int, samples: int = 3, references: int = 8) -> Pair:
    torch.manual_seed(0)
    module = build().eval()
    background, rows = data(references, *features), data(samples, *features, seed=1)
    return Pair(module, export(module, background[:2]), background, rows)


def tabular(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 3))


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 6, 3, padding=1),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 5, 3, dilation=2),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(10, 2),
    )


AGREE: dict[str, Callable[[], Pair]] = {
    "mlp": lambda: Pair(*mlp(5, 20)),
    "cnn": lambda: Pair(*cnn(1, 8)),
    "sequence": lambda: made(sequence, 4, 16),
    "tanh and sigmoid": lambda: made(lambda: nn.Sequential(tabular(nn.Tanh)(), nn.Sigmoid()), 6),
    "leaky relu": lambda: made(tabular(lambda: nn.LeakyReLU(0.2)), 6),
}


@pytest.mark.parametrize("name", AGREE)
def test_numbers_are_those_of_shap(name: str) -> None:
    pair = AGREE[name]()
    values = pair.ours().shap_values(pair.samples)
    theirs = pair.theirs()
    assert values.shape == theirs.shape
    assert np.abs(values - theirs).max() < 1e-5 * max(1.0, float(np.abs(theirs).max()))


def test_ranked_outputs_are_those_of_shap() -> None:
    pair = made(tabular(nn.ReLU), 6)
    explainer = shap.DeepExplainer(pair.module, torch.from_numpy(pair.background))
    for order in ("max", "min", "max_abs"):
        theirs, their_indexes = explainer.shap_values(
            torch.from_numpy(pair.samples), ranked_outputs=2, output_rank_order=order, check_additivity=False
        )
        ours, indexes = pair.ours().shap_values(pair.samples, ranked_outputs=2, output_rank_order=order)
        np.testing.assert_array_equal(indexes, their_indexes)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(pair.ours().expected_value, explainer.expected_value, atol=1e-6)


class Reused(nn.Module):
    """One ReLU module at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.relu(self.second(self.relu(self.first(x)))))
        return out


class Gate(nn.Module):
    """``sigmoid(a) tanh(b)``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 2)
        self.sigmoid, self.tanh = nn.Sigmoid(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.sigmoid(self.a(x)) * self.tanh(self.b(x)))
        return out


def overlapping() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU(), nn.MaxPool1d(3, 1), nn.Flatten(), nn.Linear(48, 2))


WRONG: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "overlapping max pooling": (overlapping, (4, 12)),
    "a module used twice": (Reused, (6,)),
    "a gate": (Gate, (6,)),
    "SiLU": (tabular(nn.SiLU), (6,)),
    "LayerNorm": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)), (6,)),
}


@pytest.mark.parametrize("name", WRONG)
def test_sums_that_shap_misses(name: str) -> None:
    """shap's attributions do not add up to the change of the output; ours do."""
    build, features = WRONG[name]
    pair = made(build, *features)
    delta, axes = pair.delta(), tuple(range(1, 1 + len(features)))
    ours = pair.ours().shap_values(pair.samples).sum(axes)
    theirs = pair.theirs().sum(axes)
    scale = np.abs(delta).max()
    print(f"{name}: delta {scale:.2f}, shap misses it by {np.abs(theirs - delta).max():.2f}")
    assert np.abs(ours - delta).max() < 1e-5 * scale
    assert np.abs(theirs - delta).max() > 1e-2 * scale
