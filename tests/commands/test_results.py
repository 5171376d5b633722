from __future__ import annotations

import csv
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from deepshap_ir.commands.results import Result, check_target, feature_labels, whole_file, write_result
from deepshap_ir.errors import InputError, MissingDependencyError
from deepshap_ir.explanation import make_explanation

FEATURES = ["age", "height"]


def explained(shape: tuple[int, ...], outputs: tuple[int, ...] = (1,), names: Any = None, **parts: Any) -> Any:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, *shape, *outputs))
    return make_explanation(values, rng.normal(size=outputs), rng.normal(size=(3, *shape)), names, **parts)


def result_of(*explanations: Any, error: float = 0.0) -> Result:
    """A result whose attributions sum to delta but for `error`."""
    first = explanations[0]
    total = first.base_values + sum(e.values.sum(axis=tuple(range(1, e.data.ndim))) for e in explanations)
    total = total + (0 if first.unattributed is None else first.unattributed)
    return Result({f"in{i}": e for i, e in enumerate(explanations)}, total - error)


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with path.open(newline="") as handle:
        header, *rows = csv.reader(handle)
    return header, rows


@pytest.mark.parametrize(
    ("shape", "names", "alone", "expected"),
    [
        ((2,), FEATURES, True, FEATURES),
        ((2,), FEATURES, False, ["x[age]", "x[height]"]),
        ((2,), None, True, ["x[0]", "x[1]"]),
        ((1,), None, True, ["x"]),
        ((), None, True, ["x"]),
        ((1, 2), FEATURES, True, FEATURES),
        ((2, 2), None, True, ["x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]"]),
        ((2, 2), FEATURES, True, ["x[0,age]", "x[0,height]", "x[1,age]", "x[1,height]"]),
    ],
)
def test_every_feature_has_a_name(shape: tuple[int, ...], names: Any, alone: bool, expected: list[str]) -> None:
    assert feature_labels(explained(shape, names=names), "x", alone) == expected


@pytest.mark.parametrize(
    ("outputs", "names", "expected"),
    [
        ((1,), None, [""]),
        ((1,), "risk", ["risk"]),
        ((2,), ["cat", "dog"], ["cat", "dog"]),
        ((2,), [["cat", "dog"]] * 3, ["top 1", "top 2"]),
        ((1,), [["cat"]] * 3, ["top 1"]),
        ((2, 2), None, ["output[0,0]", "output[0,1]", "output[1,0]", "output[1,1]"]),
    ],
)
def test_every_output_has_a_name(outputs: tuple[int, ...], names: Any, expected: list[str]) -> None:
    assert result_of(explained((2,), outputs, output_names=names)).output_labels == expected


@pytest.mark.parametrize("outputs", [(1,), (2,), (2, 3)])
def test_the_additivity_error_counts_every_input_and_what_is_unattributed(outputs: tuple[int, ...]) -> None:
    unattributed = np.random.default_rng(1).normal(size=(3, *outputs))
    parts = [explained(shape, outputs, unattributed=unattributed) for shape in [(2,), (2, 4), ()]]
    np.testing.assert_allclose(result_of(*parts).additivity_error, 0, atol=1e-12)
    np.testing.assert_allclose(result_of(*parts, error=0.5).additivity_error, 0.5)


class TestNpz:
    def test_one_input(self, tmp_path: Path) -> None:
        explanation = explained((2,), (3,), FEATURES, standard_error=np.ones((3, 2, 3)), output_names=list("abc"))
        write_result(tmp_path / "out.npz", result_of(explanation, error=0.25))
        with np.load(tmp_path / "out.npz") as archive:
            arrays = dict(archive)
        np.testing.assert_array_equal(arrays.pop("values"), explanation.values)
        np.testing.assert_array_equal(arrays.pop("data"), explanation.data)
        np.testing.assert_array_equal(arrays.pop("base_values"), explanation.base_values)
        np.testing.assert_allclose(arrays.pop("outputs"), explanation.base_values + explanation.values.sum(1) - 0.25)
        np.testing.assert_allclose(arrays.pop("additivity_error"), 0.25)
        np.testing.assert_array_equal(arrays.pop("standard_error"), 1)
        assert arrays.pop("feature_names").tolist() == FEATURES
        assert arrays.pop("output_names").tolist() == ["a", "b", "c"]
        assert not arrays

    def test_several_inputs(self, tmp_path: Path) -> None:
        write_result(tmp_path / "out.npz", result_of(explained((2,), names=FEATURES), explained((4, 4))))
        with np.load(tmp_path / "out.npz") as archive:
            shapes = {name: array.shape for name, array in archive.items()}
        assert shapes == {
            "values/in0": (3, 2),
            "values/in1": (3, 4, 4),
            "data/in0": (3, 2),
            "data/in1": (3, 4, 4),
            "feature_names/in0": (2,),
            "base_values": (3,),
            "outputs": (3,),
            "additivity_error": (3,),
        }

    def test_ranked_outputs(self, tmp_path: Path) -> None:
        names = [["cat", "dog"], ["dog", "cat"], ["emu", "cat"]]
        ranks = [[0, 1], [1, 0], [2, 0]]
        write_result(tmp_path / "out.npz", result_of(explained((2,), (2,), output_names=names, output_indexes=ranks)))
        with np.load(tmp_path / "out.npz") as archive:
            assert archive["output_names"].tolist() == names
            assert archive["output_indexes"].tolist() == ranks


