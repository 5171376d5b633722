"""Functions that are recognised by their values."""

from __future__ import annotations

from tests.joins.joining import joined, operators


def test_constants_of_several_axes_are_numbers_too() -> None:
    scale, one, half = (
        f"{name} = Constant<value = float[1,1,1] {{{value}}}>()"
        for name, value in {"r": 0.70710678, "i": 1.0, "h": 0.5}.items()
    )
    body = f"{scale} {one} {half} d = Mul(x, r) e = Erf(d) p = Add(e, i) q = Mul(x, p) y = Mul(q, h)"
    assert operators(joined(body)) == ["Gelu"]
