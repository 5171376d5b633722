"""What follows from parameters alone needs no operator of ONNX."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from deepshap_ir import DeepExplainer
from tests.converters.modules import N, delta, rows, total


class Flow(nn.Module):
    """An orthogonal layer, an inverse that is changed in place, and the density of a correlated normal distribution."""

    matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.turn = orthogonal(nn.Linear(4, 4))
        self.register_buffer("matrix", torch.randn(4, 4) + 3 * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.linalg.inv(self.matrix)
        scale[0] = 0.5
        scale += self.matrix[1]
        normal = torch.distributions.MultivariateNormal(self.matrix[0], self.matrix @ self.matrix.T)
        density = normal.log_prob(self.turn(x))
        solved = torch.linalg.solve(self.matrix, x.unsqueeze(-1)).squeeze(-1)
        return torch.cat([x @ scale, solved, density.unsqueeze(1), torch.linalg.slogdet(self.matrix)[1] * x[:, :1]], 1)


def test_what_parameters_alone_decide_is_computed_before_the_export() -> None:
    module, background, samples = Flow(), rows(4), rows(4, n=N, seed=1)
    names = [name for name, _ in module.named_buffers()]
    phi = DeepExplainer(module, background).shap_values(samples)
    np.testing.assert_allclose(total(phi), delta(module, samples, background), atol=1e-4, rtol=1e-4)
    assert [name for name, _ in module.named_buffers()] == names
