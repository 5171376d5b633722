"""Deep SHAP attributions for any model that can be written as an ONNX graph."""

from typing import TYPE_CHECKING, Any

from deepshap_ir.errors import (
    AdditivityError,
    DeepShapError,
    InputError,
    MissingDependencyError,
    ModelError,
    NonFiniteError,
    RuleError,
    UnsupportedOperatorError,
)

if TYPE_CHECKING:
    from deepshap_ir.explainer import DeepExplainer

__version__ = "0.1.0"

__all__ = [
    "AdditivityError",
    "DeepExplainer",
    "DeepShapError",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "NonFiniteError",
    "RuleError",
    "UnsupportedOperatorError",
]


def __getattr__(name: str) -> Any:
    """Import the explainer, and onnxruntime with it, when it is asked for: ``deepshap --help`` need not wait for it."""
    if name == "DeepExplainer":
        from deepshap_ir.explainer import DeepExplainer

        return DeepExplainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
