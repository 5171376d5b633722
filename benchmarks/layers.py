"""Every module of ``torch.nn``: does it export, have its operators rules, and do the attributions sum to delta?

``python -m benchmarks.layers`` explains each with small random data and prints a table; ``--write FILE`` puts it
between the markers of a page.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepshap_ir import DeepExplainer
from deepshap_ir.errors import DeepShapError

MARKS = ("<!-- pytorch modules -->", "<!-- /pytorch modules -->")
REFERENCES, SAMPLES = 5, 3
TOLERANCE = 1e-5

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


@dataclass(frozen=True)
class Outcome:
    """What became of one module.

    Attributes
    ----------
    exports : whether it became ONNX; None where it was not tried.
    rules : names of the rules that explain it, none where an operator has none.
    error : largest gap of the sum, relative to the largest change of the output.
    reason : why it is not explained.
    """

    name: str
    exports: bool | None = None
    rules: tuple[str, ...] = ()
    error: float = float("nan")
    reason: str = ""

    @property
    def fine(self) -> bool:
        """Whether the attributions sum to delta."""
        return self.error <= TOLERANCE


def names() -> list[str]:
    """All modules of ``torch.nn``."""
    found = (name for name in dir(nn) if isinstance(getattr(nn, name), type))
    return sorted((name for name in found if issubclass(getattr(nn, name), nn.Module)), key=str.lower)


def check(name: str) -> Outcome:
    """Explain one module."""
    if name in LEFT_OUT:
        return Outcome(name, reason=LEFT_OUT[name])
    if name not in CASES:
        return Outcome(name, reason="nothing is known of it here")
    torch.manual_seed(0)
    make, shape = CASES[name]
    exports = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = _rows(name, shape)
            module = make().eval()
            module(rows)  # gives lazy modules their shapes
            explainer = DeepExplainer(module, rows[SAMPLES:], output=0)
            exports = True
            phi = np.asarray(explainer.shap_values(rows[:SAMPLES], check_additivity=False))
            with torch.no_grad():
                found = module(rows)
            y = np.asarray((found if isinstance(found, Tensor) else found[0]).double()).reshape(len(rows), -1)
    except DeepShapError as error:
        exports = exports or type(error).__name__ in ("UnsupportedOperatorError", "RuleError")
        return Outcome(name, exports, reason=_short(f"{type(error).__name__}: {error}"))
    except Exception as error:  # torch's own code may fail on the data
        return Outcome(name, exports, reason=_short(f"{type(error).__name__}: {error}"))
    delta = y[:SAMPLES] - y[SAMPLES:].mean(0)
    total = phi.reshape(SAMPLES, int(np.prod(shape)), -1).sum(1)
    gap = float(np.abs(total - delta).max() / max(np.abs(delta).max(), 1e-12))
    rules = tuple(dict.fromkeys(row.rule for row in explainer.rules()))
    return Outcome(name, True, rules, gap)


def _rows(name: str, shape: Sequence[int]) -> Tensor:
    count = REFERENCES + SAMPLES
    if name.startswith("Embedding"):
        return torch.randint(0, 9, (count, *shape))
    return torch.randn(count, *shape)


def _short(reason: str) -> str:
    line = " ".join(reason.split()).replace("|", "/")
    return line if len(line) <= 160 else f"{line[:157]}..."


def score(outcomes: Sequence[Outcome]) -> str:
    """The score in a sentence."""
    tried = [one for one in outcomes if one.exports is not None]
    return (
        f"{sum(one.fine for one in outcomes)} of {len(tried)} modules are explained with a relative additivity error "
        f"of at most {TOLERANCE:.0e}; {sum(bool(one.exports) for one in tried)} export."
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """The page's table."""
    lines = ["| module | exports | rules | additivity error, or the reason |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(line, outcomes)])


def line(one: Outcome) -> str:
    """The module's line in the table."""
    exports = {None: "", True: "yes", False: "no"}[one.exports]
    said = one.reason or f"{one.error:.1e}"
    return f"| {one.name} | {exports} | {', '.join(one.rules)} | {said} |"


def main() -> int:
    """Explain the modules, print, and write the page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="modules whose name has this in it")
    parser.add_argument("--write", type=Path, help="page with the two marker lines")
    given = parser.parse_args()
    outcomes = []
    for name in names():
        if given.only in name:
            outcomes.append(check(name))
            print(line(outcomes[-1]), flush=True)
    print(score(outcomes))
    if given.write:
        page = given.write.read_text()
        text = "\n".join([MARKS[0], score(outcomes), "", table(outcomes), MARKS[1]])
        given.write.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: text, page, flags=re.DOTALL))
    return 0


if __name__ == "__main__":
    sys.exit(main())
