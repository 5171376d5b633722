"""Reading the background and the samples from files: .npy, .npz, .csv and .parquet."""

from __future__ import annotations

import csv
import importlib
import os
import re
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepshap_ir.errors import InputError, MissingDependencyError

Array = NDArray[Any]


@dataclass(frozen=True)
class Input:
    """What a model says about one of its inputs.

    Attributes
    ----------
    name : as in the model.
    shape : of one example, without the batch axis; None for a free dimension. None where nothing is declared.
    dtype : None where nothing is declared.
    single : whether it is one number for all rows.
    """

    name: str
    shape: tuple[int | None, ...] | None = None
    dtype: np.dtype[Any] | None = None
    single: bool = False

    def __str__(self) -> str:
        if self.single:
            return f"{self.name!r} []"
        shape = "" if self.shape is None else f" [N, {', '.join('?' if d is None else str(d) for d in self.shape)}]"
        return f"{self.name!r}{shape}"


@dataclass(frozen=True)
class Rows:
    """Rows of data for every input of a model.

    Attributes
    ----------
    arrays : ``[N, *features]`` by input name, in the order of the model's inputs.
    columns : column names of a table in the order in which the model takes them, None for arrays.
    feature_names : by input name, where a table names them.
    dropped : columns of the table that were left out.
    """

    arrays: dict[str, Array]
    columns: tuple[str, ...] | None = None
    feature_names: dict[str, list[str]] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return next((len(values) for values in self.arrays.values() if values.ndim), 1)


@dataclass(frozen=True)
class _Table:
    """Values ``[N, columns]``, the names of the columns, and of those that were left out."""

    names: list[str]
    values: Array
    dropped: frozenset[str]


def read_rows(
    path: str | os.PathLike[str],
    inputs: Sequence[Input],
    columns: Sequence[str] | None = None,
    drop: Collection[str] = (),
) -> Rows:
    """Read rows for `inputs` from a file.

    * ``.npy``: an array ``[N, *features]`` for the only input.
    * ``.npz``: an array ``[N, *features]`` under the name of every input; any name where there is one of each.
    * ``.csv`` (comma, UTF-8, names on the first line) and ``.parquet``: one row per sample. The columns are the
      features of the only input in order, flattened where it has several axes, or are named ``input``,
      ``input[2]`` or ``input[0,3,4]`` after the inputs and positions in them. An empty cell is NaN.

    Parameters
    ----------
    path : the file.
    inputs : the inputs to read.
    columns : the columns of a table read before, which this one is to have too, in any order.
    drop : columns to leave out where they are there.

    Raises
    ------
    InputError
        The file is missing, is not what its name says, has no rows, or does not fit the model or `columns`.
    MissingDependencyError
        A .parquet file without pyarrow.
    """
    path = Path(path)
    readers: dict[str, Callable[[], Rows]] = {
        ".npy": lambda: _from_npy(path, inputs),
        ".npz": lambda: _from_npz(path, inputs),
        ".csv": lambda: _from_table(path, inputs, _csv_columns(path, drop), columns),
        ".parquet": lambda: _from_table(path, inputs, _parquet_columns(path, drop), columns),
    }
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: cannot be read: data come from {', '.join(readers)} files")
    try:
        rows = readers[path.suffix.lower()]()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (the current folder is {os.getcwd()})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    lengths = {name: len(values) for name, values in rows.arrays.items() if values.ndim}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{path}: the inputs have different numbers of rows: {lengths}")
    if 0 in lengths.values():
        raise InputError(f"{path}: has no rows")
    return rows


def _from_npy(path: Path, inputs: Sequence[Input]) -> Rows:
    if len(inputs) != 1:
        raise InputError(f"{path}: holds one array, the model has the inputs {_listed(inputs)}; save an .npz by name")
    return Rows({inputs[0].name: _numbers(_loaded(path), str(path))})


def _from_npz(path: Path, inputs: Sequence[Input]) -> Rows:
    archive = _loaded(path)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise InputError(f"{path}: is a single array, not an .npz archive; rename it to .npy")
    with archive:
        names = archive.files
        where = {one.name: one.name for one in inputs}
        if len(inputs) == len(names) == 1:
            where = {inputs[0].name: names[0]}
        missing = [name for name in where.values() if name not in names]
        if missing:
            raise InputError(f"{path}: has no array {_quoted(missing)} among {_quoted(names)}")
        arrays = {
            one.name: _numbers(_member(path, archive, where[one.name]), f"{path}: {where[one.name]!r}", one.single)
            for one in inputs
        }
        return Rows(arrays)


