"""Functions of torch that its exporter lacks, in terms of those that it has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from deepshap_ir.converters.torch_arrays import ARRAYS

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def spelled_out() -> Iterator[None]:
    """Replace these functions wherever they are called meanwhile, and leave out what only checks values."""
    from torch.distributions import Distribution
    from torch.nn.modules import transformer
    from torch.overrides import TorchFunctionMode

    class SpelledOut(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
            # a method has no module
            replaced = FUNCTIONS.get(name) or FUNCTIONS.get(f"torch{name}" if name.startswith(".") else "", function)
            return replaced(*args, **(kwargs or {}))

    def is_causal(mask: Any, known: bool | None = None, size: Any = None) -> bool:
        """A hint that changes no value: the mask is given as well."""
        return known is True

    detect, validate = transformer._detect_is_causal_mask, Distribution._validate_args
    transformer._detect_is_causal_mask = is_causal  # type: ignore[assignment]
    Distribution.set_default_validate_args(False)
    try:
        with SpelledOut():
            yield
    finally:
        transformer._detect_is_causal_mask = detect
        Distribution.set_default_validate_args(validate)


def adaptive_max_pool(x: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    """The largest of each window ``[floor(i n / m), ceil((i + 1) n / m))``: max pooling where m divides n."""
    import torch
    from torch.nn import functional

    assert not return_indices  # torch calls it by another name then
    sizes = _output_sizes(x, output_size)
    lengths = x.shape[x.ndim - len(sizes) :]
    if all(length % size == 0 for length, size in zip(lengths, sizes, strict=True)):
        pools = [functional.max_pool1d, functional.max_pool2d, functional.max_pool3d]
        pooled: Tensor = pools[len(sizes) - 1](x, [length // size for length, size in zip(lengths, sizes, strict=True)])
        return pooled
    parts = [x[window].flatten(-len(sizes)).amax(-1) for window in _windows(lengths, sizes)]
    return torch.stack(parts, -1).reshape(*x.shape[: x.ndim - len(sizes)], *sizes)


def adaptive_avg_pool(x: Tensor, output_size: Any) -> Tensor:
    """The mean of each window ``[floor(i n / m), ceil((i + 1) n / m))``."""
    import torch

    sizes = _output_sizes(x, output_size)
    lengths = x.shape[x.ndim - len(sizes) :]
    parts = [x[window].flatten(-len(sizes)).mean(-1) for window in _windows(lengths, sizes)]
    return torch.stack(parts, -1).reshape(*x.shape[: x.ndim - len(sizes)], *sizes)


def rrelu(
    x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False
) -> Tensor:
    """Outside training, a leaky ReLU with the mean slope."""
    from torch.nn import functional

    return functional.leaky_relu(x, (lower + upper) / 2, inplace)


def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: str = "") -> Tensor:
    """The p-norm of every difference of rows."""
    import torch

    distances: Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, dim=-1)
    return distances


def lstm(
    x: Any,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """An LSTM whose hidden state is projected (`proj_size`), step by step: ONNX knows no such layer.

    ``h' = (o tanh(c')) P``. Others, and packed sequences, go to the exporter as they are.
    """
    import torch

    states = arguments[0]
    if not isinstance(states, Sequence) or states[0].shape[-1] == states[1].shape[-1]:
        result: tuple[Tensor, Tensor, Tensor] = torch._VF.lstm(x, *arguments)
        return result
    weights, has_bias, layers, _, _, both, batch_first = arguments[1:]
    directions = 2 if both else 1
    per_cell = len(weights) // (layers * directions)
    steps = list(x.unbind(1 if batch_first else 0))
    last_h, last_c = [], []
    for k in range(layers):
        sides = []
        for d in range(directions):
            number = k * directions + d
            w, r, *biases, p = weights[number * per_cell : (number + 1) * per_cell]
            h, c, outputs = states[0][number], states[1][number], []
            for step in reversed(steps) if d else steps:
                gates = step @ w.t() + h @ r.t() + (sum(biases) if has_bias else 0)
                i, f, g, o = gates.chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = (o.sigmoid() * c.tanh()) @ p.t()
                outputs.append(h)
            sides.append(outputs[::-1] if d else outputs)
            last_h.append(h)
            last_c.append(c)
        steps = [torch.cat(pair, -1) for pair in zip(*sides, strict=True)]
    return torch.stack(steps, 1 if batch_first else 0), torch.stack(last_h), torch.stack(last_c)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(q k^T scale + mask) v``, 0 where all is masked: there the exporter's own has the mean of v."""
    import torch
    from torch.nn import functional

    if attn_mask is None or dropout_p:
        found: Tensor = functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
        return found
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
        none = attn_mask.any(-1, keepdim=True).logical_not()
    else:
        scores = scores + attn_mask
        none = (attn_mask == -math.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(none, 0.0) @ value


def gaussian_nll(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """``(ln v + (x - t)^2 / v) / 2`` with ``v = max(var, eps)``, without torch's look at the sign of var."""
    import torch

    variance = torch.as_tensor(var, dtype=input.dtype).clamp(min=eps)
    if variance.ndim == input.ndim - 1 and variance.ndim:
        variance = variance.unsqueeze(-1)
    loss = 0.5 * (variance.log() + (input - target) ** 2 / variance) + (0.5 * math.log(2 * math.pi) if full else 0.0)
    return _reduced(loss, reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Probabilities as targets: ``- sum_c w_c t_c log_softmax(x)_c``."""
    from torch.nn import functional

    if not target.is_floating_point() or size_average is not None or reduce is not None:
        found: Tensor = functional.cross_entropy(
            input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
        return found
    classes = 0 if input.ndim == 1 else 1
    smooth = target * (1 - label_smoothing) + label_smoothing / input.shape[classes]
    logs = input.log_softmax(classes)
    if weight is not None:
        logs = logs * weight.reshape(-1, *[1] * (input.ndim - classes - 1))
    return _reduced(-(smooth * logs).sum(classes), reduction)


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    total: Tensor = {"mean": loss.mean, "sum": loss.sum}[reduction]() if reduction != "none" else loss
    return total


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **ARRAYS,
    "torch.nn.functional.adaptive_max_pool1d": adaptive_max_pool,
    "torch.nn.functional.adaptive_max_pool2d": adaptive_max_pool,
    "torch.nn.functional.adaptive_max_pool3d": adaptive_max_pool,
    "torch.nn.functional.adaptive_avg_pool3d": adaptive_avg_pool,
    "torch.nn.functional.rrelu": rrelu,
    "torch.nn.functional.cross_entropy": cross_entropy,
    "torch.nn.functional.gaussian_nll_loss": gaussian_nll,
    "torch.functional.cdist": cdist,
    "torch.lstm": lstm,
    "torch._C._nn.scaled_dot_product_attention": attention,
}


def _output_sizes(x: Tensor, output_size: Any) -> list[int]:
    """One size for each pooled axis: an int stands for all of them, None for the length that is there.

    How many axes are pooled follows from the rank: the exported batch and the channels lead.
    """
    axes = x.ndim - 2
    given = list(output_size) if isinstance(output_size, Sequence) else [output_size] * axes
    return [int(x.shape[x.ndim - len(given) + i]) if size is None else int(size) for i, size in enumerate(given)]


def _windows(lengths: Sequence[int], sizes: Sequence[int]) -> list[tuple[Any, ...]]:
    """The slices of each window over the last axes, the last axis fastest."""
    along = [
        [slice(i * length // size, math.ceil((i + 1) * length / size)) for i in range(size)]
        for length, size in zip(lengths, sizes, strict=True)
    ]
    return [(..., *window) for window in itertools.product(*along)]
