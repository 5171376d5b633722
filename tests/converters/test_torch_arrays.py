"""Functions over arrays that torch's exporter lacks: spelled out they are the same, and explained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepshap_ir import DeepExplainer, ModelError
from deepshap_ir.converters.torch_functions import spelled_out
from tests.converters.modules import N, Net, delta, rows, total

SPD = torch.eye(4) + 0.3 * torch.ones(4, 4)
EDGES = torch.tensor([-1.0, -0.2, 0.3, 1.0])


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0] = 0
    y[..., 0][y[..., 1] > 0.5] = torch.tensor(2.0)
    y[y.sum(-1) > 3] = -1.5
    y[:, 1:2] = x[:, :1]
    return y


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "steps": lambda x: torch.arange(1, 5.0) * x + torch.arange(end=4) + torch.arange(0, 2.0, dtype=torch.int64).sum(),
    "running products": lambda x: torch.cumprod(x, -1) + x.cumprod(dim=1),
    "running maximum": lambda x: torch.cummax(x, 1).values + x.cummax(-1)[1],
    "running minimum": lambda x: torch.cummin(input=x.round(), dim=1)[0] + x.round().cummin(-1).indices,
    "order statistics": lambda x: x.kthvalue(2, -1, keepdim=True).values + x.kthvalue(3)[1].unsqueeze(-1),
    "median": lambda x: torch.median(x, dim=1).values + x.median(-1, True)[0].sum() + x.median(),
    "bins": lambda x: torch.searchsorted(EDGES, x) + torch.searchsorted(EDGES.repeat(6, 1), x, side="right"),
    "lengths": lambda x: torch.hypot(x, x[:, :1]) + torch.special.gammaln(x.abs() + 0.01) + x.exp().lgamma(),
    "equations": lambda x: torch.linalg.solve(SPD, x.T).T + torch.linalg.solve(SPD, x[0]),
    "equations from the right": lambda x: torch.linalg.solve(SPD, x, left=False),
    "triangular equations": lambda x: (
        torch.linalg.solve_triangular(SPD, x.T, upper=False).T
        + torch.linalg.solve_triangular(2 * SPD, x, upper=True, left=False, unitriangular=True)
    ),
    "numbers where a mask is true": assigned,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_spelled_out_they_compute_what_torch_does(name: str) -> None:
    x = rows(4)
    expected = FUNCTIONS[name](x)
    with spelled_out():
        torch.testing.assert_close(FUNCTIONS[name](x), expected, atol=1e-5, rtol=1e-5)


def test_they_are_explained() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.a(x)
        found = [x.sigmoid().cumprod(1), x.cummax(1).values, x.cummin(1).values, x.median(1).values.unsqueeze(1)]
        found += [x.hypot(x[:, :1]), torch.arange(1, 5.0) * x, x.exp().lgamma(), torch.searchsorted(EDGES, x)]
        return torch.cat([*found, assigned(x)], 1)

    module = Net(forward, a=nn.Linear(4, 4))
    background, samples = rows(4), rows(4, n=N, seed=1)
    phi = DeepExplainer(module, background).shap_values(samples)
    np.testing.assert_allclose(total(phi), delta(module, samples, background), atol=1e-5, rtol=1e-5)


def test_masks_and_distributions_that_torch_checks_by_their_values() -> None:
    """A causal mask is looked for in the mask's values, and a distribution looks at its parameters' signs."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    causal = nn.Transformer.generate_square_subsequent_mask(3)

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.encoder(x, mask=causal)[:, -1]
        density: Tensor = torch.distributions.Normal(y, functional.softplus(y)).log_prob(x[:, 0])
        return density

    module = Net(forward, encoder=nn.TransformerEncoder(layer, 1))
    background, samples = rows(3, 4), rows(3, 4, n=N, seed=1)
    phi = DeepExplainer(module, background).shap_values(samples)
    np.testing.assert_allclose(total(phi), delta(module, samples, background), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="constraint Real"):
        torch.distributions.Normal(torch.tensor(torch.nan), 1.0)


def test_packed_sequences_are_refused_with_what_to_do() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), 3), batch_first=True)
        last: Tensor = net.layer(packed)[1][-1]
        return last

    module = Net(forward, layer=nn.GRU(2, 4, batch_first=True))
    with pytest.raises(ModelError, match=r"pack_padded_sequence mixes the rows.*outputs\[torch.arange"):
        DeepExplainer(module, rows(3, 2))