def _loaded(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path}: is not a {path.suffix} file of numbers, or is truncated") from None


def _member(path: Path, archive: Any, key: str) -> Any:
    try:
        return archive[key]
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path}: its array {key!r} is not of numbers, or is truncated") from None


def _numbers(values: Any, where: str, single: bool = False) -> Array:
    if not isinstance(values, np.ndarray):
        raise InputError(f"{where}: is an .npz archive; rename it to .npz")
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        kind = "text" if values.dtype.kind in "SU" else values.dtype
        raise InputError(f"{where}: holds {kind}, expected numbers")
    if values.ndim == 0 and not single:
        raise InputError(f"{where}: holds a single number, expected an array [N, *features]")
    return values


def _csv_columns(path: Path, drop: Collection[str]) -> _Table:
    """The columns of a csv file."""
    cells = array("d")
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.reader(handle)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header)
            _check_names(path, header, drop)
            kept = [position for position, name in enumerate(header) if name not in drop]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} values for the {len(header)} columns of line 1"
                    )
                try:
                    cells.extend([float(row[position]) for position in kept])
                except ValueError:
                    cells.extend(_cell(row[p], f"{path}, line {reader.line_num}, column {header[p]!r}") for p in kept)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    names = [header[position] for position in kept]
    return _Table(names, np.array(cells).reshape(-1, len(kept)), frozenset(header).intersection(drop))


def _cell(text: str, where: str) -> float:
    text = text.strip()
    words = {"": np.nan, "true": 1.0, "false": 0.0}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: {text[:40]!r} is not a number") from None


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise InputError(f"{path}: is empty")
    if len(header) == 1 and (separator := re.search("[;\t|]", header[0])):
        raise InputError(f"{path}: its columns seem to be separated by {separator[0]!r}, expected commas")
    counted = [str(position) for position in range(len(header))]
    if header != counted and all(_is_number(name) for name in header):
        raise InputError(
            f"{path}: line 1 holds numbers ({', '.join(header[:3])}...), expected the names of the columns"
        )


def _check_names(path: Path, names: list[str], drop: Collection[str]) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path}: several columns are called {_quoted(repeated)}")
    if set(names) <= set(drop):
        raise InputError(f"{path}: no column is left")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet_columns(path: Path, drop: Collection[str]) -> _Table:
    """The columns of a parquet file, without the index that pandas adds."""
    arrow, parquet = pyarrow("read .parquet files"), importlib.import_module("pyarrow.parquet")
    try:
        with path.open("rb") as handle:
            table = parquet.read_table(handle)
    except arrow.ArrowException as error:
        raise InputError(f"{path}: is not a .parquet file, or is truncated: {str(error).splitlines()[0]}") from None
    index = (table.schema.pandas_metadata or {}).get("index_columns", [])
    names = [name for name in table.column_names if name not in index]
    _check_names(path, names, drop)
    dropped = frozenset(names).intersection(drop)
    names = [name for name in names if name not in drop]
    values = np.empty((table.num_rows, len(names)))
    kinds = arrow.types
    numeric = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal)
    for position, name in enumerate(names):
        column = table.column(name)
        if not any(is_kind(column.type) for is_kind in numeric):
            first = next((repr(cell.as_py()) for cell in column if cell.is_valid), "no value")
            raise InputError(f"{path}, column {name!r}: holds {column.type} ({first[:40]}), expected numbers")
        values[:, position] = column.cast(arrow.float64(), safe=False).to_numpy()
    return _Table(names, values, dropped)


