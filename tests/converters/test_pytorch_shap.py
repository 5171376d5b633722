"""PyTorch: what shap's own tests ask of DeepExplainer, and wrappers that need a process group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from deepshap_ir import DeepExplainer
from tests.converters.modules import N, delta, mlp, rows, total


def explained(module: nn.Module, background: Any, samples: Any, rtol: float = 1e-5) -> Any:
    """Attributions that add up to the change of the output, row by row as in a batch."""
    explainer = DeepExplainer(module, background)
    phi = explainer.shap_values(samples)
    alone = explainer.shap_values(samples[1:2])
    expected = delta(module, samples, background)
    np.testing.assert_allclose(total(phi), expected, atol=rtol * np.abs(expected).max())
    np.testing.assert_allclose(alone[0], phi[1], atol=1e-6)
    return phi


class Digits(nn.Module):
    """The network of the MNIST example: functional pooling and dropout, log-softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 4, 5)
        self.drop = nn.Dropout2d()
        self.fc1, self.fc2 = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.drop(self.conv2(x)), 2))
        x = functional.relu(self.fc1(x.view(-1, 64)))
        x = functional.dropout(x, training=self.training)
        return functional.log_softmax(self.fc2(x), dim=1)


@pytest.fixture(scope="module")
def digits() -> Digits:
    torch.manual_seed(0)
    return Digits()


def test_a_network_for_digits(digits: Digits) -> None:
    phi = explained(digits, rows(1, 28, 28), rows(1, 28, 28, n=2, seed=1))
    assert phi.shape == (2, 1, 28, 28, 10)


def test_a_network_for_digits_at_a_layer(digits: Digits) -> None:
    background, samples = rows(1, 28, 28), rows(1, 28, 28, n=2, seed=1)
    phi = DeepExplainer((digits, digits.conv2), background).shap_values(samples)
    assert phi.shape == (2, 3, 12, 12, 10)
    np.testing.assert_allclose(total(phi), delta(digits, samples, background), atol=1e-5)


class Nested(nn.Module):
    """Modules in modules, a Sequential and a list among them."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.LeakyReLU(), nn.Linear(6, 6)), nn.ELU())
        self.blocks = nn.ModuleList([block, nn.Sequential(nn.Linear(6, 6), nn.Softplus())])
        self.last = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


def test_nested_modules() -> None:
    torch.manual_seed(0)
    explained(Nested(), rows(6), rows(6, n=N, seed=1))


class Two(nn.Module):
    """Two inputs, of which the second may be of no account."""

    def __init__(self, connected: bool) -> None:
        super().__init__()
        self.connected = connected
        self.conv, self.last = nn.Conv1d(1, 2, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.conv(x)).flatten(1))
        return found + y.sum((1, 2))[:, None] if self.connected else found


@pytest.mark.parametrize("connected", [True, False])
def test_two_inputs_one_perhaps_disconnected(connected: bool) -> None:
    torch.manual_seed(0)
    module = Two(connected)
    background, samples = [rows(1, 8), rows(1, 8, seed=2)], [rows(1, 8, n=3, seed=1), rows(1, 8, n=3, seed=3)]
    phi = DeepExplainer(module, background).shap_values(samples)
    with torch.no_grad():
        expected = (module(*samples).double() - module(*background).double().mean(0)).numpy()
    np.testing.assert_allclose(total(phi[0]) + total(phi[1]), expected, atol=1e-5)
    assert (np.abs(phi[1]).max() > 0) == connected
    at_layer = DeepExplainer((module, module.conv), background).shap_values(samples)
    np.testing.assert_allclose(at_layer[0], phi[0], atol=1e-6)  # the layer's only input is x


@pytest.mark.parametrize(
    "name", ["ReLU", "ELU", "LeakyReLU", "Sigmoid", "Softplus", "Tanh", "SELU", "GELU", "Hardtanh"]
)
def test_activations(name: str) -> None:
    torch.manual_seed(0)
    explained(nn.Sequential(nn.Linear(6, 5), getattr(nn, name)(), nn.Linear(5, 1)), rows(6), 10 * rows(6, n=N, seed=1))


class Tokens(nn.Module):
    """An LSTM over embedded tokens, of which 0 is padding that has no vector."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 4, padding_idx=0)
        self.lstm, self.last = nn.LSTM(4, 6, batch_first=True, bidirectional=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(x))
        mask = (x != 0).to(states.dtype)[..., None]
        out: Tensor = self.last((states * mask).sum(1) / mask.sum(1).clamp(min=1))
        return out


def test_padded_sequences_of_tokens() -> None:
    torch.manual_seed(0)
    module, tokens = Tokens(), torch.randint(1, 12, (10, 7), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((7, 5, 3, 7, 2, 6, 7, 4, 7, 1)):
        tokens[row, length:] = 0
    phi = explained(module, tokens[:6], tokens[6:])
    assert phi.shape == (4, 7, 2)
    same = DeepExplainer(module, tokens[7:8]).shap_values(tokens[7:8])
    assert np.abs(same).max() == 0


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.skipif(not distributed.is_available(), reason="this torch is built without torch.distributed")
def test_modules_of_a_process_group() -> None:
    module, background, samples = mlp(), rows(6), rows(6, n=N, seed=1)
    expected = DeepExplainer(module, background).shap_values(samples)
    wrapped = nn.parallel.DistributedDataParallel(module)
    hooks, training = len(wrapped._forward_hooks), wrapped.training
    np.testing.assert_allclose(DeepExplainer(wrapped, background).shap_values(samples), expected, atol=1e-6)
    inside = nn.Sequential(module[:2], nn.parallel.DistributedDataParallel(module[2:]))
    np.testing.assert_allclose(DeepExplainer(inside, background).shap_values(samples), expected, atol=1e-6)
    layer = DeepExplainer((wrapped, module[2]), background).shap_values(samples)
    np.testing.assert_allclose(layer, DeepExplainer((module, "2"), background).shap_values(samples), atol=1e-6)
    assert (len(wrapped._forward_hooks), wrapped.training) == (hooks, training)
    compiled: Any = torch.compile(wrapped, backend="eager")
    np.testing.assert_allclose(DeepExplainer(compiled, background).shap_values(samples), expected, atol=1e-6)
