"""What is asked of an explainer: once for all, and of some samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deepshap_ir.converters.registry import Settings
from deepshap_ir.custom_ops import CustomOps
from deepshap_ir.engine.backends import Backend, OnnxRuntime, Reference
from deepshap_ir.engine.registry import Resolver


@dataclass(frozen=True)
class Setup:
    """What was asked of an explainer, apart from its model and data; see `deepshap_ir.DeepExplainer`.

    Attributes
    ----------
    settings : what a converter may have to know.
    logits : explain the value before the last Softmax or Sigmoid.
    own_references : each sample has references of its own.
    custom_ops : kernels of the user's own operators.
    memory_limit : bytes; None for a quarter of what is available.
    """

    settings: Settings
    inputs: tuple[str, ...] | None
    logits: bool
    own_references: bool
    resolver: Resolver
    precision: str | None
    backend: str
    providers: Sequence[Any] | None
    threads: int | None
    memory_limit: int
    progress: bool | None
    custom_ops: CustomOps = field(default_factory=CustomOps)

    def made_backend(self) -> Backend:
        """What runs the programs."""
        if self.backend == "reference" or self.precision == "float64":
            return Reference(self.custom_ops.functions)
        return OnnxRuntime(self.providers, self.threads, self.custom_ops)


@dataclass(frozen=True)
class Request:
    """What is wanted of some samples.

    Attributes
    ----------
    ranked_outputs, order : explain only so many outputs of each sample, those that come first in `order`.
    check : raise where the attributions do not sum to the output minus its mean.
    details : standard errors too.
    role : what is wanted in place of contributions, ``"sum"``: ``"multiplier"`` or ``"hypothetical"``.
    axes : of hypothetical contributions, as in `deepshap_ir.hypothetical.example_axes`.
    per_reference : for each reference, not their mean.
    """

    ranked_outputs: int | None = None
    order: str = "max"
    check: bool = True
    details: bool = False
    role: str = "sum"
    axes: int | Mapping[str, int] = -1
    per_reference: bool = False

    @property
    def roles(self) -> list[str]:
        """Roles of the plan that are wanted beside the mean contributions."""
        roles = [] if self.role == "sum" else [self.role]
        return [*roles, *([f"each {self.role}"] if self.per_reference else [])]