def pyarrow(purpose: str) -> Any:
    """Import pyarrow.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise MissingDependencyError(f"pyarrow is needed to {purpose}: pip install 'deepshap-ir[tables]'") from None


def _from_table(path: Path, inputs: Sequence[Input], table: _Table, columns: Sequence[str] | None) -> Rows:
    names, values = table.names, table.values
    if columns is not None:
        missing = [name for name in columns if name not in set(names)]
        surplus = [name for name in names if name not in set(columns)]
        complaints = [f"misses {_quoted(missing)}"] * bool(missing)
        if surplus:
            complaints.append(f"has {_quoted(surplus)}, which the background has not; leave columns out with --drop")
        if complaints:
            raise InputError(f"{path}: its columns differ from the background's: it {' and '.join(complaints)}")
        where = {name: position for position, name in enumerate(names)}
        names, values = list(columns), values[:, [where[name] for name in columns]]
    placed = _placed(path, inputs, names)
    if placed is not None:
        arrays = {one.name: _laid_out(_cast(path, one, values[:, placed[one.name]]), one) for one in inputs}
        return Rows(arrays, tuple(names), dropped=table.dropped)
    if len(inputs) != 1:
        known = {one.name for one in inputs}
        strays = [name for name in names if not {name, name.rpartition("[")[0]} & known] or names
        bases = {part for name in names for part in (name, name.rpartition("[")[0])}
        without = [one for one in inputs if one.name not in bases]
        remedy = f"there is no column for {_listed(without)}" if without else "leave columns out with --drop"
        raise InputError(
            f"{path}: columns for several inputs are called 'input' or 'input[position]' after the model's, and "
            f"{_quoted(strays)} are not; {remedy}"
        )
    only = inputs[0]
    made = _cast(path, only, values)
    shape = _row_shape(path, only, names)
    feature_names = {only.name: names} if shape[-1:] == (len(names),) else {}
    return Rows({only.name: made.reshape(len(made), *shape)}, tuple(names), feature_names, table.dropped)


def _placed(path: Path, inputs: Sequence[Input], names: list[str]) -> dict[str, Array] | None:
    """Positions in `names` of every input's features, in their shape; None where the names tell none."""
    found: dict[str, dict[tuple[int, ...], int]] = {one.name: {} for one in inputs}
    for position, name in enumerate(names):
        base, bracket, indices = name.rpartition("[") if name not in found else (name, "", "]")
        if base not in found or (bracket and not re.fullmatch(r"\d+(,\d+)*\]", indices)):
            return None
        index = tuple(int(part) for part in indices[:-1].split(",")) if bracket else (0,)
        found[base][index] = position
    placed = {}
    for name, positions in found.items():
        ranks = {len(index) for index in positions}
        shape = tuple(np.max(list(positions), axis=0) + 1) if len(ranks) == 1 else ()
        if not positions or np.prod(shape) != len(positions):
            raise InputError(
                f"{path}: its columns {_quoted([n for n in names if n.startswith(name)])} do not fill {name!r}"
            )
        placed[name] = np.array([positions[index] for index in np.ndindex(shape)]).reshape(shape)
    return placed


def _row_shape(path: Path, only: Input, names: list[str]) -> tuple[int, ...]:
    """The shape of one row of the only input."""
    if only.shape is None:
        return (len(names),)
    free = only.shape.count(None)
    known = int(np.prod([size for size in only.shape if size is not None]))
    if free > 1:
        raise InputError(
            f"{path}: a row of {len(names)} columns can be laid out in several ways in the input {only}; "
            "name the columns by position (input[0,0], ...) or save an .npy file"
        )
    if len(names) != known if not free else (known == 0 or len(names) % known):
        raise InputError(
            f"{path}: has {len(names)} columns ({_quoted(names)}), the input {only} takes "
            f"{'a multiple of ' * free}{known} numbers per row; leave columns out with --drop"
        )
    return tuple(len(names) // known if size is None else size for size in only.shape)


def _cast(path: Path, one: Input, values: Array) -> Array:
    """`values` in the dtype of the input, refused where that would change them."""
    if one.dtype is None or np.issubdtype(one.dtype, np.floating):
        with np.errstate(over="ignore"):
            return values.astype(one.dtype or np.float64)
    if not (np.issubdtype(one.dtype, np.integer) or one.dtype == bool):
        raise InputError(f"{path}: the input {one} takes {one.dtype}, a table holds numbers")
    low, high = (0, 1) if one.dtype == bool else (np.iinfo(one.dtype).min, np.iinfo(one.dtype).max)
    fits = (values == np.round(values)) & (values >= low) & (values <= high)
    if not fits.all():
        row = int(np.argwhere(~fits)[0][0])
        wrong = values[row][~fits[row]].ravel()[0]
        raise InputError(f"{path}: the input {one} takes {one.dtype}, row {row + 1} has {wrong:g}")
    return values.astype(one.dtype)


def _laid_out(values: Array, one: Input) -> Array:
    """`values` in the declared shape where they fill it: a column ``input`` may stand for ``[N]`` or ``[N, 1, 1]``."""
    sizes = [size for size in one.shape or () if size is not None]
    if one.shape is not None and len(sizes) == len(one.shape) and np.prod(sizes) == np.prod(values.shape[1:]):
        return values.reshape(len(values), *sizes)
    return values


def _listed(inputs: Sequence[Input]) -> str:
    return ", ".join(str(one) for one in inputs)


def _quoted(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
