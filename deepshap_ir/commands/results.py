"""Attributions as tables: names for every number, and files that are written whole or not at all."""

from __future__ import annotations

import csv
import importlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from deepshap_ir.commands.tables import pyarrow
from deepshap_ir.errors import InputError
from deepshap_ir.explanation import Explanation

Array = NDArray[Any]

MOST_COLUMNS = 200_000
"""Tables wider than this are of no use to the programs that read .csv and .parquet files."""


@dataclass(frozen=True)
class Result:
    """The attributions of some samples, by input, and the model's output for them.

    Attributes
    ----------
    explanations : by input name; N samples and the same outputs in all.
    outputs : ``f(x)``, in the shape of the base values: ``[N, *outputs]``, or ``[N]`` for an only output.
    """

    explanations: Mapping[str, Explanation]
    outputs: Array

    @property
    def first(self) -> Explanation:
        """The explanation of the first input, for what all have in common."""
        return next(iter(self.explanations.values()))

    @property
    def additivity_error(self) -> Array:
        """Base value + attributions + what is unattributed - ``f(x)``, ``[N, *outputs]``."""
        total = np.array(self.first.base_values, np.float64)
        if self.first.unattributed is not None:
            total += self.first.unattributed
        for explanation in self.explanations.values():
            total += explanation.values.sum(axis=tuple(range(1, explanation.data.ndim)))
        return total - self.outputs

    @property
    def features(self) -> list[str]:
        """A name for every feature of every input, in the order of `matrix`."""
        return [
            label
            for name, explanation in self.explanations.items()
            for label in feature_labels(explanation, name, alone=len(self.explanations) == 1)
        ]

    @property
    def output_labels(self) -> list[str]:
        """A name for every output, in the order of `matrix`; the only output may have the name ``""``."""
        names, shape = self.first.output_names, self.first.base_values.shape[1:]
        if isinstance(names, list):
            return [str(name) for name in names]
        if not shape:
            return [str(names or "")] if not isinstance(names, np.ndarray) else ["top 1"]
        if names is not None:
            return [f"top {rank + 1}" for rank in range(shape[0])]
        return [f"output[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]

    @property
    def matrix(self) -> Array:
        """Attributions with features and outputs flattened, ``[N, features, outputs]``."""
        parts = [
            explanation.values.reshape(len(explanation), explanation.data[0].size, -1)
            for explanation in self.explanations.values()
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def feature_labels(explanation: Explanation, name: str, alone: bool = True) -> list[str]:
    """A name for every feature of an input, in the order of its flattened values.

    The feature's own name for the only input of a table; else ``input[0,3,4]``, with a name in the place of the last
    position where there is one, and ``input`` where it has a single feature.

    Parameters
    ----------
    explanation : of N samples.
    name : of the input.
    alone : whether it is the model's only input.
    """
    shape = explanation.data.shape[1:]
    names = explanation.feature_names
    named = isinstance(names, list)
    if named and alone and len(names) == explanation.data[0].size:
        return [str(label) for label in names]
    if explanation.data[0].size == 1 and not named:
        return [name]
    return [
        f"{name}[{','.join([*map(str, index[:-1]), str(names[index[-1]] if named else index[-1])])}]"
        for index in np.ndindex(*shape)
    ]


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a file that `write_result` cannot write, before anything is computed.

    Raises
    ------
    InputError
        The suffix is not .npz, .csv or .parquet, or the folder is not there.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise InputError(f"{path}: cannot be written: attributions go to {', '.join(_WRITERS)} files")
    check_folder(path)
    if path.suffix.lower() == ".parquet":
        pyarrow("write .parquet files")


def check_folder(path: Path) -> None:
    """Refuse a file whose folder is not there.

    Raises
    ------
    InputError
        There is no such folder, nothing can be written to it, or the file is one.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{path}: cannot be written: it is a folder")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"{path}: cannot be written to the folder {path.parent}: {error.strerror or error}") from None


def write_result(path: str | os.PathLike[str], result: Result) -> None:
    """Write `result` to a file, whole or not at all.

    ``.npz`` holds the arrays ``values``, ``data``, ``standard_error`` and ``feature_names`` (with several inputs
    ``values/input`` and so on), ``base_values``, ``outputs``, ``additivity_error``, ``unattributed``,
    ``output_names`` and ``output_indexes``, those that there are. ``.csv`` and ``.parquet`` have one row per sample,
    and per output one column per feature, the base value and ``f(x)``; with several outputs, their names come
    before: ``setosa:petal length``.

    Raises
    ------
    InputError
        The file cannot be written.
    MissingDependencyError
        A .parquet file without pyarrow.
    """
    path = Path(path)
    check_target(path)
    with whole_file(path) as handle:
        _WRITERS[path.suffix.lower()](handle, path, result)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name `path` at the end, and vanishes if an error comes first.

    Raises
    ------
    InputError
        It cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as handle:
            yield handle
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _write_npz(handle: BinaryIO, path: Path, result: Result) -> None:
    arrays: dict[str, Any] = {}
    for name, explanation in result.explanations.items():
        suffix = "" if len(result.explanations) == 1 else f"/{name}"
        for part in ("values", "data", "standard_error", "feature_names"):
            arrays[part + suffix] = getattr(explanation, part)
    for part in ("base_values", "unattributed", "output_names", "output_indexes"):
        arrays[part] = getattr(result.first, part)
    arrays |= {"outputs": result.outputs, "additivity_error": result.additivity_error}
    for names in [key for key in arrays if key.partition("/")[0] in ("feature_names", "output_names")]:
        arrays[names] = None if arrays[names] is None else np.asarray(arrays[names], dtype=np.str_)
    np.savez_compressed(
        handle, allow_pickle=False, **{key: array for key, array in arrays.items() if array is not None}
    )


def _columns(path: Path, result: Result) -> Iterator[tuple[str, Array]]:
    labels, features, matrix = result.output_labels, result.features, result.matrix
    width = len(labels) * (len(features) + 2)
    if width > MOST_COLUMNS:
        raise InputError(f"{path}: {width} columns are too many for a table: write an .npz file, or fewer outputs")
    rows = len(matrix)
    base_values = result.first.base_values.reshape(rows, -1)
    outputs = result.outputs.reshape(rows, -1)
    names = result.first.output_names
    for k, label in enumerate(labels):
        prefix = f"{label}:" if len(labels) > 1 or isinstance(names, np.ndarray) else ""
        if isinstance(names, np.ndarray):
            yield f"{prefix}output", names.reshape(rows, -1)[:, k]
        for feature, values in zip(features, matrix[:, :, k].T, strict=True):
            yield f"{prefix}{feature}", values
        yield f"{prefix}base_value", base_values[:, k]
        yield f"{prefix}f(x)", outputs[:, k]


def _write_csv(handle: BinaryIO, path: Path, result: Result) -> None:
    columns = list(_columns(path, result))
    text = io.TextIOWrapper(handle, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name for name, _ in columns])
    writer.writerows(zip(*[values.tolist() for _, values in columns], strict=True))
    text.flush()
    text.detach()


def _write_parquet(handle: BinaryIO, path: Path, result: Result) -> None:
    arrow, parquet = pyarrow("write .parquet files"), importlib.import_module("pyarrow.parquet")
    columns = list(_columns(path, result))
    arrays = [arrow.array(values.tolist() if values.dtype == object else values) for _, values in columns]
    parquet.write_table(arrow.Table.from_arrays(arrays, [name for name, _ in columns]), handle)


_WRITERS: dict[str, Callable[[BinaryIO, Path, Result], None]] = {
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