class TestCsv:
    def test_one_output(self, tmp_path: Path) -> None:
        result = result_of(explained((2,), names=FEATURES, output_names="risk"))
        write_result(tmp_path / "out.csv", result)
        header, rows = read_csv(tmp_path / "out.csv")
        assert header == ["age", "height", "base_value", "f(x)"]
        expected = np.column_stack([result.first.values, result.first.base_values, result.outputs])
        assert [[float(cell) for cell in row] for row in rows] == expected.tolist()

    def test_several_outputs_and_axes(self, tmp_path: Path) -> None:
        result = result_of(explained((1, 2), (2,), output_names=["cat", "dog"]))
        write_result(tmp_path / "out.csv", result)
        header, rows = read_csv(tmp_path / "out.csv")
        assert header[:4] == ["cat:in0[0,0]", "cat:in0[0,1]", "cat:base_value", "cat:f(x)"]
        assert header[4:6] == ["dog:in0[0,0]", "dog:in0[0,1]"]
        assert float(rows[2][5]) == result.first.values[2, 0, 1, 1]

    def test_several_inputs(self, tmp_path: Path) -> None:
        result = result_of(explained((2,), names=FEATURES), explained((1,)))
        write_result(tmp_path / "out.csv", result)
        header, rows = read_csv(tmp_path / "out.csv")
        assert header == ["in0[age]", "in0[height]", "in1", "base_value", "f(x)"]
        assert sum(float(cell) for cell in rows[1][:4]) == pytest.approx(float(rows[1][4]))

    def test_ranked_outputs_name_the_output(self, tmp_path: Path) -> None:
        write_result(tmp_path / "out.csv", result_of(explained((1,), (2,), output_names=[["cat", "dog"]] * 3)))
        header, rows = read_csv(tmp_path / "out.csv")
        assert (header[0], header[4]) == ("top 1:output", "top 2:output")
        assert (rows[2][0], rows[2][4]) == ("cat", "dog")

    def test_the_one_ranked_output(self, tmp_path: Path) -> None:
        write_result(tmp_path / "out.csv", result_of(explained((1,), (1,), output_names=[["cat"], ["dog"], ["cat"]])))
        header, rows = read_csv(tmp_path / "out.csv")
        assert header == ["top 1:output", "top 1:in0", "top 1:base_value", "top 1:f(x)"]
        assert [row[0] for row in rows] == ["cat", "dog", "cat"]

    def test_too_many_columns(self, tmp_path: Path) -> None:
        huge = explained((300, 300), (3,))
        with pytest.raises(InputError, match=r"out\.csv: 270006 columns are too many for a table: write an \.npz file"):
            write_result(tmp_path / "out.csv", result_of(huge))
        assert list(tmp_path.iterdir()) == []


def test_parquet_has_the_columns_of_csv(tmp_path: Path) -> None:
    result = result_of(explained((2,), (2,), FEATURES, output_names=[["cat", "dog"]] * 3))
    write_result(tmp_path / "out.parquet", result)
    write_result(tmp_path / "out.csv", result)
    table = pq.read_table(tmp_path / "out.parquet")
    header, rows = read_csv(tmp_path / "out.csv")
    assert table.column_names == header
    assert table.to_pylist()[1]["top 2:height"] == float(rows[1][header.index("top 2:height")])
    assert table.to_pylist()[1]["top 2:output"] == "dog"


class TestWholeOrNotAtAll:
    def test_an_error_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "out.bin"
        path.write_bytes(b"old")

        def interrupted() -> None:
            with whole_file(path) as handle:
                handle.write(b"new")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["out.bin"]

    def test_the_new_file_replaces_the_old_one(self, tmp_path: Path) -> None:
        path = tmp_path / "out.bin"
        path.write_bytes(b"old")
        with whole_file(path) as handle:
            handle.write(b"new")
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["out.bin"]

    def test_a_disk_that_is_full(self, tmp_path: Path) -> None:
        with (
            pytest.raises(InputError, match=r"out\.bin: cannot be written: No space left"),
            whole_file(tmp_path / "out.bin"),
        ):
            raise OSError(28, "No space left on device")
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.xlsx", r"cannot be written: attributions go to \.npz, \.csv, \.parquet files"),
        ("gone/out.csv", "cannot be written: there is no folder .*gone"),
        ("folder.csv", "cannot be written: it is a folder"),
    ],
)
def test_a_target_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=message):
        check_target(tmp_path / name)
    with pytest.raises(InputError, match=message):
        write_result(tmp_path / name, result_of(explained((2,))))


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"out\.csv: cannot be written to the folder .*: Permission denied"):
        check_target(tmp_path / "out.csv")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"write \.parquet files: pip install 'deepshap-ir\[tables\]'"):
        check_target(tmp_path / "out.parquet")
