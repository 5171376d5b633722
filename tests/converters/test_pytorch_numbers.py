"""PyTorch: shap's numbers where shap is right, and sums that are right where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import shap
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepshap_ir import DeepExplainer
from deepshap_ir.converters.torch_functions import spelled_out
from tests.converters.modules import B, N, Net, delta, dense, mlp, rows, total


def test_shaps_numbers_on_networks_that_shap_explains_rightly() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(27, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).eval()
    background, samples = rows(1, 8, 8), rows(1, 8, 8, n=N, seed=1)
    theirs = shap.DeepExplainer(module, background)
    explainer = DeepExplainer(module, background)
    expected = theirs.shap_values(samples)
    np.testing.assert_allclose(explainer.shap_values(samples), expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(explainer.expected_value), theirs.expected_value, atol=1e-6)
    values, ranks = explainer.shap_values(samples, ranked_outputs=2)
    np.testing.assert_allclose(values, np.take_along_axis(expected, ranks[:, None, None, None, :], -1), atol=1e-5)


def test_shaps_numbers_at_a_layer() -> None:
    module, background, samples = mlp(), rows(6), rows(6, n=N, seed=1)
    theirs = shap.DeepExplainer((module, module[2]), background).shap_values(samples)
    phi = DeepExplainer((module, module[2]), background).shap_values(samples)
    np.testing.assert_allclose(phi, theirs, atol=1e-6)


def lse(net: Net, x: Tensor) -> Tensor:
    return torch.log(torch.exp(net.a(x)) + torch.exp(net.b(x))).sum(1)


def gate(net: Net, x: Tensor) -> Any:
    return net.c(torch.sigmoid(net.a(x)) * torch.tanh(net.b(x)))


HARD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "functional relu": (lambda: Net(lambda net, x: net.b(torch.relu(net.a(x))), a=dense(), b=dense()), (6,)),
    "reused module": (lambda: nn.Sequential(dense(), relu := nn.ReLU(), dense(), relu, dense()), (6,)),
    "in-place module": (lambda: nn.Sequential(dense(), nn.ReLU(inplace=True), dense()), (6,)),
    "overlapping pooling": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(18, 2)),
        (1, 9, 9),
    ),
    "adaptive max pooling": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(18, 2)),
        (1, 9, 9),
    ),
    "gelu": (lambda: nn.Sequential(dense(), nn.GELU(), dense()), (6,)),
    "silu": (lambda: nn.Sequential(dense(), nn.SiLU(), dense()), (6,)),
    "prelu": (lambda: nn.Sequential(dense(), nn.PReLU(), dense()), (6,)),
    "layer norm": (lambda: nn.Sequential(dense(), nn.LayerNorm(6), nn.ReLU(), dense()), (6,)),
    "softmax inside": (lambda: nn.Sequential(dense(), nn.Softmax(-1), dense()), (6,)),
    "gate": (lambda: Net(gate, a=dense(), b=dense(), c=dense()), (6,)),
    "lstm": (
        lambda: Net(lambda net, x: net.b(net.a(x)[0][:, -1]), a=nn.LSTM(3, 6, batch_first=True), b=dense()),
        (4, 3),
    ),
    "log of exp + exp": (lambda: Net(lse, a=dense(), b=dense()), (6,)),
    "encoder": (
        lambda: Net(
            lambda net, x: net.b(net.a(x).mean(1)),
            a=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
            b=dense(),
        ),
        (4, 6),
    ),
}
"""What shap gets wrong, silently or not."""


@pytest.mark.parametrize("name", HARD)
def test_attributions_add_up_where_shaps_do_not(name: str) -> None:
    make, shape = HARD[name]
    torch.manual_seed(0)
    module = make()
    background, samples = rows(*shape), rows(*shape, n=N, seed=1)
    phi = DeepExplainer(module, background).shap_values(samples)
    expected = delta(module, samples, background)
    assert np.abs(total(phi) - expected).max() <= 1e-5 * np.abs(expected).max()


def attention_where(mask: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Attention in which rows and columns are open where the data say so: some rows are masked as a whole."""

    def forward(net: Any, x: Any) -> Any:
        open_ = x[..., 0] > 0
        both = open_[:, :, None] & open_[:, None, :]
        return functional.scaled_dot_product_attention(net.a(x), x, x, attn_mask=mask(both))

    return forward


