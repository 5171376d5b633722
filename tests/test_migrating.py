"""The numbers of ``converters/migrating-from-shap.md``: measured here, and compared with the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shap
import torch
from torch import Tensor, nn

from deepshap_ir import DeepExplainer
from deepshap_ir.testing import exact_shapley
from tests.onnx_text import Array, data
from tests.test_peers import WRONG

PAGE = Path(__file__).parent.parent / "converters" / "migrating-from-shap.md"


class Last(nn.Module):
    """The last state of an LSTM, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.lstm(x)[0][:, -1])
        return out


class Functional(nn.Module):
    """ReLU as a function, which shap does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **WRONG,
    "an LSTM": (Last, (7, 3)),
    "torch.relu, no module": (Functional, (6,)),
}


def section(mark: str) -> dict[str, list[float]]:
    """Numbers of a table between two marks, by the first cell of the line."""
    found = re.search(f"<!-- {mark} -->(.*)<!-- /{mark} -->", PAGE.read_text(), re.DOTALL)
    assert found is not None
    lines = [line.strip("| ").split(" | ") for line in found[1].splitlines() if line.startswith("| ")]
    return {cells[0]: [float(cell) for cell in cells[1:]] for cells in lines if re.match(r"-?[\d.]", cells[1])}


def misses(module: nn.Module, background: Array, samples: Array) -> tuple[float, float, float]:
    """Largest change of the output, and by how much shap's and our sums miss it."""
    xs, x0s = torch.from_numpy(samples), torch.from_numpy(background)
    with torch.no_grad():
        delta = (module(xs).double() - module(x0s).double().mean(0)).numpy()
    axes = tuple(range(1, samples.ndim))
    ours = DeepExplainer(module, background).shap_values(samples).sum(axes)
    theirs = np.asarray(shap.DeepExplainer(module, x0s).shap_values(xs, check_additivity=False)).sum(axes)
    return float(np.abs(delta).max()), float(np.abs(theirs - delta).max()), float(np.abs(ours - delta).max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:unrecognized nn.Module")
def test_sums(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = make().eval()
    change, theirs, ours = misses(module, data(8, *shape), data(3, *shape, seed=1))
    print(f"| {name} | {change:.2f} | {theirs:.2f} | {ours:.0e} |")
    page = section("measured")[name]
    np.testing.assert_allclose([change, theirs], page[:2], atol=0.011)
    assert ours <= 1e-5 * change
    assert ours <= 10 * page[2]


def test_every_line_is_measured() -> None:
    assert set(section("measured")) == set(NETWORKS)


def test_softmax() -> None:
    """Ten logits as the inputs of a softmax, against exact Shapley values."""
    rng = np.random.default_rng(0)
    measured = {}
    for spread in (2, 5):
        x, x0 = (rng.normal(size=(6, 10)).astype(np.float32) * spread for _ in range(2))
        module = nn.Sequential(nn.Identity(), nn.Softmax(-1)).eval()

        def function(rows: Array) -> Array:
            shifted = np.exp(rows - rows.max(1, keepdims=True))
            return np.asarray(shifted / shifted.sum(1, keepdims=True))

        distances = []
        for a, b in zip(x, x0, strict=True):
            exact = exact_shapley(function, a.astype(np.float64), b.astype(np.float64))
            ours = DeepExplainer(module, b[None]).shap_values(a[None])[0]
            explainer = shap.DeepExplainer(module, torch.from_numpy(b[None]))
            theirs = np.asarray(explainer.shap_values(torch.from_numpy(a[None]), check_additivity=False))[0]
            distances.append([np.abs(phi - exact).mean() / np.abs(exact).mean() for phi in (theirs, ours)])
        measured[f"spread {spread}"] = np.mean(distances, 0)
        print(f"| spread {spread} | {measured[f'spread {spread}'][0]:.2f} | {measured[f'spread {spread}'][1]:.2f} |")
    page = section("softmax")
    assert set(page) == set(measured)
    for name, found in measured.items():
        np.testing.assert_allclose(found, page[name], atol=0.011)
        assert found[1] < found[0]
