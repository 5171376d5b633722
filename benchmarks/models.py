"""The networks that are measured, and that the tests use too: a torch module and the same function as an ONNX file.

Every activation is a module of its own, used once: shap and Captum see no ``torch.relu`` and no second use of a module.
"""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

OPSET = 18

Rows = NDArray[np.float32]


class Network(NamedTuple):
    """One function twice, and data for it.

    Attributes
    ----------
    module : in evaluation mode, from ``[N, *features]`` to ``[N, K]``.
    onnx : the bytes of the exported file; input ``x``, output ``y``, any batch size.
    background, samples : ``[B, *features]`` and ``[N, *features]``, float32.
    """

    module: nn.Module
    onnx: bytes
    background: Rows
    samples: Rows


def mlp(samples: int = 200, references: int = 100) -> Network:
    """Twenty features, two hidden layers of 128 units, one output."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(20, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 1),
    )
    return _network(module, (20,), samples, references)


def cnn(samples: int = 4, references: int = 100) -> Network:
    """Pictures ``[1, 28, 28]``, two convolutions, a max pooling without overlap, two dense layers, ten outputs."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 12 * 12, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    return _network(module, (1, 28, 28), samples, references)


def resnet18(samples: int = 2, references: int = 10, size: int = 224) -> Network:
    """ResNet-18 with random weights and one output, on pictures ``[3, size, size]``."""
    torch.manual_seed(0)
    module = ResNet18()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            # As after training: statistics other than 0 and 1, so that folding them into the convolutions is seen.
            nn.init.normal_(_buffer(layer.running_mean), std=0.1)
            nn.init.uniform_(_buffer(layer.running_var), 0.8, 1.2)
    return _network(module, (3, size, size), samples, references)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, "Deep Residual Learning for Image Recognition")."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            if stride != 1 or channels_in != channels
            else nn.Identity()
        )
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels_in, H, W]`` to ``[N, channels, H / stride, W / stride]``."""
        joined: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return joined


class ResNet18(nn.Sequential):
    """Eighteen layers: a stem with an overlapping max pooling, eight residual blocks, global average, one output."""

    def __init__(self) -> None:
        widths = (64, 64, 128, 128, 256, 256, 512, 512)
        strides = (1, 1, 2, 1, 2, 1, 2, 1)
        super().__init__(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
            *(
                BasicBlock(before, width, stride)
                for before, width, stride in zip((64, *widths), widths, strides, strict=False)
            ),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(512, 1),
        )


def export(module: nn.Module, example: Rows) -> bytes:
    """Export `module` at any batch size: input ``x``, output ``y``.

    Parameters
    ----------
    example : two rows or more; the exporter takes a batch of one for a constant.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (torch.from_numpy(example),),
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if program is None:
        raise RuntimeError("torch.onnx.export(dynamo=True) returned no program")
    file: bytes = program.model_proto.SerializeToString()
    return file


def _network(module: nn.Module, features: tuple[int, ...], samples: int, references: int) -> Network:
    """Draw the data and export."""
    module.eval()
    random = np.random.default_rng(0)
    background = random.standard_normal((references, *features), dtype=np.float32)
    rows = random.standard_normal((samples, *features), dtype=np.float32)
    return Network(module, export(module, background[:2]), background, rows)


def _buffer(values: Tensor | None) -> Tensor:
    """Return a statistic that a BatchNorm in evaluation mode always has."""
    if values is None:
        raise ValueError("a BatchNorm without running statistics has no evaluation mode")
    return values
