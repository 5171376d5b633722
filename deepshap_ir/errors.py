"""Every error that this library raises on purpose."""

from __future__ import annotations

from collections.abc import Iterable


class DeepShapError(Exception):
    """Base class of the errors below."""


class ModelError(DeepShapError):
    """The model cannot be read, is not valid ONNX, or is not the function that was promised."""


class InputError(DeepShapError, ValueError):
    """Data, names or options do not fit the model."""


class UnsupportedOperatorError(DeepShapError):
    """Some operators on the way from the explained inputs to the output have no rule.

    `values` are names of what the nodes give that no rule could explain, where the model is refused for them.
    """

    def __init__(self, message: str, values: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.values = frozenset(values)


class RuleError(DeepShapError):
    """A rule is registered twice, breaks its contract, or failed while it was compiled."""


class NonFiniteError(DeepShapError, ArithmeticError):
    """NaN or infinity in the data, in a value of the model, or in a multiplier."""


class AdditivityError(DeepShapError, AssertionError):
    """The attributions do not sum to ``f(x) - E[f]``.

    An ``AssertionError`` too, because scripts written for ``shap`` catch that.
    """


class MissingDependencyError(DeepShapError, ImportError):
    """An optional package is needed and not installed."""