CLASSES = torch.arange(B) % 3
MASK = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])

FUNCTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "adaptive max, 1 axis": (nn.AdaptiveMaxPool1d(4), (2, 9)),
    "adaptive max, whole windows": (nn.AdaptiveMaxPool1d(4), (2, 8)),
    "adaptive max, 3 axes, one kept": (nn.AdaptiveMaxPool3d((2, None, 1)), (1, 3, 2, 3)),
    "adaptive mean, 3 axes": (nn.AdaptiveAvgPool3d(2), (1, 3, 2, 3)),
    "rrelu": (nn.RReLU(), (5,)),
    "distances": (Net(lambda net, x: torch.cdist(x, x[:, :2] + 1)), (3, 2)),
    "projected LSTM, two layers": (nn.LSTM(2, 4, 2, batch_first=True, bidirectional=True, proj_size=3), (3, 2)),
    "projected LSTM": (
        Net(lambda net, x: torch.cat(net.layer(x)[1], -1)[0], layer=nn.LSTM(2, 3, batch_first=True, proj_size=2)),
        (2, 2),
    ),
    "LSTM": (nn.LSTM(2, 4, bias=False), (3, 2)),
    "cross entropy of probabilities": (
        Net(
            lambda net, x: net.a(x, x.flip(-1).softmax(1)),
            a=nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]), reduction="none", label_smoothing=0.1),
        ),
        (3, 4),
    ),
    "cross entropy of a mean": (Net(lambda net, x: functional.cross_entropy(x, x.softmax(1)).reshape(1)), (3,)),
    "cross entropy of classes": (Net(lambda net, x: functional.cross_entropy(x, CLASSES, reduction="none")), (3,)),
    "gaussian likelihood": (
        Net(
            lambda net, x: net.a(x[..., 0], x[..., 1], x[..., 2] ** 2 + 0.1),
            a=nn.GaussianNLLLoss(full=True, reduction="none"),
        ),
        (2, 3),
    ),
    "attention, masked by rows": (Net(attention_where(lambda open: open), a=nn.Linear(4, 4)), (3, 4)),
    "attention, masked by numbers": (
        Net(attention_where(lambda open: torch.zeros(open.shape).masked_fill(~open, -math.inf)), a=nn.Linear(4, 4)),
        (3, 4),
    ),
    "attention, few keys": (
        Net(lambda net, x: functional.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], MASK, enable_gqa=True)),
        (4, 3, 4),
    ),
    "attention, no mask": (
        Net(lambda net, x: functional.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.1)),
        (2, 3, 4),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_the_exporter_lacks_are_spelled_out_as_torch_computes_them(name: str) -> None:
    module, shape = FUNCTIONS[name]
    x = rows(*shape)
    expected = module.eval()(x)
    with spelled_out():
        torch.testing.assert_close(module(x), expected)
    if name in ("adaptive max, 3 axes, one kept", "rrelu", "distances", "projected LSTM", "gaussian likelihood") or any(
        word in name for word in ("attention", "probabilities")
    ):
        phi = DeepExplainer(nn.Sequential(module, nn.Flatten()), x).shap_values(x[:2])
        np.testing.assert_allclose(total(phi), delta(module, x[:2], x), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    background, samples = rows(6).to(dtype), rows(6, n=N, seed=1).to(dtype)
    phi = DeepExplainer(module, background).shap_values(samples)
    expected = delta(module, samples, background)
    allowed = {torch.float64: 1e-12, torch.float16: 3e-3, torch.bfloat16: 3e-2}[dtype]
    assert np.abs(total(phi) - expected).max() <= allowed * np.abs(expected).max()
