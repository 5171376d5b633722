"""scikit-learn estimators and pipelines, and those of LightGBM and XGBoost, through skl2onnx."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepshap_ir.converters.needs import needed
from deepshap_ir.converters.registry import Conversion, Settings
from deepshap_ir.errors import InputError, ModelError
from deepshap_ir.importing.feeds import Array, as_array, columns, suggest
from deepshap_ir.importing.runner import one_line

ACCEPTS = "a fitted scikit-learn, LightGBM or XGBoost estimator or pipeline, or a method of it, model.predict_proba say"

COMPARED = 256
"""Rows of the background on which estimator and conversion are compared: a tree may differ on few."""

METHODS = ("predict_proba", "decision_function", "predict", "transform")
"""What may be explained, the first that an estimator has by default; not the labels that a classifier predicts."""


def takes(model: Any) -> bool:
    """Tell whether `model` is an estimator, or a method of one."""
    return _is_estimator(model) or (inspect.ismethod(model) and _is_estimator(model.__self__))


def convert(model: Any, background: Any, settings: Settings) -> Conversion:
    """Convert an estimator in double precision, or in single where skl2onnx knows no other.

    Raises
    ------
    InputError : the background does not fit, there is no such output, or it is of labels.
    ModelError : skl2onnx does not know an estimator, or writes another function than it is.
    MissingDependencyError : skl2onnx, or onnxmltools for LightGBM and XGBoost, is not installed.
    """
    with needed("to explain a scikit-learn estimator", "sklearn"):
        import skl2onnx  # noqa: F401
    from deepshap_ir.converters.sklearn_export import Unconverted, export

    estimator, output = (model, settings.output) if _is_estimator(model) else (model.__self__, model.__name__)
    if estimator is not model and settings.output not in (None, output):
        raise InputError(f"output={settings.output!r} is given beside the method {output!r}: give one of them.")
    if settings.at:
        raise InputError("at= names values of a graph; an estimator shows none: convert it with skl2onnx first.")
    method = _method(estimator, output)
    table = Table.of(background)
    arrays = table.arrays(background, "background")
    rows = _rows(arrays)
    expected = _called(estimator, method, table, rows)
    failures: list[Exception] = []
    for double in (True, False):
        try:
            exported, words = export(estimator, method, table, double, expected.shape)
        except Unconverted as error:
            failures.append(error)
            continue
        known = table.with_words(list(words))
        conversion = TableConversion(
            exported,
            output=exported.graph.output[0].name,
            hold=settings.hold,
            rows=rows,
            run=_original(estimator, method, known, exported.graph.output[0].name),
            axes=dict.fromkeys(rows, 0),
            table=known,
        )
        try:
            conversion.check()
        except ModelError as error:
            failures.append(error)
            continue
        return conversion
    name = type(estimator).__name__
    wrong = next((error for error in failures if isinstance(error, ModelError)), None)
    if wrong is not None:
        raise ModelError(f"skl2onnx writes {name} as another function than it is: {wrong}") from wrong
    raise ModelError(f"skl2onnx cannot convert {name}: {failures[-1]}") from failures[-1]


@dataclass(frozen=True)
class Table:
    """The form in which an estimator is given its data.

    Attributes
    ----------
    labels : of the columns of a DataFrame, or names of the inputs where each column is an input of its own; None for
        an array.
    separate : whether each column is an input.
    width : number of columns.
    words : the strings among the data, by which position they are numbered.
    texts : positions of the columns of strings.
    """

    labels: tuple[Any, ...] | None
    separate: bool
    width: int
    words: tuple[str, ...] = ()
    texts: tuple[int, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, background: Any) -> Table:
        """Look at a background.

        Raises
        ------
        InputError : it is not a table.
        """
        separate = isinstance(background, Mapping) and not hasattr(background, "__array__")
        if separate:
            parts = {str(name): _column(value, name) for name, value in background.items()}
            labels: tuple[Any, ...] | None = tuple(parts)
            found = list(parts.values())
        else:
            labels = columns(background)
            if labels is not None:
                found = [np.asarray(background.iloc[:, i]) for i in range(len(labels))]
            else:
                array = as_array(background)
                if array.ndim != 2:
                    raise InputError(
                        f"background: an estimator takes a table, [rows, columns], given shape {list(array.shape)}."
                    )
                found = [array] if array.dtype.kind in "fiub" else list(array.T)
                if len(found) == 1 and found[0].ndim == 2:
                    return cls(None, False, array.shape[1])
        texts = tuple(i for i, column in enumerate(found) if _is_text(column))
        words = sorted({str(word) for i in texts for word in found[i]})
        return cls(labels, separate, len(found), tuple(words), texts, {word: i for i, word in enumerate(words)})

    @property
    def names(self) -> list[str]:
        """Names of the inputs."""
        return [str(label) for label in self.labels or ()] if self.separate else ["X"]

    def with_words(self, words: list[str]) -> Table:
        """The same table, with more strings after those that it knows."""
        more = [word for word in dict.fromkeys(words) if word not in self.numbers]
        every = (*self.words, *more)
        return Table(
            self.labels, self.separate, self.width, every, self.texts, {word: i for i, word in enumerate(every)}
        )

    def arrays(self, data: Any, what: str) -> dict[str, Array]:
        """Return data as numbers by input name, float64 ``[N, columns]``, strings as their numbers.

        Raises
        ------
        InputError : the data are not numbers, or a string is not known.
        """
        if self.separate:
            return {
                name: self._numbers(_column(data[name], name), i, what)[:, None] for i, name in enumerate(self.names)
            }
        if not self.texts:
            array = as_array(data)
            if array.dtype.kind not in "fiub":
                raise InputError(f"{what}: expected numbers, given {array.dtype}.")
            return {"X": array.astype(np.float64)}
        given = [data.iloc[:, i] for i in range(self.width)] if self.labels else list(as_array(data).T)
        return {"X": np.stack([self._numbers(np.asarray(c), i, what) for i, c in enumerate(given)], 1)}

    def _numbers(self, column: Array, i: int, what: str) -> Array:
        if i not in self.texts:
            try:
                return np.asarray(column, np.float64)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"{what}: column {self._label(i)!r} is of numbers in the background: {error}"
                ) from None
        absent = next((word for word in column if not isinstance(word, str)), None)
        if absent is not None:
            raise InputError(
                f"{what}: column {self._label(i)!r} is of strings, but has {absent!r}. Fill in what is missing first."
            )
        unknown = next((str(word) for word in column if str(word) not in self.numbers), None)
        if unknown is not None:
            raise InputError(
                f"{what}: column {self._label(i)!r} has {unknown!r}, which neither the background nor the "
                f"estimator knows.{suggest(unknown, self.words)}"
            )
        return np.array([self.numbers[word] for word in column], np.int64 if self.separate else np.float64)

    def _label(self, i: int) -> Any:
        return self.labels[i] if self.labels else i

    def original(self, arrays: Mapping[str, Array]) -> Any:
        """Return arrays of numbers as the estimator takes them."""
        if self.labels is None and not self.texts:
            return arrays["X"]
        matrix = np.concatenate([arrays[name] for name in self.names], 1)
        given = [
            np.array([self.words[int(number)] for number in matrix[:, i]], object) if i in self.texts else matrix[:, i]
            for i in range(self.width)
        ]
        if self.labels is None:
            return np.stack([np.asarray(column, object) for column in given], 1)
        import pandas as pd

        frame = pd.DataFrame(dict(enumerate(given)))
        frame.columns = pd.Index(list(self.labels))
        return frame


@dataclass(frozen=True)
class TableConversion(Conversion):
    """A conversion that numbers strings, and takes the columns of a DataFrame by name.

    Attributes
    ----------
    table : the form of the background.
    """

    table: Table = field(default_factory=lambda: Table(None, False, 0))

    def data(self, data: Any, what: str = "background") -> Any:
        """Return `data` as numbers."""
        table = self.table
        if table.separate:
            if not isinstance(data, Mapping):
                raise InputError(
                    f"{what}: expected columns by name, as in the background, given {type(data).__name__}."
                )
            places = {name: i for i, name in enumerate(table.names)}
            return {
                name: table._numbers(_column(value, name), places[name], what)[:, None] if name in places else value
                for name, value in data.items()
            }
        if table.labels is None or columns(data) is None:
            return table.arrays(data, what)["X"] if table.texts else data
        import pandas as pd

        places = {label: i for i, label in enumerate(table.labels)}
        given = {
            label: table._numbers(np.asarray(data[label]), places[label], what) if label in places else data[label]
            for label in data.columns
        }
        return pd.DataFrame(given)


def _is_estimator(model: Any) -> bool:
    return not isinstance(model, type) and any(
        cls.__name__ == "BaseEstimator" and cls.__module__.startswith("sklearn.") for cls in type(model).__mro__
    )


def _method(estimator: Any, output: str | int | None) -> str:
    """Return the method that is explained.

    Raises
    ------
    InputError : there is no such method, or it predicts labels.
    """
    name = type(estimator).__name__
    from sklearn.base import is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise InputError(f"the estimator {name} is not fitted: call fit first.") from None
    methods = [method for method in METHODS if hasattr(estimator, method)]
    if "predict" in methods and len(methods) > 1 and not is_regressor(estimator):
        methods.remove("predict")
    if output in ("predict", "label") and output not in methods:
        raise InputError(
            f"output: {name} predicts labels, which are no numbers; explain one of {', '.join(map(repr, methods))}."
        )
    if not methods:
        raise InputError(f"{name} has no method to explain: none of {', '.join(METHODS)} that gives numbers.")
    if output is None:
        return methods[0]
    if isinstance(output, str) and output in methods:
        return output
    if not isinstance(output, str) and -len(methods) <= output < len(methods):
        return methods[output]
    raise InputError(f"output: {name} has no {output!r}.{suggest(str(output), methods)}")


def _column(value: Any, name: Any) -> Array:
    array = as_array(value)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"input {name!r}: expected one column, given shape {list(array.shape)}.")
    return array


def _is_text(column: Array) -> bool:
    return column.dtype.kind in "US" or (column.dtype.kind == "O" and any(isinstance(value, str) for value in column))


def _rows(arrays: Mapping[str, Array]) -> dict[str, Array]:
    count = len(next(iter(arrays.values())))
    if count == 0:
        raise InputError("background: no rows.")
    picked = np.unique(np.linspace(0, count - 1, min(count, COMPARED)).astype(int))
    return {name: array[picked] for name, array in arrays.items()}


def _called(estimator: Any, method: str, table: Table, rows: Mapping[str, Array]) -> Array:
    """What the estimator says, ``[N, K]``.

    Raises
    ------
    InputError : it fails, or gives a list of arrays.
    """
    try:
        found = getattr(estimator, method)(table.original(rows))
    except Exception as error:  # whatever the estimator's own code raises
        raise InputError(
            f"{type(estimator).__name__}.{method} fails on rows of the background: {one_line(error)}"
        ) from error
    if isinstance(found, list):
        raise InputError(
            f"{type(estimator).__name__}.{method} gives {len(found)} arrays, one per target; explain the estimators of "
            f"its targets, estimators_[i], one by one."
        )
    found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
    return found.reshape(len(found), -1)


def _original(
    estimator: Any, method: str, table: Table, output: str
) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    return lambda arrays: {output: _called(estimator, method, table, arrays)}
