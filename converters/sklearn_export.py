"""What skl2onnx writes, as a model of one table: one output, one input, and numbers for strings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from deepshap_ir.converters.registry import comes_from
from deepshap_ir.errors import MissingDependencyError
from deepshap_ir.importing.prune import prune
from deepshap_ir.importing.runner import Runner, newest_opset, one_line
from deepshap_ir.importing.subgraphs import all_names, all_nodes, fresh, rename

if TYPE_CHECKING:
    from deepshap_ir.converters.scikit_learn import Table

OPSET, ML_OPSET = 18, 3

_OF_TEXT = ("StringNormalizer", "StringSplit", "StringConcat", "RegexFullMatch", "TfIdfVectorizer", "Tokenizer")


class Unconverted(Exception):  # noqa: N818  (it becomes a ModelError where nothing else works)
    """skl2onnx fails, with what it says."""


def export(
    estimator: Any, method: str, table: Table, double: bool, shape: Sequence[int]
) -> tuple[ModelProto, tuple[str, ...]]:
    """Return `method` as ONNX, ``[N, columns] -> [N, K]``, and the strings that it knows.

    Parameters
    ----------
    double : whether numbers are float64.
    shape : of what the method says.

    Raises
    ------
    Unconverted : skl2onnx fails.
    MissingDependencyError : the estimator is LightGBM's or XGBoost's, and onnxmltools is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _converted(estimator, method, table, double)
    model = prune(model, [_output(model)])
    words = _numbered(model, table)
    if not table.separate:
        _one_input(model, table, TensorProto.DOUBLE if double else TensorProto.FLOAT)
    _flat(model, shape, len(getattr(estimator, "classes_", ())))
    if double and Runner(model, "what skl2onnx writes").engine != "onnxruntime":
        raise Unconverted("some of its operators mix float32 with float64, or have no kernel for that")
    return model, words


def _converted(estimator: Any, method: str, table: Table, double: bool) -> ModelProto:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType

    from deepshap_ir.converters.sklearn_columns import column_converters
    from deepshap_ir.converters.sklearn_trees import tree_converters

    _register(estimator)
    while hasattr(estimator, "best_estimator_"):  # a search, of which skl2onnx reads no options
        estimator = estimator.best_estimator_
    number = DoubleTensorType if double else FloatTensorType
    if _by_column(estimator, table):
        labels = table.labels or range(table.width)
        types = [(str(label), StringTensorType if i in table.texts else number) for i, label in enumerate(labels)]
        initial = [(name, kind([None, 1])) for name, kind in types]
    else:
        initial = [("X", (StringTensorType if table.texts else number)([None, table.width]))]
    final = estimator
    while hasattr(final, "steps"):
        final = final.steps[-1][1]
    options = {}
    if hasattr(estimator, "classes_"):
        raw = method == "decision_function"
        options = {
            id(final): {name: value for name, value in (("zipmap", False), ("raw_scores", raw)) if _has(final, name)}
        }
        if raw and hasattr(final, "predict_proba") and not _has(final, "raw_scores"):
            raise Unconverted(f"it knows no scores of {type(final).__name__} before they become probabilities")
    try:
        made = convert_sklearn(
            estimator,
            initial_types=initial,
            options=options,
            target_opset={"": min(OPSET, newest_opset()), "ai.onnx.ml": ML_OPSET},
            custom_conversion_functions=tree_converters() | column_converters(),
        )
    except Exception as error:  # its converters raise whatever they like
        raise Unconverted(one_line(error)) from error
    assert isinstance(made, ModelProto)
    return made


def _has(estimator: Any, option: str) -> bool:
    """Tell whether skl2onnx's converter of an estimator has an option."""
    from skl2onnx._supported_operators import _get_sklearn_operator_name
    from skl2onnx.common._registration import get_converter

    try:
        return option in (get_converter(_get_sklearn_operator_name(type(estimator))).get_allowed_options() or {})
    except (RuntimeError, ValueError):
        return False


def _by_column(estimator: Any, table: Table) -> bool:
    """Tell whether the estimator takes its columns one by one: some are strings, or it chooses them by name."""
    if table.separate or (table.texts and len(table.texts) < table.width):
        return True
    first = estimator
    while hasattr(first, "steps"):
        first = first.steps[0][1]
    return table.labels is not None and comes_from(first, "sklearn", "ColumnTransformer")


