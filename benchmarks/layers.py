"""Every module of ``torch.nn``: does it export, have its operators rules, and do the attributions sum to delta?

``python -m benchmarks.layers`` explains each with small random data and prints a table; ``--write FILE`` puts it
between the markers of a page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.layer_table import REFERENCES, SAMPLES, LayerTable
from benchmarks.pages import marks

Make = Callable[[], nn.Module]


class Second(nn.Module):
    """A module whose later arguments are computed from the one input."""

    def __init__(self, module: nn.Module, *others: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.others = module, others

    def forward(self, x: Tensor) -> Any:
        """Call the module on the input and on what the functions make of it."""
        return self.module(x, *(other(x) for other in self.others))


def _of(module: str, *arguments: Any, **keywords: Any) -> Make:
    return lambda: getattr(nn, module)(*arguments, **keywords)


def _loss(module: str, target: Callable[[Tensor], Tensor], *more: Callable[[Tensor], Tensor], **keywords: Any) -> Make:
    return lambda: Second(getattr(nn, module)(reduction="none", **keywords), target, *more)


VECTOR, MAP1, MAP2, MAP3, SEQUENCE = (6,), (4, 8), (4, 6, 6), (2, 4, 4, 4), (5, 6)
_AXES = {"1d": MAP1, "2d": MAP2, "3d": MAP3}

ACTIVATIONS = (
    *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish"),
    *("PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh"),
    *("Tanhshrink", "Identity", "Dropout", "AlphaDropout", "FeatureAlphaDropout"),
)
CASES: dict[str, tuple[Make, tuple[int, ...]]] = {
    **{name: (_of(name), VECTOR) for name in ACTIVATIONS},
    "Threshold": (_of("Threshold", 0.1, 0.5), VECTOR),
    "GLU": (_of("GLU"), VECTOR),
    **{name: (_of(name, -1), VECTOR) for name in ("Softmax", "Softmin", "LogSoftmax")},
    "Softmax2d": (_of("Softmax2d"), MAP2),
    "Linear": (_of("Linear", 6, 4), VECTOR),
    "LazyLinear": (_of("LazyLinear", 4), VECTOR),
    "Bilinear": (lambda: Second(nn.Bilinear(6, 6, 3), lambda x: x.flip(-1)), VECTOR),
    "Flatten": (_of("Flatten"), MAP2),
    "Unflatten": (_of("Unflatten", 1, (2, 3)), VECTOR),
    **{f"Conv{d}": (_of(f"Conv{d}", s[0], 2, 3, padding=1, stride=2), s) for d, s in _AXES.items()},
    **{f"ConvTranspose{d}": (_of(f"ConvTranspose{d}", s[0], 2, 3, stride=2), s) for d, s in _AXES.items()},
    **{f"LazyConv{d}": (_of(f"LazyConv{d}", 2, 3), s) for d, s in _AXES.items()},
    **{f"LazyConvTranspose{d}": (_of(f"LazyConvTranspose{d}", 2, 3), s) for d, s in _AXES.items()},
    **{f"{kind}Pool{d}": (_of(f"{kind}Pool{d}", 3, 2, 1), s) for d, s in _AXES.items() for kind in ("Max", "Avg")},
    **{f"LPPool{d}": (_of(f"LPPool{d}", 2, 2), s) for d, s in _AXES.items()},
    **{f"Adaptive{k}Pool{d}": (_of(f"Adaptive{k}Pool{d}", 3), s) for d, s in _AXES.items() for k in ("Max", "Avg")},
    **{f"MaxUnpool{d}": (lambda d=d: Unpooled(d), s) for d, s in _AXES.items()},  # type: ignore[misc]
    **{f"Dropout{d}": (_of(f"Dropout{d}"), s) for d, s in _AXES.items()},
    **{f"BatchNorm{d}": (_of(f"BatchNorm{d}", s[0]), s) for d, s in _AXES.items()},
    **{f"LazyBatchNorm{d}": (_of(f"LazyBatchNorm{d}"), s) for d, s in _AXES.items()},
    **{f"InstanceNorm{d}": (_of(f"InstanceNorm{d}", s[0], affine=True), s) for d, s in _AXES.items()},
    **{f"LazyInstanceNorm{d}": (_of(f"LazyInstanceNorm{d}"), s) for d, s in _AXES.items()},
    "SyncBatchNorm": (_of("SyncBatchNorm", 4), MAP2),
    "LayerNorm": (_of("LayerNorm", 6), SEQUENCE),
    "RMSNorm": (_of("RMSNorm", 6), SEQUENCE),
    "GroupNorm": (_of("GroupNorm", 2, 4), MAP2),
    "LocalResponseNorm": (_of("LocalResponseNorm", 2), MAP2),
    "CrossMapLRN2d": (_of("CrossMapLRN2d", 2), MAP2),
    **{f"ConstantPad{d}": (_of(f"ConstantPad{d}", 1, 0.5), s) for d, s in _AXES.items()},
    **{
        f"{kind}Pad{d}": (_of(f"{kind}Pad{d}", 1), s)
        for d, s in _AXES.items()
        for kind in ("Circular", "Reflection", "Replication", "Zero")
    },
    "ChannelShuffle": (_of("ChannelShuffle", 2), MAP2),
    "PixelShuffle": (_of("PixelShuffle", 2), MAP2),
    "PixelUnshuffle": (_of("PixelUnshuffle", 2), MAP2),
    "Upsample": (_of("Upsample", scale_factor=2, mode="bilinear"), MAP2),
    "UpsamplingBilinear2d": (_of("UpsamplingBilinear2d", scale_factor=2), MAP2),
    "UpsamplingNearest2d": (_of("UpsamplingNearest2d", scale_factor=2), MAP2),
    "Fold": (_of("Fold", (3, 3), 2), (8, 4)),
    "Unfold": (_of("Unfold", 2), MAP2),
    **{name: (_of(name, 6, 4, batch_first=True), SEQUENCE) for name in ("RNN", "LSTM", "GRU")},
    **{f"{name}Cell": (_of(f"{name}Cell", 6, 4), VECTOR) for name in ("RNN", "LSTM", "GRU")},
    "MultiheadAttention": (
        lambda: Second(nn.MultiheadAttention(6, 2, batch_first=True), lambda x: x.flip(1), lambda x: x + 1),
        SEQUENCE,
    ),
    "TransformerEncoderLayer": (_of("TransformerEncoderLayer", 6, 2, 8, batch_first=True), SEQUENCE),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2, enable_nested_tensor=False
        ),
        SEQUENCE,
    ),
    "TransformerDecoderLayer": (
        lambda: Second(nn.TransformerDecoderLayer(6, 2, 8, batch_first=True), lambda x: x.flip(1)),
        SEQUENCE,
    ),
    "TransformerDecoder": (
        lambda: Second(
            nn.TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 8, batch_first=True), 1), lambda x: x.flip(1)
        ),
        SEQUENCE,
    ),
    "Transformer": (
        lambda: Second(nn.Transformer(6, 2, 1, 1, 8, batch_first=True), lambda x: x.flip(1)),
        SEQUENCE,
    ),
    "Embedding": (_of("Embedding", 9, 3), (4,)),
    "EmbeddingBag": (_of("EmbeddingBag", 9, 3), (4,)),
    "CosineSimilarity": (lambda: Second(nn.CosineSimilarity(-1), lambda x: x.flip(1)), SEQUENCE),
    "PairwiseDistance": (lambda: Second(nn.PairwiseDistance(), lambda x: 2 * x.flip(-1)), VECTOR),
    "Sequential": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU()), VECTOR),
    "DataParallel": (lambda: nn.DataParallel(nn.Linear(6, 4)), VECTOR),
    **{name: (_loss(name, lambda x: x.flip(1)), VECTOR) for name in ("L1Loss", "MSELoss", "SmoothL1Loss", "HuberLoss")},
    "BCELoss": (lambda: nn.Sequential(nn.Sigmoid(), Second(nn.BCELoss(reduction="none"), lambda p: p.flip(1))), VECTOR),
    "BCEWithLogitsLoss": (_loss("BCEWithLogitsLoss", lambda x: x.flip(1).sigmoid()), VECTOR),
    "KLDivLoss": (_loss("KLDivLoss", lambda x: x.flip(1).softmax(1)), VECTOR),
    "PoissonNLLLoss": (_loss("PoissonNLLLoss", lambda x: x.flip(1)), VECTOR),
    "GaussianNLLLoss": (_loss("GaussianNLLLoss", lambda x: x.flip(1), lambda x: x.abs() + 1), VECTOR),
    "CrossEntropyLoss": (_loss("CrossEntropyLoss", lambda x: x.flip(1).softmax(1)), VECTOR),
    "NLLLoss": (_loss("NLLLoss", lambda x: torch.zeros_like(x[:, 0]).long()), VECTOR),
    "NLLLoss2d": (_loss("NLLLoss2d", lambda x: torch.zeros_like(x[:, 0]).long()), MAP2),
    "HingeEmbeddingLoss": (_loss("HingeEmbeddingLoss", torch.ones_like), VECTOR),
    "SoftMarginLoss": (_loss("SoftMarginLoss", torch.ones_like), VECTOR),
    "MarginRankingLoss": (_loss("MarginRankingLoss", lambda x: x.flip(1), torch.ones_like), VECTOR),
    "CosineEmbeddingLoss": (
        _loss("CosineEmbeddingLoss", lambda x: x.flip(1), lambda x: torch.ones_like(x[:, 0])),
        VECTOR,
    ),
    "TripletMarginLoss": (_loss("TripletMarginLoss", lambda x: x.flip(1), lambda x: 2 * x), VECTOR),
    "TripletMarginWithDistanceLoss": (
        _loss("TripletMarginWithDistanceLoss", lambda x: x.flip(1), lambda x: 2 * x),
        VECTOR,
    ),
    "MultiLabelSoftMarginLoss": (_loss("MultiLabelSoftMarginLoss", lambda x: (x > 0).to(x.dtype)), VECTOR),
    "MultiLabelMarginLoss": (_loss("MultiLabelMarginLoss", lambda x: torch.zeros_like(x).long()), VECTOR),
    "MultiMarginLoss": (_loss("MultiMarginLoss", lambda x: torch.zeros_like(x[:, 0]).long()), VECTOR),
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: Second(nn.AdaptiveLogSoftmaxWithLoss(6, 8, [4]), lambda x: torch.zeros_like(x[:, 0]).long()),
        VECTOR,
    ),
    "CTCLoss": (lambda: Aligned(), SEQUENCE),
}
LEFT_OUT = {
    "Container": "has no forward",
    "FractionalMaxPool2d": "random, at inference too",
    "FractionalMaxPool3d": "random, at inference too",
    "Module": "has no forward",
    "ModuleDict": "has no forward",
    "ModuleList": "has no forward",
    "ParameterDict": "has no forward",
    "ParameterList": "has no forward",
    "RNNBase": "is a base class",
    "RNNCellBase": "is a base class",
    "LinearCrossEntropyLoss": "a linear layer and CrossEntropyLoss in one, of a whole batch",
}


class Unpooled(nn.Module):
    """Max pooling, and back to the places of the maxima."""

    def __init__(self, axes: str) -> None:
        super().__init__()
        self.pool = getattr(nn, f"MaxPool{axes}")(2, return_indices=True)
        self.back = getattr(nn, f"MaxUnpool{axes}")(2)

    def forward(self, x: Tensor) -> Any:
        """Return the maxima at their places, and 0 elsewhere."""
        return self.back(*self.pool(x))


class Aligned(nn.Module):
    """CTCLoss of two labels over a sequence, which it takes with the time first."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.CTCLoss(reduction="none")

    def forward(self, x: Tensor) -> Any:
        """Return the loss of each sequence."""
        n, time = x.shape[:2]
        labels = torch.ones(n, 2, dtype=torch.long) + torch.arange(2)
        return self.loss(x.transpose(0, 1).log_softmax(-1), labels, torch.full((n,), time), torch.full((n,), 2))


def names() -> list[str]:
    """All modules of ``torch.nn``."""
    found = (name for name in dir(nn) if isinstance(getattr(nn, name), type))
    return sorted((name for name in found if issubclass(getattr(nn, name), nn.Module)), key=str.lower)


def _build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    count = REFERENCES + SAMPLES
    whole = name.startswith("Embedding")
    rows = torch.randint(0, 9, (count, *shape)) if whole else torch.randn(count, *shape)
    module = make().eval()
    module(rows)  # gives lazy modules their shapes
    return module, rows


def _outputs(module: nn.Module, rows: Tensor) -> Any:
    with torch.no_grad():
        found = module(rows)
    return np.asarray(found if isinstance(found, Tensor) else found[0])


TABLE = LayerTable("module", names, CASES, LEFT_OUT, _build, _outputs, marks("pytorch modules"))

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
