"""What an explainer returns: attributions with all that is needed to read, slice, plot and save them."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepshap_ir.errors import InputError
from deepshap_ir.tracks import AxisIndex, Track, Tracks

Array = NDArray[Any]


class OutputName(str):
    """The name of an output.

    `shap.plots.text` wants the name of a single output to be a ``str``, `shap.plots.image` wants to reshape it.
    """

    __slots__ = ()

    def reshape(self, *shape: int) -> Array:
        """The name as an array of one element."""
        return np.array([str(self)]).reshape(*shape)


class Explanation:
    """Attributions of some samples.

    Slicing acts on all parts alike, by position, mask or name: ``e[0]``, ``e[:, "age"]``, ``e[..., "setosa"]``.
    Where `shap` can be imported, `make_explanation` returns an object that is a `shap.Explanation` too.

    Attributes
    ----------
    values : attributions, ``[N, *features, *outputs]``. The axis of a model's only output is left out.
    base_values : mean output over the background, ``[N, *outputs]``.
    outputs : ``f(x)``, what the model makes of the samples, ``[N, *outputs]``, or None.
    data : the explained samples, ``[N, *features]``.
    feature_names : names along the last axis of the features, or None.
    output_names : names of the outputs, ``[outputs]`` or, where each sample has its own outputs, ``[N, outputs]``;
        a single name after that axis is gone; None where there are none.
    standard_error : of `values`, from the spread over the background, ``[N, *features, *outputs]``, or None.
    unattributed : the part of ``f(x) - E[f]`` that reaches the output around the explained place,
        ``[N, *outputs]``, or None.
    output_indexes : which output each column of `values` is, ``[N, outputs]``, or None for the model's own order.
    """

    compute_time: float | None = None

    def __init__(self, tracks: Mapping[str, Track], output_dims: tuple[int, ...] = ()):
        self._s = Tracks(tracks)
        self.output_dims = output_dims
        self.op_history: list[Any] = []

    @property
    def values(self) -> Any:
        """Attributions. Setting them forgets the parts that belong to the old ones, `standard_error` say."""
        return self._s.values

    @values.setter
    def values(self, values: Any) -> None:
        self._s.values = values
        self._s.standard_error = self._s.unattributed = self._s.outputs = None

    @property
    def base_values(self) -> Any:
        """Mean output over the background."""
        return self._s.base_values

    @base_values.setter
    def base_values(self, base_values: Any) -> None:
        self._s.base_values = base_values

    @property
    def outputs(self) -> Any:
        """The model's output for the samples, or None."""
        return self._s.outputs

    @property
    def data(self) -> Any:
        """The explained samples."""
        return self._s.data

    @data.setter
    def data(self, data: Any) -> None:
        self._s.data = data

    @property
    def feature_names(self) -> Any:
        """Names along the last axis of the features, or None."""
        return self._s.feature_names

    @feature_names.setter
    def feature_names(self, feature_names: Sequence[str] | str | None) -> None:
        features = [axis for axis in range(len(self.shape)) if axis not in self.output_dims]
        _name_axis(self._s, "feature_names", feature_names, self.shape, features[-1:])

    @property
    def output_names(self) -> Any:
        """Names of the outputs, one name, or None."""
        return self._s.output_names

    @output_names.setter
    def output_names(self, output_names: Sequence[str] | str | None) -> None:
        _name_axis(self._s, "output_names", output_names, self.shape, list(self.output_dims))

    @property
    def standard_error(self) -> Any:
        """Standard error of `values` over the background, or None."""
        return self._s.standard_error

    @property
    def unattributed(self) -> Any:
        """What reaches the output around the explained place, or None."""
        return self._s.unattributed

    @property
    def output_indexes(self) -> Any:
        """Which output each column of `values` is, or None."""
        return self._s.output_indexes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `values`."""
        return np.shape(self.values)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, item: Any) -> Any:
        index = self._axis_indices(item if isinstance(item, tuple) else (item,))
        tracks = {name: track.take(index) for name, track in self._tracks().items()}
        positions = iter(range(len(index)))
        kept = {axis: next(positions) for axis, part in enumerate(index) if not isinstance(part, int)}
        part = self._like(tracks, tuple(kept[axis] for axis in self.output_dims if axis in kept))
        # shap's reductions slice first, and then drop the last entry of the history
        step = types.SimpleNamespace(name="__getitem__", args=(item,), kwargs={}, prev_shape=self.shape)
        step.collapsed_instances = False
        part.op_history.append(step)
        return part

    def __copy__(self) -> Any:
        return self._like(self._tracks(), self.output_dims)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._tracks(), self.output_dims, self.op_history, self.compute_time)

    def __repr__(self) -> str:
        lines = [f"Explanation: values {_shape(self.values)}, base_values {_shape(self.base_values)}"]
        lines[0] += f", data {_shape(self.data)}"
        for name in ("feature_names", "output_names"):
            if (names := getattr(self, name)) is not None:
                lines.append(f"  {name}: {names if isinstance(names, str) else _few(np.ravel(names))}")
        for name in ("base_values", "standard_error", "unattributed"):
            if (array := getattr(self, name)) is not None and np.size(array):
                lines.append(f"  {name}: {np.min(array):.4g} to {np.max(array):.4g}")
        if np.size(self.values):
            lines.append(f"  values: {np.min(self.values):.4g} to {np.max(self.values):.4g}")
        return "\n".join(lines)

    def channels_last(self) -> Any:
        """The same explanation of images ``[N, H, W, C, *outputs]``, as `shap.plots.image` wants them.

        Raises
        ------
        InputError
            if the explained samples are not ``[N, C, H, W]``.
        """
        if np.ndim(self.data) != 4:
            raise InputError(f"channels_last() is for samples of shape [N, C, H, W], these have {_shape(self.data)}")
        image_parts = ("values", "data", "standard_error")
        tracks = {
            name: Track(np.moveaxis(track.content, 1, 3), track.axes) if name in image_parts else track
            for name, track in self._tracks().items()
            if track.content is not None and name != "feature_names"
        }
        return self._like(tracks, self.output_dims)

    def _tracks(self) -> dict[str, Track]:
        return dict(self._s.__dict__["tracks"])

    def _like(self, tracks: Mapping[str, Track], output_dims: tuple[int, ...]) -> Any:
        return _restore(tracks, output_dims, list(self.op_history), self.compute_time, type(self))

    def _axis_indices(self, item: tuple[Any, ...]) -> list[AxisIndex]:
        """One entry per axis: ellipsis written out, names and masks as positions."""
        rank = len(self.shape)
        ellipses = [position for position, part in enumerate(item) if part is Ellipsis]
        if len(item) - len(ellipses) > rank or len(ellipses) > 1:
            raise IndexError(f"the attributions have {rank} axes, the index {item!r} asks for others")
        start = ellipses[0] if ellipses else len(item)
        missing = (slice(None),) * (rank - len(item) + len(ellipses))
        item = (*item[:start], *missing, *item[start + 1 :])
        names: dict[int, Sequence[str]] = {}
        for track in map(self._tracks().get, ("feature_names", "output_names")):
            if track is not None and len(track.axes) == 1:
                names[track.axes[0]] = track.content
        return [self._positions(part, axis, names.get(axis)) for axis, part in enumerate(item)]

    def _positions(self, part: Any, axis: int, names: Sequence[str] | None) -> AxisIndex:
        if type(part).__name__ == "OpChain":  # shap: e[:, Explanation.abs.mean(0).argsort]
            part = part.apply(self)
        if isinstance(part, Explanation):
            part = part.values
        if isinstance(part, slice):
            return part
        if isinstance(part, str):
            if names is None or part not in names:
                known = "has no names" if names is None else f"has {_few(names)}"
                raise InputError(f"no entry {part!r} on axis {axis} of the attributions, which {known}")
            return list(names).index(part)
        if isinstance(part, Sequence) and any(isinstance(entry, str) for entry in part):
            return [self._positions(entry, axis, names) for entry in part]  # type: ignore[misc]
        array = np.asarray(part)
        if array.dtype == bool and array.shape == (self.shape[axis],):
            return [int(position) for position in np.flatnonzero(array)]
        if array.ndim > 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
            raise IndexError(f"axis {axis} of the attributions is indexed by integers, a mask or names, not {part!r}")
        return int(array) if array.ndim == 0 else [int(position) for position in array]


@cache
def _explanation_class() -> type[Explanation]:
    """`Explanation`, made a subclass of `shap.Explanation` where shap can be imported."""
    try:
        shap_class = importlib.import_module("shap").Explanation
    except ImportError:
        return Explanation
    made = types.new_class("Explanation", (Explanation, shap_class))
    made.__module__ = __name__
    made.__doc__ = Explanation.__doc__
    return made


_plain: ContextVar[bool] = ContextVar("plain", default=False)


@contextmanager
def plain_explanations() -> Iterator[None]:
    """Let `make_explanation` do without shap, whose import takes seconds, where nobody is going to plot with it."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def _restore(
    tracks: Mapping[str, Track],
    output_dims: tuple[int, ...],
    op_history: list[Any],
    compute_time: float | None,
    kind: type[Explanation] | None = None,
) -> Explanation:
    kind = kind or (Explanation if _plain.get() else _explanation_class())
    explanation = kind.__new__(kind)
    Explanation.__init__(explanation, tracks, output_dims)
    explanation.op_history = op_history
    explanation.compute_time = compute_time
    return explanation


