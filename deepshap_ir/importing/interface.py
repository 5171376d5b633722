"""What is fed to a model, what is held, and what comes out: names and data checked against the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TypeProto, ValueInfoProto, helper, numpy_helper

from deepshap_ir.errors import InputError
from deepshap_ir.importing.dependence import Dependence, dependence, needed, operator
from deepshap_ir.importing.feeds import Array, InputSpec, by_name, columns, is_list, read, rows, suggest
from deepshap_ir.importing.prune import prune
from deepshap_ir.importing.runner import Runner
from deepshap_ir.onnx_io import elem_type

_FLOATS = frozenset({1, 10, 11, 16})
"""Element types float, float16, double, bfloat16."""

_MADE_FOR_NAN = ("IsNaN", "ai.onnx.ml::Imputer", "ai.onnx.ml::TreeEnsemble")


@dataclass(frozen=True)
class Interface:
    """The names that a call of `import_model` is about, all known to exist in the file.

    Attributes
    ----------
    output : the explained output.
    explained : values to attribute to; with `by_default`, all model inputs that are not held.
    held : values that keep the sample's own value: model inputs, or values in the middle.
    constants : values held at an array.
    keep : values in the middle that must survive.
    batch_axes : as given.
    declared : the model's true inputs, in order.
    """

    output: str
    explained: tuple[str, ...]
    by_default: bool
    held: tuple[str, ...]
    constants: Mapping[str, Array]
    keep: tuple[str, ...]
    batch_axes: Mapping[str, int | None]
    declared: Mapping[str, ValueInfoProto]

    @classmethod
    def of(
        cls,
        model: ModelProto,
        output: str | int | None,
        inputs: Sequence[str] | None,
        hold: Sequence[str] | Mapping[str, Any],
        keep: Sequence[str],
        batch_axes: Mapping[str, int | None] | None,
    ) -> Interface:
        """Check the names that the user gave.

        Raises
        ------
        InputError : a name is unknown, is given two roles, or no output can be chosen.
        """
        fixed = {tensor.name for tensor in model.graph.initializer}
        fixed.update(tensor.values.name for tensor in model.graph.sparse_initializer)
        declared = {value.name: value for value in model.graph.input if value.name not in fixed}
        made = [name for node in model.graph.node for name in node.output if name]
        known = [*declared, *made]
        holds = dict(hold) if isinstance(hold, Mapping) else dict.fromkeys(name_list(hold, "hold"), None)
        chosen = name_list(inputs, "inputs") if inputs is not None else [name for name in declared if name not in holds]
        kept = name_list(keep, "at")
        for option, names in (("inputs", chosen), ("hold", list(holds)), ("at", kept)):
            for name in names:
                if name not in known:
                    raise InputError(f"{option}: the model has no value {name!r}.{suggest(name, known)}")
            if len(set(names)) < len(names):
                raise InputError(f"{option}: a name is listed twice in {names}.")
        for name in set(chosen) & set(holds):
            raise InputError(f"{name!r} is both in inputs= and in hold=; it can be explained or held, not both.")
        axes = dict(batch_axes or {})
        for name in axes:
            if name not in declared and name not in chosen:
                fed = list(dict.fromkeys([*declared, *chosen]))
                raise InputError(f"batch_axes: the model has no input {name!r}.{suggest(name, fed)}")
            if axes[name] is not None and not isinstance(axes[name], int | np.integer):
                raise InputError(f"batch_axes: expected a position or None for {name!r}, given {axes[name]!r}.")
        return cls(
            output=_choose_output(model, output, made),
            explained=tuple(chosen),
            by_default=inputs is None,
            held=tuple(name for name, value in holds.items() if value is None),
            constants={name: np.asarray(value) for name, value in holds.items() if value is not None},
            keep=tuple(kept),
            batch_axes=axes,
            declared=declared,
        )

    @property
    def inside(self) -> list[str]:
        """Values in the middle of the model that are given, by data or as a constant."""
        return [name for name in (*self.explained, *self.constants) if name not in self.declared]

    @property
    def held_inside(self) -> tuple[str, ...]:
        """Values in the middle of the model that keep the sample's own value."""
        return tuple(name for name in self.held if name not in self.declared)

    def constant_axes(self) -> dict[str, int | None]:
        """Return where the batch is in the values held at an array: an axis of length 1 that the file leaves free."""
        axes: dict[str, int | None] = {}
        for name, array in self.constants.items():
            value = self.declared.get(name)
            dims = [None] * array.ndim if value is None else _dims(value)
            free = bool(dims) and dims is not None and dims[0] is None and array.shape[:1] == (1,)
            axes[name] = self.batch_axes.get(name, 0 if free else None)
        return axes

    def declared_batch(self) -> int | None:
        """Return the length of the batch that the file fixes, None if it leaves it free."""
        lengths = []
        for name, value in self.declared.items():
            dims = _dims(value)
            axis = None if dims is None else _axis(self, name, len(dims))
            if dims is not None and axis is not None:
                lengths.append(dims[axis])
        fixed = [length for length in lengths if length is not None]
        return fixed[0] if fixed and (len(set(fixed)) == 1) and len(fixed) == len(lengths) else None

    def shared_by_all_rows(self, specs: Sequence[InputSpec]) -> str:
        """What to say of inputs that may have no batch axis: the file fixes their length where it is taken to be."""
        dims = {s.name: _dims(self.declared[s.name]) for s in specs if s.name in self.declared}
        axes = {s.name: s.batch_axis for s in specs if s.batch_axis is not None}
        fixed = [n for n, sizes in dims.items() if sizes and n in axes and (sizes[axes[n]] or 1) > 1]
        if not fixed or len(fixed) == len(axes):
            return ""
        return f". If all rows share {_listed(fixed)}, say so: batch_axes={dict.fromkeys(fixed)}."

    def check_reach(self, model: ModelProto) -> None:
        """Check that every named value in the middle is among the values that the output needs.

        Raises
        ------
        InputError : naming the value.
        """
        made = {name for node in model.graph.node for name in node.output} | {self.output}
        for name in (*self.inside, *self.held_inside, *self.keep):
            if name not in made and name not in self.declared:
                raise InputError(f"the output {self.output!r} does not depend on the value {name!r}.")

    def check_dependence(self, model: ModelProto, found: Dependence, fed: Sequence[str]) -> None:
        """Check that the explained inputs determine the output and every named place.

        Raises
        ------
        InputError : naming what does not depend on what.
        """
        explained = [name for name in self.explained if name in fed]
        reach = dependence(model.graph, explained)
        if not reach.depends([self.output]):
            used = [name for name in fed if name in needed(model.graph, [self.output], found)]
            end = f"it depends on {_listed(used)}" if used else "it is a constant of the model"
            given = _listed(explained) or "any input that is explained"
            raise InputError(f"the output {self.output!r} does not depend on {given}; {end}.")
        reached = needed(model.graph, [self.output], found) | set(explained)
        for name in (*self.keep, *self.held_inside):
            if not found.depends([name]):
                raise InputError(f"no input determines the value {name!r}: it is a constant of the model.")
            if name not in reached:
                raise InputError(f"the output {self.output!r} does not depend on the value {name!r}.")

    def fed(self, model: ModelProto, found: Dependence, given: Mapping[str, Array]) -> list[str]:
        """Return the inputs of the graph: the explained ones, then the others whose data the output needs."""
        reached = needed(model.graph, [self.output], found)
        explained = [name for name in self.explained if name in given]
        return explained + [name for name in given if name in reached and name not in explained]


