from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from onnx import parser
from typer.testing import CliRunner, Result

from deepshap_ir import DeepExplainer, __version__
from deepshap_ir.commands import explain_files
from deepshap_ir.commands.cli import app
from deepshap_ir.commands.messages import OPTIONS, one_line
from deepshap_ir.engine.registry import BUILT_IN

TABULAR = """
    tabular (float[N, 3] x) => (float[N, 2] y)
    <float[3, 2] weight = {1, -2, 3, 0.5, -1, 2}, float[2] bias = {0.25, -1}>
    { product = MatMul(x, weight) sum = Add(product, bias) y = Tanh(sum) }
"""
TWO_INPUTS = """
    two (float[N, 2] a, float[N, 1] b) => (float[N, 1] y)
    <float[2, 1] weight = {1, -2}>
    { product = MatMul(a, weight) y = Mul(product, b) }
"""
COLUMNS = ["age", "height", "weight"]
BACKGROUND = "age,height,weight\n0,0,0\n0.5,-0.5,0.25\n0.1,0.2,0.3\n"
SAMPLES = "weight,age,height\n0.3,1,-0.2\n-0.4,0.5,0.6\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model on three columns, a background and two samples."""
    monkeypatch.chdir(tmp_path)
    save(TABULAR)
    Path("background.csv").write_text(BACKGROUND)
    Path("samples.csv").write_text(SAMPLES)
    return tmp_path


def save(text: str, name: str = "model.onnx") -> None:
    onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {text}'), name)


def deepshap(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, list(arguments))


def explain(*more: str, out: str = "out.npz") -> Result:
    return deepshap("explain", "model.onnx", "-b", "background.csv", "-s", "samples.csv", "-o", out, *more)


def rows(text: str) -> np.ndarray[Any, Any]:
    """The table in the order of the background's columns."""
    header, *lines = csv.reader(text.splitlines())
    return np.array([[float(line[header.index(name)]) for name in COLUMNS] for line in lines], np.float32)