def make_explanation(
    values: ArrayLike | list[Array],
    base_values: ArrayLike,
    data: ArrayLike | list[Array],
    feature_names: Any = None,
    output_names: Any = None,
    standard_error: Any = None,
    unattributed: ArrayLike | None = None,
    output_indexes: ArrayLike | None = None,
    outputs: ArrayLike | None = None,
    per_reference: bool = False,
) -> Any:
    """An `Explanation`, which is a `shap.Explanation` where shap can be imported.

    Parameters
    ----------
    values : attributions ``[N, *features, *outputs]``; a list of such arrays, one per input, where there are several.
    base_values : mean output over the background, ``[*outputs]`` or ``[N, *outputs]``.
    data : the explained samples ``[N, *features]``; a list where `values` is one.
    feature_names : names along the last axis of the features; a list of such lists where `values` is one.
    output_names : names along the axis of the outputs, or ``[N, outputs]`` names; made up from `output_indexes`, or
        where the outputs have one axis longer than 1.
    standard_error : of `values`, in their shape (a list where `values` is one).
    unattributed : ``[N, *outputs]``.
    output_indexes : which output each column of `values` is, ``[N, outputs]``.
    outputs : ``f(x)``, ``[N, *outputs]``.
    per_reference : `values` and `base_values` are those of each reference, ``[N, B, *features, *outputs]`` and
        ``[N, B, *outputs]``, and so are `standard_error` and `unattributed` if there are any.

    Returns
    -------
    Explanation, or a list of them, one per input, where `values` is a list. The axis of an only output is dropped.

    Raises
    ------
    InputError
        if the shapes do not fit.
    """
    if isinstance(values, list) and any(isinstance(value, np.ndarray) for value in values):
        count = len(values)
        many = [part if part is not None else [None] * count for part in (feature_names, standard_error)]
        if not isinstance(data, list) or any(len(part) != count for part in (data, *many)):
            raise InputError(f"attributions of {count} inputs need as many data, feature names and standard errors")
        return [
            make_explanation(
                value,
                base_values,
                rows,
                names,
                output_names,
                error,
                unattributed,
                output_indexes,
                outputs,
                per_reference,
            )
            for value, rows, names, error in zip(values, data, *many, strict=True)
        ]
    values, data = np.asarray(values), np.asarray(data)
    if per_reference and data.ndim and values.ndim > 1:
        data = np.broadcast_to(data[:, None], (len(data), values.shape[1], *data.shape[1:]))
    rank, lead = data.ndim, 2 if per_reference else 1
    if rank < lead or values.shape[:rank] != data.shape:
        raise InputError(f"attributions {_shape(values)} do not begin with the shape of the samples {_shape(data)}")
    output_shape = values.shape[rank:]
    per_row = (*data.shape[:lead], *output_shape)
    base = np.asarray(base_values)
    if per_reference and outputs is not None:
        outputs = np.broadcast_to(np.asarray(outputs)[:, None], per_row)
    if base.shape not in (output_shape, per_row):
        raise InputError(f"base_values have shape {_shape(base)}, expected {list(output_shape)} or {list(per_row)}")
    arrays = {
        "values": values,
        "base_values": np.broadcast_to(base, per_row).copy(),
        "data": data,
        "standard_error": None if standard_error is None else np.asarray(standard_error),
        "unattributed": None if unattributed is None else np.asarray(unattributed),
        "output_indexes": None if output_indexes is None else np.asarray(output_indexes),
        "outputs": None if outputs is None else np.asarray(outputs),
    }
    output_dims = tuple(range(rank, values.ndim))
    axes = dict.fromkeys(arrays, (*range(lead), *output_dims)) | {"data": tuple(range(rank))}
    axes["output_indexes"] = (0, *output_dims)
    axes["values"] = axes["standard_error"] = tuple(range(values.ndim))
    tracks = {}
    for name, array in arrays.items():
        if array is None:
            continue
        expected = tuple(values.shape[axis] for axis in axes[name])
        if array.shape != expected:
            raise InputError(f"{name} has shape {_shape(array)}, expected {list(expected)}")
        tracks[name] = Track(array, axes[name])
    explanation = _restore(tracks, output_dims, [], None)
    if rank > lead:
        explanation.feature_names = feature_names
    if output_names is None and output_indexes is not None:
        output_names = [[f"Output {k}" for k in row] for row in np.asarray(output_indexes)]
    elif output_names is None and len(output_shape) == 1 and output_shape != (1,):
        output_names = [f"Output {k}" for k in range(output_shape[0])]
    explanation.output_names = output_names
    if output_shape != (1,):
        return explanation
    only = explanation[..., 0]
    only.op_history = []
    return only


def _name_axis(tracks: Tracks, attribute: str, names: Any, shape: tuple[int, ...], axes: list[int]) -> None:
    """Put `names` along the only one of `axes`, or along it and the samples."""
    stored = tracks.__dict__["tracks"]
    if names is None or isinstance(names, str):
        stored[attribute] = Track(None if names is None else OutputName(names), ())
        return
    array = np.asarray(names, dtype=object)
    fitting = {tuple(shape[axis] for axis in where): where for where in (axes, [0, *axes]) if where}
    if len(axes) != 1 or array.shape not in fitting:
        expected = " or ".join(str(list(fit)) for fit in fitting) if len(axes) == 1 else "none"
        raise InputError(f"{attribute} {_few(array.ravel())} has shape {_shape(array)}, expected {expected}")
    kind = OutputName if attribute == "output_names" else str
    if array.ndim == 1:
        stored[attribute] = Track([kind(name) for name in array], (axes[0],))
    else:
        stored[attribute] = Track(np.vectorize(kind, otypes=[object])(array), (0, axes[0]))


def _shape(array: Any) -> list[int]:
    return list(np.shape(array))


def _few(names: Sequence[Any] | Array, most: int = 6) -> str:
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