def cut(model: ModelProto, face: Interface) -> ModelProto:
    """Return `model` with values in the middle as inputs, and values held at an array as initializers."""
    _check_constants(face)
    types = inside_dtypes(model, face.inside)
    given = {name: value_info(name, dtype) for name, dtype in types.items()}
    for value in model.graph.input:
        if value.name in face.constants:
            given[value.name] = value
    result = prune(model, [face.output], given)
    inputs = [value for value in result.graph.input if value.name not in face.constants]
    held = [value for value in result.graph.input if value.name in face.constants]
    del result.graph.input[:]
    result.graph.input.extend(inputs)
    for value in held:
        spec = InputSpec(value.name, _dtype(value.type, value.name), batch_axis=None)
        array = read(face.constants[value.name], spec, "hold")
        result.graph.initializer.append(numpy_helper.from_array(array, value.name))
    return result


def _check_constants(face: Interface) -> None:
    """Refuse arrays of several rows where the file has the batch of an explained input."""
    batches = {_free_name(face.declared.get(name), face.batch_axes.get(name, 0)) for name in face.explained} - {""}
    for name, array in face.constants.items():
        value = face.declared.get(name)
        rows = array.shape[0] if value is not None and array.ndim == len(_dims(value) or ()) > 0 else 1
        if rows != 1 and name not in face.batch_axes and _free_name(value, 0) in batches:
            raise InputError(
                f"hold: {name!r} has the batch along axis 0, so that a constant has one row there, given {rows}. "
                f"A value for each sample is fed with the data: hold=[{name!r}]."
            )