def _register(estimator: Any) -> None:
    """Tell skl2onnx about the other packages' estimators, of which onnxmltools knows.

    Raises
    ------
    MissingDependencyError : it is not installed.
    """
    every = [estimator]
    if hasattr(estimator, "get_params"):
        every += [value for value in estimator.get_params(deep=True).values() if hasattr(value, "get_params")]
    foreign = [one for one in every if comes_from(one, "lightgbm") or comes_from(one, "xgboost")]
    if not foreign:
        return
    try:
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    except ImportError as error:
        raise MissingDependencyError(
            f"to explain {type(foreign[0]).__name__}, onnxmltools is needed: pip install onnxmltools"
        ) from error
    from skl2onnx import update_registered_converter
    from skl2onnx.common.shape_calculator import (
        calculate_linear_classifier_output_shapes,
        calculate_linear_regressor_output_shapes,
    )

    for one in foreign:
        classes = hasattr(one, "predict_proba")
        update_registered_converter(
            type(one),
            f"{type(one).__module__.partition('.')[0]}{type(one).__name__}",
            calculate_linear_classifier_output_shapes if classes else calculate_linear_regressor_output_shapes,
            convert_lightgbm if comes_from(one, "lightgbm") else convert_xgboost,
            options={"nocl": [True, False], "zipmap": [True, False, "columns"]} if classes else None,
            overwrite=True,
        )


def _output(model: ModelProto) -> str:
    """The scores of a classifier stand after its labels."""
    name: str = model.graph.output[-1].name
    return name


def _numbered(model: ModelProto, table: Table) -> tuple[str, ...]:
    """Put numbers in place of all strings; return the strings in the order of their numbers.

    Raises
    ------
    Unconverted : strings are cut or made.
    """
    if not table.texts:
        return ()
    numbers = dict(table.numbers)

    def number(word: bytes | str) -> int:
        word = word.decode() if isinstance(word, bytes) else str(word)
        return numbers.setdefault(word, len(numbers))

    for node in all_nodes(model.graph):
        if node.op_type in _OF_TEXT:
            raise Unconverted(f"{node.op_type} reads strings as text, and a text has no delta")
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.STRING:
                raise Unconverted("numbers are made strings")
            if attribute.name.startswith("classlabels"):
                continue
            if attribute.type == AttributeProto.STRINGS and attribute.name.endswith("_strings"):
                words = [number(word) for word in attribute.strings]
                attribute.CopyFrom(helper.make_attribute(attribute.name.replace("_strings", "_int64s"), words))
            elif attribute.type == AttributeProto.STRING and attribute.name == "default_string":
                attribute.CopyFrom(helper.make_attribute("default_int64", number(attribute.s)))
            elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.STRING:
                attribute.t.CopyFrom(_tensor_of_numbers(attribute.t, number))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.STRING:
            tensor.CopyFrom(_tensor_of_numbers(tensor, number))
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.STRING:
            value.type.tensor_type.elem_type = TensorProto.INT64
    return tuple(numbers)


def _tensor_of_numbers(tensor: TensorProto, number: Any) -> TensorProto:
    array = numpy_helper.to_array(tensor)
    found = np.array([number(word) for word in array.reshape(-1)], np.int64).reshape(array.shape)
    return numpy_helper.from_array(found, tensor.name)


def _one_input(model: ModelProto, table: Table, dtype: int) -> None:
    """Make the columns those of one table ``X``, of numbers."""
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    if set(inputs) == {"X"} and table.labels is None and inputs["X"].type.tensor_type.elem_type == dtype:
        return
    taken = {*all_names(graph), "X"}
    names = {name: fresh(f"column_{name}", taken) for name in (*inputs, *all_names(graph) & {"X"})}
    rename(graph, names)
    front = []
    labels = [str(label) for label in table.labels or range(table.width)]
    for name, value in inputs.items():
        whole = value.type.tensor_type.shape.dim[1].dim_value == table.width and table.width != 1
        source = "X"
        if not whole:
            index = fresh(f"index_{name}", taken)
            graph.initializer.append(
                numpy_helper.from_array(np.array([labels.index(name) if name in labels else 0]), index)
            )
            source = fresh(f"of_{name}", taken)
            front.append(helper.make_node("Gather", ["X", index], [source], axis=1))
        kind = value.type.tensor_type.elem_type
        front.append(helper.make_node("Cast", [source], [names[name]], to=kind))
    nodes = [*front, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("X", dtype, ["N", table.width]))


def _flat(model: ModelProto, shape: Sequence[int], classes: int) -> None:
    """Make the output ``[N, K]`` as the estimator has it: of two classes' scores, it may show the second alone."""
    graph = model.graph
    taken = all_names(graph)
    name = graph.output[0].name
    found, flat = fresh("scores", taken), fresh("flat", taken)
    shaped = fresh("shape", taken)
    for node in graph.node:
        for i, made in enumerate(node.output):
            if made == name:
                node.output[i] = found
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = found
    second = classes == 2 and shape[1] == 1
    graph.initializer.append(numpy_helper.from_array(np.array([-1, 2 if second else shape[1]]), shaped))
    graph.node.append(helper.make_node("Reshape", [found, shaped], [flat if second else name]))
    if second:
        last = fresh("last", taken)
        graph.initializer.append(numpy_helper.from_array(np.array([1]), last))
        graph.node.append(helper.make_node("Gather", [flat, last], [name], axis=1))