def refused(result: Result, *messages: str) -> None:
    """Exit code 2, one line on stderr that has all of `messages`, and no attributions written."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("deepshap: error: ")
    assert result.stderr.count("\n") == 1
    for message in messages:
        assert message in result.stderr
    assert not any(Path(name).is_file() for name in ("out.npz", "out.csv", "picture.png"))


@pytest.mark.usefixtures("folder")
class TestExplain:
    def test_the_numbers_are_those_of_the_explainer(self) -> None:
        result = explain()
        assert result.exit_code == 0, result.output
        explainer = DeepExplainer("model.onnx", rows(BACKGROUND))
        with np.load("out.npz") as archive:
            np.testing.assert_allclose(archive["values"], explainer.shap_values(rows(SAMPLES)))
            np.testing.assert_allclose(archive["base_values"], explainer(rows(SAMPLES)).base_values)
            np.testing.assert_array_equal(archive["data"], rows(SAMPLES))
            assert archive["feature_names"].tolist() == COLUMNS
            assert np.abs(archive["additivity_error"]).max() < 1e-5
            total = archive["values"].sum(axis=1) + archive["base_values"]
            np.testing.assert_allclose(total, archive["outputs"], atol=1e-5)

    def test_a_number_for_all_rows(self) -> None:
        save("scaled (float[N, 3] x, float s) => (float[N, 3] y) { y = Mul(x, s) }")
        x, scale = rows(SAMPLES), np.float32(2.5)
        np.savez("background.npz", x=rows(BACKGROUND), s=scale)
        np.savez("samples.npz", s=scale, x=x)
        result = deepshap("explain", "model.onnx", "-b", "background.npz", "-s", "samples.npz", "-o", "out.npz")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("model.onnx: 2 samples, 3 references")
        with np.load("out.npz") as archive:
            np.testing.assert_allclose(archive["values/x"].sum(1), 2.5 * (x - rows(BACKGROUND).mean(0)), atol=1e-6)
        np.savez("samples.npz", s=scale, x=np.float32(1))
        Path("out.npz").unlink()
        result = deepshap("explain", "model.onnx", "-b", "background.npz", "-s", "samples.npz", "-o", "out.npz")
        refused(result, "'x': holds a single number, expected an array [N, *features]")

    def test_what_is_printed(self) -> None:
        lines = explain().stdout.splitlines()
        assert lines[0] == "model.onnx: 2 samples, 3 references, output y [2]"
        explainer = DeepExplainer("model.onnx", rows(BACKGROUND))
        phi = explainer.shap_values(rows(SAMPLES))
        for position, name in enumerate(COLUMNS):
            (line,) = [line for line in lines if name in line]
            largest = [phi[i, position, k] for i, k in enumerate(explainer(rows(SAMPLES)).outputs.argmax(axis=1))]
            cells = [float(cell) for cell in line.split("│")[2:5]]
            np.testing.assert_allclose(cells, [np.abs(largest).mean(), *largest], rtol=1e-3)
        assert explainer.expected_value is not None
        expected = ", ".join(f"{value:.4g}" for value in explainer.expected_value)
        assert f"Expected value: {expected}" in lines
        assert lines[-2].startswith("Sum to delta: expected value + attributions miss f(x) by at most ")
        assert lines[-1] == "Wrote out.npz"

    def test_no_bar_and_no_colours_where_there_is_no_terminal(self) -> None:
        result = explain()
        assert result.stderr == ""
        assert "\x1b" not in result.stdout

    def test_a_table_and_a_picture(self) -> None:
        result = explain("--plot", "picture.png", out="out.csv")
        assert result.exit_code == 0, result.output
        assert result.stdout.endswith("Wrote out.csv, picture.png\n")
        with Path("out.csv").open(newline="") as handle:
            header = next(csv.reader(handle))
        assert header[:4] == ["Output 0:age", "Output 0:height", "Output 0:weight", "Output 0:base_value"]
        assert Path("picture.png").read_bytes().startswith(b"\x89PNG")

    def test_the_largest_outputs(self) -> None:
        assert explain("--output", "top:1", out="out.parquet").exit_code == 0
        first, second = pq.read_table("out.parquet").to_pylist()
        ranks = DeepExplainer("model.onnx", rows(BACKGROUND)).shap_values(rows(SAMPLES), ranked_outputs=1)[1]
        assert [row["top 1:output"] for row in (first, second)] == [f"Output {k}" for k in ranks[:, 0]]
        assert explain("--output", "sum", "--output", "top:2").exit_code == 0
        with np.load("out.npz") as archive:
            assert archive["output_indexes"].shape == (2, 2)

    @pytest.mark.parametrize("output", ["y", "0"])
    def test_an_output_by_name_or_index(self, output: str) -> None:
        result = explain("--output", output)
        assert "output y [2]" in result.stdout

    def test_a_value_inside_the_model_as_output(self) -> None:
        assert "output product [2]" in explain("--output", "product").stdout
        with np.load("out.npz") as archive:
            np.testing.assert_allclose(archive["values"][0, 0], (1 - 0.2) * np.array([1, -2]), rtol=1e-5)

    def test_a_value_inside_the_model_as_input(self) -> None:
        for name, text in (("background", BACKGROUND), ("samples", SAMPLES)):
            np.save(f"{name}.npy", rows(text)[:, :2])
        result = deepshap(
            *("explain", "model.onnx", "-b", "background.npy", "-s", "samples.npy", "-o", "out.npz", "--input", "sum")
        )
        assert result.exit_code == 0, result.output
        with np.load("out.npz") as archive:
            assert archive["values"].shape == (2, 2, 2)
            np.testing.assert_array_equal(archive["values"][:, 0, 1], 0)

    def test_columns_can_be_left_out(self) -> None:
        assert explain().exit_code == 0
        with np.load("out.npz") as archive:
            expected = archive["values"]
        Path("samples.csv").write_text("id,weight,age,height\nA,0.3,1,-0.2\nB,-0.4,0.5,0.6\n")
        assert explain("--drop", "id").exit_code == 0
        with np.load("out.npz") as archive:
            np.testing.assert_array_equal(archive["values"], expected)

    @pytest.mark.parametrize(
        "more", [["--backend", "reference"], ["--precision", "float64"], ["--memory-limit", "1MB"]]
    )
    def test_ways_to_compute(self, more: list[str]) -> None:
        assert explain(out="other.npz").exit_code == 0
        assert explain(*more, "--no-progress").exit_code == 0
        with np.load("out.npz") as archive, np.load("other.npz") as other:
            np.testing.assert_allclose(archive["values"], other["values"], rtol=1e-4, atol=1e-6)

    def test_rules_that_do_not_sum_are_named(self) -> None:
        result = explain("--rules", "gradient")
        refused(result, "do not sum", "alternatives.gradient_at_sample is not made", "--no-check")
        assert explain("--rules", "gradient", "--no-check").exit_code == 0

    def test_rules_of_a_file_and_the_check(self) -> None:
        Path("rules.py").write_text(
            "from deepshap_ir.extend import rule\n\n@rule('Tanh')\ndef half(ctx, m):\n    return 0.5 * m[0]\n"
        )
        result = explain("--rules", "rules.py")
        refused(result, "do not sum to the model's output", "Tanh node", "--no-check")
        assert explain("--rules", "rules.py", "--no-check").exit_code == 0
        with np.load("out.npz") as archive:
            weights = np.array([[1, -2], [3, 0.5], [-1, 2]])
            delta = rows(SAMPLES) - rows(BACKGROUND).mean(axis=0)
            np.testing.assert_allclose(archive["values"], delta[..., None] * weights / 2, rtol=1e-4)

    def test_several_inputs(self) -> None:
        save(TWO_INPUTS)
        np.savez("background.npz", a=np.zeros((2, 2), np.float32), b=np.ones((2, 1), np.float32))
        np.savez("samples.npz", a=np.ones((3, 2), np.float32), b=np.full((3, 1), 3, np.float32))
        files = ("explain", "model.onnx", "-b", "background.npz", "-s", "samples.npz", "-o", "out.npz")
        result = deepshap(*files)
        assert result.exit_code == 0, result.output
        assert "a[0]" in result.stdout
        with np.load("out.npz") as archive:
            np.testing.assert_allclose(archive["values/a"], [[2, -4]] * 3)
            np.testing.assert_allclose(archive["values/b"], [[-1]] * 3)
        for held in (["--hold", "b"], ["--input", "a"]):
            assert deepshap(*files, *held).exit_code == 0
            with np.load("out.npz") as archive:
                np.testing.assert_allclose(archive["values"], [[3, -6]] * 3)


@pytest.mark.usefixtures("folder")
class TestBadInput:
    @pytest.mark.parametrize(
        ("more", "messages"),
        [
            (["--output", "z"], ["--output: the model has no value 'z'", "'y'"]),
            (["--output", "summ"], ["Did you mean 'sum'?"]),
            (["--output", "3"], ["--output: there is no output 3"]),
            (["--output", "-2"], ["--output: there is no output -2"]),
            (["--output", "top:0"], ["--output top:0: write a number of outputs such as top:3"]),
            (["--output", "top:many"], ["--output top:many: write a number"]),
            (["--output", "top:5"], ["--output top:5: the model has 2 outputs"]),
            (["--output", "y", "--output", "sum"], ["--output is given as y, sum: choose one output"]),
            (["--input", "z"], ["--input: the model has no value 'z'"]),
            (["--hold", "z"], ["--hold: the model has no value 'z'"]),
            (["--hold", "x"], ["does not depend on any input that is explained; it depends on 'x'"]),
            (["--input", "x", "--hold", "x"], ["'x' is both in --input and in --hold"]),
            (["--drop", "id"], ["--drop id: neither background.csv nor samples.csv has such a column"]),
            (["--rules", "saliency"], ["--rules: there is no rule set 'saliency'; there are 'gradient'"]),
            (["--rules", "."], [".: is a folder; rules come from .py files"]),
            (["--custom-ops", "gone.so"], ["--custom-ops: 'gone.so': no such file"]),
            (["--precision", "float64", "--provider", "X"], ["--precision float64 runs on", "takes no --provider"]),
            (["--backend", "reference", "--provider", "X"], ["--backend reference takes no --provider"]),
            (["--rules", "gone.py"], ["gone.py: no such file"]),
            (["--memory-limit", "lots"], ["--memory-limit lots: write a number of bytes such as '2GB'"]),
            (["--provider", "NoSuchProvider"], ["NoSuchProvider"]),
            (["--plot", "picture.gif"], ["picture.gif: cannot be drawn"]),
            (["--plot", "gone/picture.png"], ["gone/picture.png: cannot be written: there is no folder gone"]),
        ],
    )
    def test_options(self, more: list[str], messages: list[str]) -> None:
        refused(explain(*more), *messages)

    def test_a_label_as_output(self) -> None:
        save("two (float[N, 3] x) => (int64[N, 1] label, float[N, 3] p) { p = Exp(x) label = ArgMax<axis = 1>(p) }")
        refused(explain("--output", "label"), "'label' is of whole numbers", "explain an output of floats: 'p'.")
        save("one (float[N, 3] x) => (int64[N, 1] label) { p = Exp(x) label = ArgMax<axis = 1>(p) }")
        refused(explain("--output", "label"), "the numbers that it is chosen by, such as --output p.")

    def test_shapes_are_the_backgrounds(self) -> None:
        np.save("samples.npy", np.ones((2, 4), np.float32))
        result = deepshap("explain", "model.onnx", "-b", "background.csv", "-s", "samples.npy", "-o", "out.npz")
        refused(result, "expected shape [rows, 3], given [2, 4]. The background fixes the shape.\n")

    @pytest.mark.parametrize("out", ["out.xlsx", "gone/out.npz"])
    def test_output_files(self, out: str) -> None:
        refused(explain(out=out), f"{out}: cannot be written")

    @pytest.mark.parametrize(
        ("name", "content", "messages"),
        [
            ("samples.csv", "age,height\n1,2\n", ["samples.csv", "misses 'weight'"]),
            ("samples.csv", "id,age,height,weight\n1,1,2,3\n", ["samples.csv", "has 'id'", "--drop"]),
            ("samples.csv", "age,height,weight\n1,tall,3\n", ["samples.csv, line 2, column 'height': 'tall'"]),
            ("samples.csv", "age,height,weight\n1,2,\n", ["samples", "x", "nan"]),
            ("background.csv", "age,height\n1,2\n", ["background.csv: has 2 columns", "'x' [N, 3] takes 3 numbers"]),
            ("model.onnx", "no model", ["model.onnx", "not an ONNX model"]),
        ],
    )
    def test_files(self, name: str, content: str, messages: list[str]) -> None:
        Path(name).write_text(content)
        refused(explain(), *messages)

    @pytest.mark.parametrize("name", ["model.onnx", "background.csv", "samples.csv"])
    def test_files_that_are_not_there(self, name: str) -> None:
        Path(name).unlink()
        refused(explain(), name, "no such file")

    def test_a_shape_that_does_not_fit(self) -> None:
        np.save("samples.npy", np.ones((2, 4), np.float32))
        result = deepshap("explain", "model.onnx", "-b", "background.csv", "-s", "samples.npy", "-o", "out.npz")
        refused(result, "samples of input 'x'", "3", "4")

    def test_an_operator_without_a_rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(BUILT_IN.rules, "Tanh")
        refused(explain(), "No rule for 1 node", "Tanh", "[1, 2] -> [1, 2]")

    def test_missing_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        refused(explain("--plot", "picture.png"), "pip install 'deepshap-ir[plot]'")
        refused(explain(out="out.parquet"), "pip install 'deepshap-ir[tables]'")

    def test_what_is_not_an_error_of_the_user_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("inside")

        monkeypatch.setattr(explain_files, "explain_files", broken)
        result = explain()
        assert result.exit_code == 1
        assert isinstance(result.exception, ZeroDivisionError)

    def test_a_warning_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = explain_files.explain_files

        def warned(*arguments: Any, **settings: Any) -> Any:
            warnings.warn("numbers are small", stacklevel=1)
            return original(*arguments, **settings)

        monkeypatch.setattr(explain_files, "explain_files", warned)
        result = explain()
        assert result.exit_code == 0
        assert result.stderr == "deepshap: warning: numbers are small\n"


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["explain", "m.onnx", "--bakground", "b.npy"], ["No such option: --bakground", "--background"]),
        (["explain"], ["Missing argument 'model'.", "See: deepshap explain --help"]),
        (["explain", "m.onnx"], ["Missing option '--background'"]),
        (["explain", "m.onnx", "-b", "b", "-s", "s", "-o", "o.npz", "--backend", "gpu"], ["'gpu'", "onnxruntime"]),
        (["explode"], ["No such command 'explode'", "See: deepshap --help"]),
        (["demo", "cats"], ["'cats'", "digits", "See: deepshap demo --help"]),
    ],
    ids=["unknown option", "no model", "no background", "unknown backend", "unknown command", "unknown demo"],
)
def test_a_wrong_option_is_said_in_one_line(arguments: list[str], messages: list[str]) -> None:
    refused(CliRunner().invoke(app, arguments, prog_name="deepshap"), *messages)


def test_long_messages_lose_their_middle() -> None:
    assert one_line("one") == "one"
    assert one_line("first\n  second:\n third\n") == "first; second: third"
    assert one_line("\n".join(f"line {i}" for i in range(20))).split("; ") == [
        *[f"line {i}" for i in range(4)],
        "... 15 more ... line 19",
    ]


def test_messages_name_options_as_the_command_line_does() -> None:
    message = "Choose one with output=. Try precision='float64' or check_additivity=False, or hold=[name]."
    assert one_line(message) == "Choose one with --output. Try --precision float64 or --no-check, or --hold NAME."


@pytest.mark.parametrize(
    ("message", "here"),
    [
        ("output: no 'y'.\noutput: z", "--output: no 'y'. output: z"),
        ("ranked_outputs=9: 3 outputs", "--output top:9: 3 outputs"),
        ("Explain fewer: ranked_outputs=.", "Explain fewer: --output top:K."),
        ("more than memory_limit=1,000; run", "more than --memory-limit 1,000; run"),
        ("such as output='a b'.", "such as --output 'a b'."),
        ("Give it with custom_ops=[...] (see", "Give it with --custom-ops LIBRARY (see"),
        (
            "Give one with rules={'Op': my_rule}, where",
            "Give one with --rules FILE.py, with @rule('Op') above my_rule, where",
        ),
        ("hold it: hold={'b': array}.", "hold it: in Python hold={'b': array}."),
        ("say where: batch_axes={input: axis}.", "say where: in Python batch_axes={input: axis}."),
        ("the outputs: 'rules', and no_output=3, a/output=3", "the outputs: 'rules', and no_output=3, a/output=3"),
    ],
)
def test_arguments_become_options(message: str, here: str) -> None:
    assert one_line(message) == here


def test_options_in_messages_are_those_of_the_command() -> None:
    shown = deepshap("explain", "--help").stdout
    assert [option for option in OPTIONS.values() if option not in shown] == []


@pytest.mark.usefixtures("folder")
class TestInspect:
    def test_a_table(self) -> None:
        result = deepshap("inspect", "model.onnx")
        assert result.exit_code == 0, result.output
        lines = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
        assert lines[:3] == ["model.onnx", "input x: float32 [N, 3]", "output y: float32 [N, 2]"]
        assert [line.split()[:2] for line in lines if line.endswith(" exact")] == [
            ["Add", "1"],
            ["MatMul", "1"],
            ["Tanh", "1"],
        ]
        assert lines[-1] == "Every operator has a rule."

    def test_rule_sets_by_name(self) -> None:
        result = deepshap("inspect", "model.onnx", "--rules", "integrated_gradients")
        assert result.exit_code == 0
        assert "alternatives.integrated_gradients" in result.stdout
        refused(deepshap("inspect", "model.onnx", "--rules", "saliency"), "no rule set 'saliency'", "'reveal_cancel'")

    def test_an_operator_without_a_rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(BUILT_IN.rules, "Tanh")
        result = deepshap("inspect", "model.onnx")
        assert result.exit_code == 1
        assert "UNSUPPORTED" in result.stdout
        assert "No rule for Tanh: write one (see deepshap_ir.extend) and give it with --rules" in result.stdout
        Path("rules.py").write_text(
            "from deepshap_ir.extend import rule\n\n@rule('Tanh')\ndef mine(ctx, m):\n    return m[0]\n"
        )
        helped = deepshap("inspect", "model.onnx", "--rules", "rules.py")
        assert helped.exit_code == 0
        assert "mine" in helped.stdout

    def test_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        result = deepshap("inspect", "model.onnx", "--json", "--output", "sum")
        found = json.loads(result.stdout)
        assert result.exit_code == 0
        assert found["inputs"] == {"x": "float32 [N, 3]"}
        assert {row["operator"]: row["exact"] for row in found["operators"]} == {"MatMul": True, "Add": True}
        monkeypatch.delitem(BUILT_IN.rules, "MatMul")
        result = deepshap("inspect", "model.onnx", "--json", "--output", "sum")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["supported"] is False

    def test_a_model_that_is_refused(self) -> None:
        save("noisy (float[N, 2] x) => (float[N, 2] y) { noise = RandomNormalLike(x) y = Add(x, noise) }")
        result = deepshap("inspect", "model.onnx")
        assert result.exit_code == 1
        assert "RandomNormalLike node" in result.stdout

    def test_shapes(self) -> None:
        assert deepshap("inspect", "model.onnx", "--shape", "x=4,3").exit_code == 0
        for text in ("x", "x=", "x=1,b", "x=0,3", "=1,3"):
            refused(deepshap("inspect", "model.onnx", "--shape", text), f"--shape {text}: write NAME=1,3,224,224")
        refused(deepshap("inspect", "model.onnx", "--shape", "x=1,4"), "'x'")

        both = deepshap("inspect", "model.onnx", "--shape", "x=4,3", "--shape", "x=5,3")
        refused(both, "--shape x=5,3: another shape is given for 'x'")

    def test_rows_that_are_not_there(self) -> None:
        refused(deepshap("inspect", "model.onnx", "-b", "gone.npy"), "gone.npy: no such file")

    def test_no_model(self) -> None:
        refused(deepshap("inspect", "gone.onnx"), "gone.onnx", "no such file")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("out", "more", "message"),
    [
        ("made.npz", (), "made.npz: cannot be written: a model goes to an .onnx file"),
        ("gone/made.onnx", (), "gone/made.onnx: cannot be written: there is no folder gone"),
        ("made.onnx", ("--output", "y"), "model.onnx: is taken as ONNX, which stays as it is: leave out --output"),
        ("made.onnx", ("--shape", "x=1,3", "--output", "y"), "leave out --shape and --output"),
        ("made.onnx", ("--background", "gone.csv"), "gone.csv: no such file"),
        ("made.onnx", ("--output", "top:2"), "--output top:2: a model is written with whole outputs: name one"),
        ("made.onnx", ("--output", "y", "--output", "sum"), "--output is given as y, sum: choose one output"),
    ],
)
def test_conversions_that_are_refused(out: str, more: tuple[str, ...], message: str) -> None:
    refused(deepshap("convert", "model.onnx", "-o", out, *more), message)
    assert not Path(out).exists()


def test_the_demo_leaves_numbers_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = deepshap("demo", "digits", "my digits")
    assert result.exit_code == 0, result.output
    names = {path.name for path in Path("my digits").iterdir()}
    assert names == {"model.onnx", "background.npy", "samples.npy", "attributions.npz", "picture.png"}
    command = shlex.split(result.stdout.splitlines()[0])
    assert command[:4] == ["$", "deepshap", "explain", "my digits/model.onnx"]
    with np.load("my digits/attributions.npz") as archive:
        first = archive["values"]
        assert first.shape == (20, 1, 8, 8, 10)
        assert np.abs(archive["additivity_error"]).max() < 1e-4 * np.abs(archive["outputs"]).max()
        assert archive["outputs"].argmax(axis=1).tolist() == [digit for digit in range(10) for _ in range(2)]
    again = subprocess.run(
        [sys.executable, "-m", "deepshap_ir.commands.cli", *command[2:]],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert again.stdout.splitlines()[-1] == "Wrote my digits/attributions.npz, my digits/picture.png"
    with np.load("my digits/attributions.npz") as archive:
        np.testing.assert_allclose(archive["values"], first, atol=1e-5)


def test_the_demo_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits-demo").write_text("a file in the place of the folder")
    refused(deepshap("demo", "digits"), "the demo cannot be written to 'digits-demo'")


def test_version() -> None:
    result = deepshap("--version")
    assert (result.exit_code, result.stdout) == (0, f"deepshap-ir {__version__}\n")


@pytest.mark.parametrize("command", [[], ["explain"], ["inspect"], ["demo"]])
def test_help_waits_for_nothing_heavy(command: list[str]) -> None:
    code = f"""if True:
        import sys
        from deepshap_ir.commands.cli import app
        try:
            app({[*command, "--help"]!r})
        finally:
            heavy = {{"numpy", "onnx", "onnxruntime", "rich.table", "matplotlib", "shap"}} & set(sys.modules)
            assert not heavy, heavy
    """
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Usage: ")


def test_a_traceback_for_what_nobody_expected() -> None:
    code = """if True:
        import deepshap_ir.commands.results
        from deepshap_ir.commands.cli import app

        def broken(path):
            raise ZeroDivisionError("inside")

        deepshap_ir.commands.results.check_target = broken
        app(["explain", "model.onnx", "-b", "b.npy", "-s", "s.npy", "-o", "out.npz"])
    """
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert run.stderr.endswith("ZeroDivisionError: inside\n")