def inside_dtypes(model: ModelProto, names: Sequence[str]) -> dict[str, np.dtype[Any]]:
    """Return the dtypes of values in the middle of `model`, float32 where onnxruntime cannot tell."""
    if not names:
        return {}
    known = Runner(prune(model, names)).output_dtypes()
    return {name: known.get(name, np.dtype(np.float32)) for name in names}


def value_info(name: str, dtype: np.dtype[Any]) -> ValueInfoProto:
    """Return the declaration of a tensor of unknown shape."""
    return helper.make_tensor_value_info(name, elem_type(dtype), None)


def fed_specs(
    model: ModelProto, face: Interface, background: Any, what: str = "background"
) -> tuple[list[InputSpec], dict[str, Array]]:
    """Return what is fed to the cut `model`, and the background in these dtypes.

    A model input of which only the shape matters is fed zeros if it is not in the background.

    Parameters
    ----------
    what : how messages call the background.

    Raises
    ------
    InputError : names, dtypes or shapes do not fit, or an input that the output needs is missing.
    NonFiniteError : NaN or infinity in the background.
    """
    wanted = {value.name: value for value in model.graph.input}
    found = dependence(model.graph, wanted)
    by_data = needed(model.graph, [face.output], found)
    given = by_name(background, _order(face, wanted, background), what)
    for name in given:
        if name in face.constants:
            raise InputError(f"{what}: {name!r} is held at a constant, so it takes no data.")
        if name not in face.declared and name not in face.explained:
            known = list(dict.fromkeys([*face.declared, *face.explained]))
            raise InputError(f"{what}: the model has no input {name!r}.{suggest(name, known)}")
    explained = [name for name in face.explained if name in given or name in wanted or not face.by_default]
    order = [*explained, *(name for name in wanted if name not in explained)]
    missing = [name for name in order if name not in given and (name in by_data or name in face.explained)]
    unfed = [name for name in order if name not in given and name not in missing]
    missing += [name for name in unfed if _zeros(face, name, 1) is None]
    if missing:
        raise InputError(_missing(face, missing, what))
    specs = [_spec(model, face, name, wanted.get(name), given.get(name)) for name in order]
    arrays = {spec.name: read(given[spec.name], spec, what) for spec in specs if spec.name in given}
    count = rows(arrays, [spec for spec in specs if spec.name in arrays], what)
    for name in unfed:
        zeros = _zeros(face, name, count)
        assert zeros is not None
        arrays[name] = zeros
    return specs, arrays


def float_outputs(model: ModelProto) -> list[str]:
    """Return the outputs of floats, or of no known type; where there is none, the maps from labels to scores."""
    floats = [value.name for value in model.graph.output if _is_float(value.type) or not value.HasField("type")]
    outputs = {value.name for value in model.graph.output}
    return floats or [
        node.output[0] for node in model.graph.node if node.op_type == "ZipMap" and outputs & {*node.output}
    ]


def name_list(given: Sequence[str], option: str) -> list[str]:
    """Return the names that are given for `option`.

    Raises
    ------
    InputError : they are no list, or not of text.
    """
    if isinstance(given, str):
        raise InputError(f"{option}: expected a list of names, given the text {given!r}; write [{given!r}].")
    if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{option}: expected a list of names, given {given!r}.")
    return list(given)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _is_float(declared: TypeProto) -> bool:
    return declared.HasField("tensor_type") and declared.tensor_type.elem_type in _FLOATS


def _choose_output(model: ModelProto, output: str | int | None, made: Sequence[str]) -> str:
    """The value to explain; in place of a map from labels to scores, the scores that ZipMap makes it of."""
    chosen = _named_output(model, output, made)
    maps = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "ZipMap"}
    return str(maps.get(chosen, chosen))


def _named_output(model: ModelProto, output: str | int | None, made: Sequence[str]) -> str:
    outputs: list[str] = [value.name for value in model.graph.output]
    if isinstance(output, (int, np.integer)) and not isinstance(output, bool):
        if not -len(outputs) <= output < len(outputs):
            raise InputError(f"output: there is no output {output}; the model has {len(outputs)}: {_listed(outputs)}.")
        return outputs[int(output)]
    if output is not None:
        if output not in made and output not in outputs:
            raise InputError(f"output: the model has no value {output!r}.{suggest(str(output), [*outputs, *made])}")
        return str(output)
    floats = float_outputs(model)
    if len(floats) == 1:
        return floats[0]
    if not floats:
        raise InputError(
            f"output: none of the outputs {_listed(outputs)} is a float tensor; name a value with output=."
        )
    raise InputError(
        f"output: the model has {len(floats)} float outputs, {_listed(floats)}; "
        f"choose one by name or index with output=."
    )


