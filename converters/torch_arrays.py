"""Functions of torch over arrays that its exporter lacks, in terms of those that it has."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepshap_ir.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def arange(*limits: Any, **keywords: Any) -> Tensor:
    """Numbers in steps; of a start that is whole and an end that is not, the exporter makes whole ones."""
    import torch

    names = [name for name in ("start", "end", "step") if name in keywords]
    if any(isinstance(limit, float) for limit in (*limits, *(keywords[name] for name in names))):
        limits = tuple(map(torch.sym_float, limits))
        keywords |= {name: torch.sym_float(keywords[name]) for name in names}
    return torch.arange(*limits, **keywords)


def cumprod(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """The products of the first one, two, ... along an axis."""
    import torch

    return torch.stack(list(itertools.accumulate(input.to(dtype or input.dtype).unbind(dim), operator.mul)), dim)


def cummax(input: Tensor, dim: int) -> Any:
    """The largest of the first one, two, ... along an axis, and where the last of them is."""
    return _running(input, dim, "cummax", operator.ge)


def cummin(input: Tensor, dim: int) -> Any:
    """The smallest of the first one, two, ... along an axis, and where the last of them is."""
    return _running(input, dim, "cummin", operator.le)


def _running(x: Tensor, dim: int, name: str, reaches: Callable[[Tensor, Tensor], Tensor]) -> Any:
    import torch

    extreme = torch.maximum if name == "cummax" else torch.minimum
    best, *rest = x.unbind(dim)
    values, places = [best], [torch.zeros_like(best, dtype=torch.int64)]
    for i, step in enumerate(rest, 1):
        places.append(torch.where(reaches(step, values[-1]), i, places[-1]))
        values.append(extreme(step, values[-1]))
    return getattr(torch.return_types, name)((torch.stack(values, dim), torch.stack(places, dim)))


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False, *, name: str = "kthvalue") -> Any:
    """The k-th smallest along an axis, and where it is."""
    import torch

    found = (t.narrow(dim, k - 1, 1) for t in torch.sort(input, dim))
    return getattr(torch.return_types, name)([t if keepdim else t.squeeze(dim) for t in found])


def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower one of the two in the middle, and where it is."""
    import torch

    if dim is None:  # of the batch too
        return torch.ops.aten.median.default(input)
    return kthvalue(input, (input.shape[dim] + 1) // 2, dim, keepdim, name="median")


def searchsorted(
    sorted_sequence: Tensor, input: Any, *, right: bool = False, side: str | None = None, **_: Any
) -> Tensor:
    """How many of the sorted numbers are below, or with `right` not above."""
    import torch

    values = torch.as_tensor(input).unsqueeze(-1)
    edges = sorted_sequence if sorted_sequence.ndim == 1 else sorted_sequence.unsqueeze(-2)
    return (edges <= values if right or side == "right" else edges < values).sum(-1)


def hypot(input: Tensor, other: Tensor) -> Tensor:
    """The length of (x, y)."""
    return (input * input + other * other).sqrt()


def lgamma(input: Tensor) -> Tensor:
    """The logarithm of the gamma function where x > 0 (to 5e-6 in float32), else NaN: Stirling's series at x + 6.

    ``ln Gamma(x) = ln Gamma(x + 6) - ln x - ... - ln (x + 5)``, ``ln Gamma(s) = (s - 1/2) ln s - s + ln(2 pi) / 2 +
    1 / 12 s - 1 / 360 s^3 + 1 / 1260 s^5``.
    """
    x = input
    s = x + 6
    series = 1 / (12 * s) - 1 / (360 * s**3) + 1 / (1260 * s**5)
    steps = sum((x + i).log() for i in range(1, 6)) + x.log()
    total: Tensor = (s - 0.5) * s.log() - s + 0.5 * math.log(2 * math.pi) + series - steps
    return total


def solve(a: Tensor, b: Tensor, *, left: bool = True) -> Tensor:
    """By the inverse: that of a parameter is a constant."""
    import torch

    inverse: Tensor = torch.linalg.inv(a)
    if b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1]):
        return (inverse @ b.unsqueeze(-1)).squeeze(-1)
    return inverse @ b if left else b @ inverse


def solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """By the inverse of the triangle that is read."""
    import torch

    read = a.triu() if upper else a.tril()
    if unitriangular:
        read = read - torch.diag_embed(read.diagonal(dim1=-2, dim2=-1) - 1)
    inverse: Tensor = torch.linalg.inv(read)
    return inverse @ b if left else b @ inverse


def setitem(x: Tensor, key: Any, value: Any) -> None:
    """``x[mask] = number`` without the places where the mask is true: there are as many as the data say."""
    import torch

    number = isinstance(value, bool | int | float) or (isinstance(value, torch.Tensor) and value.ndim == 0)
    if number and isinstance(key, torch.Tensor) and key.dtype == torch.bool:
        x.masked_fill_(key.reshape(*key.shape, *[1] * (x.ndim - key.ndim)), value)
    else:
        torch.Tensor.__setitem__(x, key, value)


def pack_padded_sequence(*_: Any) -> Any:
    """Rows of a batch, sorted by length and interleaved: none of them has a place of its own.

    Raises
    ------
    ModelError : always.
    """
    raise ModelError(
        "pack_padded_sequence mixes the rows of a batch; give the recurrent layer the padded rows and read its outputs "
        "at the last step of each, outputs[torch.arange(len(x)), lengths - 1]; for a backward direction turn the rows "
        "around without their padding"
    )


ARRAYS: dict[str, Callable[..., Any]] = {
    "torch.arange": arange,
    "torch.cumprod": cumprod,
    "torch.cummax": cummax,
    "torch.cummin": cummin,
    "torch.kthvalue": kthvalue,
    "torch.median": median,
    "torch.searchsorted": searchsorted,
    "torch.hypot": hypot,
    "torch.lgamma": lgamma,
    "torch._C._special.special_gammaln": lgamma,
    "torch._C._linalg.linalg_solve": solve,
    "torch._C._linalg.linalg_solve_triangular": solve_triangular,
    "torch.__setitem__": setitem,
    "torch._pack_padded_sequence": pack_padded_sequence,
}
"""By the function's name; a method is found by that of the function."""
