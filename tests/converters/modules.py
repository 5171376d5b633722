"""Small torch modules, data for them, and what their attributions add up to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

B, N = 6, 4


class Net(nn.Module):
    """A function ``f(self, *inputs)`` with layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def rows(*shape: int, n: int = B, seed: int = 0) -> Tensor:
    return torch.randn((n, *shape), generator=torch.Generator().manual_seed(seed))


def delta(module: nn.Module, samples: Tensor, background: Tensor) -> NDArray[Any]:
    """f(x) - mean f(x0), ``[N, K]``."""
    training = {layer: layer.training for layer in module.modules()}
    module.eval()
    with torch.no_grad():
        difference = module(samples).double() - module(background).double().mean(0)
    for layer, flag in training.items():
        layer.training = flag
    return np.asarray(difference.reshape(len(samples), -1))


def total(phi: NDArray[Any]) -> NDArray[Any]:
    """Sums over the features, ``[N, K]``."""
    return np.asarray(phi.reshape(len(phi), -1, phi.shape[-1]).sum(1))


def dense() -> nn.Linear:
    return nn.Linear(6, 6)