def list_order(face: Interface, fed: Sequence[str]) -> list[str]:
    """Return the names to which a list of all that is `fed`, the explained first, refers: in the order of the file."""
    in_the_file = set(fed) <= set(face.declared) and not set(fed) <= set(face.explained)
    return [name for name in face.declared if name in fed] if in_the_file else list(fed)


def _order(face: Interface, wanted: Mapping[str, ValueInfoProto], background: Any) -> list[str]:
    """Return the names to which a list of arrays refers."""
    count = len(background) if is_list(background) else 1
    if not face.by_default:
        fed = [*face.explained, *(name for name in wanted if name not in face.explained)]
        return list_order(face, fed) if count == len(fed) else list(face.explained)
    every = [name for name in face.declared if name not in face.constants]
    required = [name for name in every if name in wanted]
    return required if len(required) == count else every


def _dtype(declared: TypeProto, name: str) -> np.dtype[Any]:
    if not declared.HasField("tensor_type"):
        kind = declared.WhichOneof("value") or "value of unknown type"
        raise InputError(
            f"input {name!r} is a {kind.removesuffix('_type')}, not a tensor; "
            f"feed a tensor inside the model: inputs=[name]."
        )
    return np.dtype(helper.tensor_dtype_to_np_dtype(declared.tensor_type.elem_type))


def _dims(value: ValueInfoProto) -> list[int | None] | None:
    """Return the declared shape, None for free dimensions, or None if nothing is declared."""
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim]


def _free_name(value: ValueInfoProto | None, axis: int | None) -> str:
    """Return the name of a free dimension, empty where it has none."""
    dims = [] if value is None or axis is None else value.type.tensor_type.shape.dim
    return dims[axis].dim_param if axis is not None and -len(dims) <= axis < len(dims) else ""


def _axis(face: Interface, name: str, rank: int | None) -> int | None:
    axis = face.batch_axes.get(name, 0)
    if rank is None or axis is None:
        return axis
    if rank == 0 and name not in face.batch_axes:
        return None
    if not -rank <= axis < rank:
        raise InputError(f"batch_axes: {name!r} has {rank} axes, so its batch cannot be axis {axis}.")
    return axis % rank


def _spec(model: ModelProto, face: Interface, name: str, value: ValueInfoProto | None, array: Any) -> InputSpec:
    declared = face.declared.get(name)
    if value is None:  # an explained model input that the output does not need: it was pruned
        value = face.declared[name]
    dims = None if declared is None else _dims(declared)
    rank = len(dims) if dims is not None else None if array is None else np.ndim(array)
    axis = _axis(face, name, rank)
    shape = None if dims is None else tuple(None if i == axis else dim for i, dim in enumerate(dims))
    held = name not in face.explained
    dtype, nan = _dtype(value.type, name), _allows_nan(model, name)
    return InputSpec(name, dtype, shape, axis, nan, allows_infinity=held, columns=columns(array))


def _allows_nan(model: ModelProto, name: str) -> bool:
    reached = dependence(model.graph, [name])
    return any(operator(node).startswith(_MADE_FOR_NAN) and reached.depends(node.input) for node in model.graph.node)


def _zeros(face: Interface, name: str, count: int) -> Array | None:
    """Return rows of zeros in the declared shape, None if that is not known."""
    value = face.declared.get(name)
    dims = None if value is None else _dims(value)
    if value is None or dims is None:
        return None
    axis = _axis(face, name, len(dims))
    shape = [count if position == axis else dim for position, dim in enumerate(dims)]
    if None in shape:
        return None
    return np.zeros([dim for dim in shape if dim is not None], _dtype(value.type, name))


def _missing(face: Interface, names: Sequence[str], what: str) -> str:
    others = [name for name in names if name not in face.explained]
    if face.by_default or not others:
        return f"{what}: missing input {_listed(names)}; the model needs {_listed(list(face.declared))}."
    return (
        f"the inputs {_listed(face.explained)} do not determine the output {face.output!r}: it also needs the model "
        f"input {_listed(others)}. Give it in the {what}, as a mapping by name (it then keeps the sample's own "
        f"value), or hold it at a constant: hold={{{others[0]!r}: array}}."
    )
