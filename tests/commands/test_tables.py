from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepshap_ir.commands.tables import Input, read_rows
from deepshap_ir.errors import InputError, MissingDependencyError

AGES = Input("x", (3,), np.dtype(np.float32))
IMAGE = Input("image", (1, 2, 2), np.dtype(np.float32))
TOKENS = Input("ids", (None,), np.dtype(np.int64))
CSV = "age,height,weight\n1,2,3\n4.5,-5e3,6\n"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file and return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


Written = Callable[[str, str | bytes], Path]


class TestArrays:
    def test_npy_is_the_only_input(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.arange(6.0).reshape(2, 3))
        rows = read_rows(tmp_path / "x.npy", [AGES])
        np.testing.assert_array_equal(rows.arrays["x"], [[0, 1, 2], [3, 4, 5]])
        assert (len(rows), rows.columns, rows.feature_names) == (2, None, {})

    def test_npz_is_read_by_input_name(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", ids=np.ones((2, 4), int), x=np.zeros((2, 3)), labels=np.zeros(2))
        rows = read_rows(tmp_path / "x.npz", [AGES, TOKENS])
        assert {name: values.shape for name, values in rows.arrays.items()} == {"x": (2, 3), "ids": (2, 4)}

    def test_one_array_of_any_name_for_one_input(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", np.ones((2, 3)))
        assert read_rows(tmp_path / "x.npz", [AGES]).arrays["x"].shape == (2, 3)

    @pytest.mark.parametrize(
        ("arrays", "inputs", "message"),
        [
            ({"a": 1, "b": 2}, [AGES], r"x\.npz: has no array 'x' among 'a', 'b'"),
            ({"x": np.ones((2, 3))}, [AGES, TOKENS], r"has no array 'ids' among 'x'"),
            ({"x": np.array([["a"]])}, [AGES], r"'x': holds text, expected numbers"),
            ({"x": np.array([[{}]], dtype=object)}, [AGES], r"its array 'x' is not of numbers"),
            ({"x": np.float64(3)}, [AGES], r"holds a single number, expected an array \[N, \*features\]"),
            (
                {"x": np.ones((2, 3)), "ids": np.ones((3, 1))},
                [AGES, TOKENS],
                "different numbers of rows.*'x': 2, 'ids': 3",
            ),
            ({"x": np.ones((0, 3))}, [AGES], "has no rows"),
        ],
    )
    def test_npz_that_does_not_fit(
        self, tmp_path: Path, arrays: dict[str, Any], inputs: list[Input], message: str
    ) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(InputError, match=message):
            read_rows(tmp_path / "x.npz", inputs)

    def test_npy_for_several_inputs(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.ones((2, 3)))
        with pytest.raises(
            InputError, match=r"holds one array, the model has the inputs 'x' \[N, 3\], 'ids' \[N, \?\]"
        ):
            read_rows(tmp_path / "x.npy", [AGES, TOKENS])

    @pytest.mark.parametrize("name", ["x.npy", "x.npz"])
    def test_a_file_that_is_not_what_its_name_says(self, written: Written, name: str) -> None:
        for content in (b"", b"no numbers", b"\x93NUMPY\x01\x00", b"PK\x03\x04 cut short"):
            with pytest.raises(InputError, match=rf"is not a \{name[1:]} file of numbers, or is truncated"):
                read_rows(written(name, content), [AGES])

    def test_a_truncated_array(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npy"
        np.save(path, np.ones((20, 3)))
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(InputError, match="or is truncated"):
            read_rows(path, [AGES])

    def test_npy_and_npz_are_not_mixed_up(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.ones((2, 3)))
        (tmp_path / "x.npy").rename(tmp_path / "array.npz")
        np.savez(tmp_path / "y.npz", x=np.ones((2, 3)))
        (tmp_path / "y.npz").rename(tmp_path / "archive.npy")
        with pytest.raises(InputError, match=r"rename it to \.npy"):
            read_rows(tmp_path / "array.npz", [AGES])
        with pytest.raises(InputError, match=r"rename it to \.npz"):
            read_rows(tmp_path / "archive.npy", [AGES])


class TestCsv:
    def test_the_header_names_the_features(self, written: Written) -> None:
        rows = read_rows(written("x.csv", CSV), [AGES])
        np.testing.assert_array_equal(rows.arrays["x"], np.array([[1, 2, 3], [4.5, -5000, 6]], np.float32))
        assert rows.arrays["x"].dtype == np.float32
        assert rows.columns == ("age", "height", "weight")
        assert rows.feature_names == {"x": ["age", "height", "weight"]}

    def test_columns_are_matched_by_name(self, written: Written) -> None:
        path = written("x.csv", "weight,age,height\n3,1,2\n")
        rows = read_rows(path, [AGES], columns=["age", "height", "weight"])
        assert rows.arrays["x"].tolist() == [[1, 2, 3]]
        assert rows.feature_names == {"x": ["age", "height", "weight"]}

    def test_other_columns_than_the_background(self, written: Written) -> None:
        path = written("x.csv", "id,age,height\n3,1,2\n")
        message = (
            r"x\.csv: its columns differ .*: it misses 'weight' and has 'id', which the background has not; .* --drop"
        )
        with pytest.raises(InputError, match=message):
            read_rows(path, [AGES], columns=["age", "height", "weight"])

    def test_columns_can_be_left_out(self, written: Written) -> None:
        path = written("x.csv", "id,age,height,weight,label\nA7,1,2,3,yes\n")
        rows = read_rows(path, [AGES], drop=["id", "label", "not there"])
        assert (rows.arrays["x"].tolist(), rows.columns) == ([[1, 2, 3]], ("age", "height", "weight"))

    def test_too_many_columns(self, written: Written) -> None:
        message = r"has 4 columns \('id', 'a', 'b', 'c'\), the input 'x' \[N, 3\] takes 3 numbers per row; .* --drop"
        with pytest.raises(InputError, match=message):
            read_rows(written("x.csv", "id,a,b,c\n1,2,3,4\n"), [AGES])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", r"x\.csv: is empty"),
            ("a,b,c\n", "has no rows"),
            ("a,b,c\n1,2,3\n4,five,6\n", r"x\.csv, line 3, column 'b': 'five' is not a number"),
            ("a,b,c\n1,2\n", r"x\.csv, line 2: 2 values for the 3 columns of line 1"),
            ("a;b;c\n1;2;3\n", "seem to be separated by ';', expected commas"),
            ("1.5,2,3\n4,5,6\n", r"line 1 holds numbers \(1\.5, 2, 3\.\.\.\), expected the names of the columns"),
            ("a,b,a\n1,2,3\n", "several columns are called 'a'"),
            ("a,b,c\n1,2,\xff\n".encode("latin-1"), "is not UTF-8 text"),
            ('a,b,c\n1,2,"3\n' + "x" * 200_000, "line .*field larger than field limit"),
        ],
    )
    def test_a_csv_that_cannot_be_read(self, written: Written, content: str | bytes, message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_rows(written("x.csv", content), [AGES])

    def test_every_column_left_out(self, written: Written) -> None:
        with pytest.raises(InputError, match="no column is left"):
            read_rows(written("x.csv", "a\n1\n"), [AGES], drop=["a"])

    def test_what_spreadsheets_and_pandas_write(self, written: Written) -> None:
        content = '\ufeff"age, years", height ,weight\r\n"1", 2,True\r\n\r\n,FALSE,nan\r\n'
        rows = read_rows(written("x.csv", content), [AGES])
        np.testing.assert_array_equal(rows.arrays["x"], [[1, 2, 1], [np.nan, 0, np.nan]])
        assert rows.columns == ("age, years", "height", "weight")

    def test_numbers_in_order_are_names(self, tmp_path: Path) -> None:
        pd.DataFrame([[1.5, 2.5, 3.5]]).to_csv(tmp_path / "x.csv", index=False)
        assert read_rows(tmp_path / "x.csv", [AGES]).columns == ("0", "1", "2")

    def test_rows_are_laid_out_in_the_shape_of_the_input(self, written: Written) -> None:
        rows = read_rows(written("x.csv", "a,b,c,d\n1,2,3,4\n"), [IMAGE])
        assert rows.arrays["image"].tolist() == [[[[1, 2], [3, 4]]]]
        assert rows.feature_names == {}

    @pytest.mark.parametrize(
        ("shape", "expected"), [(None, (1, 6)), ((None,), (1, 6)), ((None, 3), (1, 2, 3)), ((1, None), (1, 1, 6))]
    )
    def test_a_free_dimension_follows_from_the_columns(
        self, written: Written, shape: tuple[int | None, ...] | None, expected: tuple[int, ...]
    ) -> None:
        rows = read_rows(written("x.csv", "a,b,c,d,e,f\n1,2,3,4,5,6\n"), [Input("x", shape)])
        assert rows.arrays["x"].shape == expected
        assert rows.arrays["x"].dtype == np.float64

    def test_a_free_dimension_that_does_not_come_out(self, written: Written) -> None:
        with pytest.raises(InputError, match=r"'x' \[N, \?, 4\] takes a multiple of 4 numbers per row"):
            read_rows(written("x.csv", "a,b,c\n1,2,3\n"), [Input("x", (None, 4))])

    def test_several_free_dimensions(self, written: Written) -> None:
        with pytest.raises(InputError, match="can be laid out in several ways in the input 'x'"):
            read_rows(written("x.csv", "a,b,c\n1,2,3\n"), [Input("x", (None, None))])
        rows = read_rows(written("y.csv", '"x[0,1]","x[1,0]","x[1,1]","x[0,0]"\n1,2,3,0\n'), [Input("x", (None, None))])
        assert rows.arrays["x"].tolist() == [[[0, 1], [2, 3]]]

    def test_several_inputs_are_told_by_the_names_of_columns(self, written: Written) -> None:
        inputs = [Input("age", (1,)), Input("flag", ()), Input("x", (2, 2))]
        header = '"x[1,1]",age,"x[0,0]","x[0,1]","x[1,0]",flag'
        rows = read_rows(written("x.csv", header + "\n4,50,1,2,3,1\n"), inputs)
        assert {name: values.tolist() for name, values in rows.arrays.items()} == {
            "age": [[50]],
            "flag": [1],
            "x": [[[1, 2], [3, 4]]],
        }

    def test_a_position_that_is_not_there(self, written: Written) -> None:
        with pytest.raises(InputError, match=r"columns 'x\[0\]', 'x\[2\]' do not fill 'x'"):
            read_rows(written("x.csv", "x[0],x[2]\n1,2\n"), [AGES])

    def test_columns_that_name_no_input(self, written: Written) -> None:
        with pytest.raises(InputError, match=r"are called 'input' or 'input\[position\]' .*'age', 'height'"):
            read_rows(written("x.csv", CSV), [AGES, TOKENS])

    def test_one_column_among_many_that_names_no_input(self, written: Written) -> None:
        inputs = [Input("age", (1,)), Input("body_mass", (1,))]
        message = r"after the model's, and 'body/mass' are not; there is no column for 'body_mass' \[N, 1\]$"
        with pytest.raises(InputError, match=message):
            read_rows(written("x.csv", "age,body/mass\n1,2\n"), inputs)
        with pytest.raises(InputError, match=r"and 'id' are not; leave columns out with --drop$"):
            read_rows(written("y.csv", "age,body_mass,id\n1,2,3\n"), inputs)

    @pytest.mark.parametrize(
        ("dtype", "cell", "message"),
        [
            (np.int64, "1.5", r"takes int64, row 2 has 1\.5"),
            (np.int64, "", "takes int64, row 2 has nan"),
            (np.uint8, "256", "takes uint8, row 2 has 256"),
            (np.bool_, "2", "takes bool, row 2 has 2"),
            (np.str_, "2", "takes <U0, a table holds numbers"),
        ],
    )
    def test_numbers_that_the_input_cannot_hold(self, written: Written, dtype: Any, cell: str, message: str) -> None:
        one = Input("x", (2,), np.dtype(dtype))
        with pytest.raises(InputError, match=message):
            read_rows(written("x.csv", f"a,b\n0,1\n0,{cell}\n"), [one])

    def test_whole_numbers_for_an_integer_input(self, written: Written) -> None:
        values = read_rows(written("x.csv", "a,b\n0,1\n1e3,-2.0\n"), [TOKENS]).arrays["ids"]
        assert (values.dtype, values.tolist()) == (np.dtype(np.int64), [[0, 1], [1000, -2]])


class TestParquet:
    def test_the_columns_name_the_features(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"age": [1, 2], "height": [1.5, None], "weight": [True, False]}, index=["a", "b"])
        frame.to_parquet(tmp_path / "x.parquet")
        rows = read_rows(tmp_path / "x.parquet", [AGES])
        np.testing.assert_array_equal(rows.arrays["x"], [[1, 1.5, 1], [2, np.nan, 0]])
        assert rows.columns == ("age", "height", "weight")

    def test_columns_are_matched_by_name_across_formats(self, tmp_path: Path, written: Written) -> None:
        pq.write_table(pa.table({"b": [2], "extra": ["?"], "a": [1]}), tmp_path / "x.parquet")
        columns = read_rows(written("x.csv", "a,b\n1,2\n"), [Input("x")]).columns
        assert read_rows(tmp_path / "x.parquet", [Input("x")], columns, ["extra"]).arrays["x"].tolist() == [[1, 2]]

    def test_a_column_that_is_not_numeric(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"a": [1, 2], "city": [None, "Ulm"]}), tmp_path / "x.parquet")
        with pytest.raises(InputError, match=r"x\.parquet, column 'city': holds string \('Ulm'\), expected numbers"):
            read_rows(tmp_path / "x.parquet", [Input("x")])

    def test_not_parquet(self, written: Written) -> None:
        with pytest.raises(InputError, match=r"is not a \.parquet file, or is truncated"):
            read_rows(written("x.parquet", b"PAR1 and nothing else"), [AGES])

    def test_without_pyarrow(self, written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(
            MissingDependencyError, match=r"to read \.parquet files: pip install 'deepshap-ir\[tables\]'"
        ):
            read_rows(written("x.parquet", b""), [AGES])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for suffix in ("npy", "npz", "csv", "parquet"):
        with pytest.raises(InputError, match=rf"gone\.{suffix}: no such file \(the current folder is "):
            read_rows(tmp_path / f"gone.{suffix}", [AGES])


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(InputError, match=r"x\.csv: cannot be read: Is a directory"):
        read_rows(tmp_path / "x.csv", [AGES])


def test_a_format_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"x\.xlsx: cannot be read: data come from \.npy, \.npz, \.csv, \.parquet files"
    ):
        read_rows(tmp_path / "x.xlsx", [AGES])
