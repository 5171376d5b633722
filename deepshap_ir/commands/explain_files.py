"""From a model file and tables to attributions: what `deepshap explain` does before it prints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from deepshap_ir.commands.model_files import open_model, read_output
from deepshap_ir.commands.results import Result
from deepshap_ir.commands.tables import Input, read_rows
from deepshap_ir.engine.registry import RuleSet
from deepshap_ir.errors import InputError
from deepshap_ir.explainer import DeepExplainer
from deepshap_ir.explanation import plain_explanations
from deepshap_ir.graph import Array
from deepshap_ir.importing.interface import Interface, cut


@dataclass(frozen=True)
class Choices:
    """What is explained of a model; as the arguments of `DeepExplainer`.

    Attributes
    ----------
    output : a name or an index, None for the only float output.
    top : how many outputs of each sample to explain, those of largest value; None for all.
    """

    output: str | int | None = None
    top: int | None = None
    inputs: tuple[str, ...] | None = None
    hold: tuple[str, ...] = ()
    rules: Sequence[RuleSet] = ()

    @classmethod
    def of(
        cls,
        model: ModelProto,
        output: Sequence[str],
        inputs: Sequence[str],
        hold: Sequence[str],
        rules: Sequence[RuleSet],
    ) -> Choices:
        """Read the options of the command line.

        Parameters
        ----------
        output : ``NAME``, ``INDEX`` or ``top:K``; or one of the first two and the last.

        Raises
        ------
        InputError
            More is chosen than one output, or K is no number.
        """
        chosen, top = read_output(output)
        if chosen is not None and any(str(chosen) in node.output for node in model.graph.node):
            chosen = str(chosen)  # PyTorch calls values by numbers
        return cls(chosen, top, tuple(inputs) or None, tuple(hold), rules)


def fed_inputs(model: ModelProto, choices: Choices) -> list[Input]:
    """The inputs for which data are read: those that the output needs, in the order of the model.

    Raises
    ------
    InputError
        A chosen name is unknown.
    """
    face = Interface.of(model, choices.output, choices.inputs, choices.hold, (), None)
    fed = [described(value) for value in cut(model, face).graph.input]
    return fed or [described(value) for value in face.declared.values()]


def described(value: ValueInfoProto) -> Input:
    """What a file declares about an input; float16 and bfloat16 are read as float32."""
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim[1:])
    dtype = None
    if tensor.elem_type:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        dtype = np.dtype(np.float32) if dtype.itemsize == 2 and dtype.kind in "fV" else dtype
    return Input(value.name, shape, dtype, single=tensor.HasField("shape") and not tensor.shape.dim)


@dataclass(frozen=True)
class Explained:
    """What `explain_files` found out.

    Attributes
    ----------
    output_name, output_shape : of the explained output, for one example.
    expected_value : mean output over the background, ``[*output_shape]``, or ``[N, *output_shape]`` where it depends
        on the sample.
    references : how many rows the background has.
    """

    result: Result
    output_name: str
    output_shape: tuple[int, ...]
    expected_value: Array
    references: int


def explain_files(
    model: Path,
    background: Path,
    samples: Path,
    *,
    output: Sequence[str] = (),
    inputs: Sequence[str] = (),
    hold: Sequence[str] = (),
    rules: Sequence[RuleSet] = (),
    drop: Collection[str] = (),
    check: bool = True,
    **settings: Any,
) -> Explained:
    """Explain the rows of a file.

    Parameters
    ----------
    model : a file, of ONNX or of a framework.
    background, samples : files that `read_rows` takes.
    output, inputs, hold, rules : see `Choices.of`.
    drop : columns of tables to leave out.
    check : whether attributions that do not sum to delta are an error.
    **settings : more arguments of `DeepExplainer`.

    Raises
    ------
    DeepShapError
        Anything that is wrong with the model or the data.
    """
    loaded, output = open_model(model, background, {}, output, drop)
    choices = Choices.of(loaded, output, inputs, hold, rules)
    fed = fed_inputs(loaded, choices)
    references = read_rows(background, fed, drop=drop)
    rows = read_rows(samples, fed, references.columns, drop)
    for name in drop:
        if name not in references.dropped and name not in rows.dropped:
            raise InputError(f"--drop {name}: neither {background} nor {samples} has such a column")
    explainer = DeepExplainer(
        loaded,
        references.arrays,
        output=choices.output,
        inputs=choices.inputs,
        hold=choices.hold,
        rules=choices.rules,
        **settings,
    )
    with plain_explanations():
        found = explainer(rows.arrays, ranked_outputs=choices.top, check_additivity=check)
    explanations = dict(zip(explainer.input_names, found if isinstance(found, list) else [found], strict=True))
    for name, explanation in explanations.items():
        explanation.feature_names = references.feature_names.get(name)
    result = Result(explanations, next(iter(explanations.values())).outputs)
    expected = np.asarray(explainer.expected_value)
    return Explained(result, explainer.output_name, explainer.output_shape, expected, len(references))
