"""Deep SHAP attributions for any model that can be written as an ONNX graph."""

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
