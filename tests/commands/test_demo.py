"""The digits demo: the packaged files are what their page says, and arrive whole or not at all."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from deepshap_ir.commands import demo
from deepshap_ir.errors import InputError


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    return demo.write_digits(tmp_path / "new" / "folder")


def test_three_complete_files_and_nothing_else(paths: dict[str, Path]) -> None:
    assert {key: path.name for key, path in paths.items()} == {
        "model": "model.onnx",
        "background": "background.npy",
        "samples": "samples.npy",
    }
    assert sorted(path.name for path in paths["model"].parent.iterdir()) == sorted(p.name for p in paths.values())
    onnx.checker.check_model(onnx.load(paths["model"]), full_check=True)
    assert np.load(paths["background"]).shape == (100, 1, 8, 8)
    assert np.load(paths["samples"]).shape == (20, 1, 8, 8)


def test_the_network_reads_the_digits_at_any_batch_size(paths: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(paths["model"].read_bytes(), providers=["CPUExecutionProvider"])
    for key, labels in {"background": np.repeat(range(10), 10), "samples": np.repeat(range(10), 2)}.items():
        rows = np.load(paths[key])
        assert rows.dtype == np.float32
        assert rows.min() == 0
        assert rows.max() == 1
        (logits,) = session.run(["logits"], {"image": rows})
        assert np.mean(logits.argmax(axis=1) == labels) >= 0.95
        (one,) = session.run(["logits"], {"image": rows[:1]})
        np.testing.assert_allclose(one, logits[:1], rtol=1e-4, atol=1e-4)


def test_the_model_is_small_and_tells_nothing_of_the_machine_that_made_it(paths: dict[str, Path]) -> None:
    content = paths["model"].read_bytes()
    assert len(content) < 200_000
    for trace in (b"stack_trace", b'.py"', b"/root", b"/home", b"site-packages"):
        assert trace not in content


def test_files_of_an_earlier_demo_are_replaced(paths: dict[str, Path]) -> None:
    paths["samples"].write_bytes(b"half a file")
    demo.write_digits(paths["samples"].parent)
    assert np.load(paths["samples"]).shape == (20, 1, 8, 8)


def test_a_folder_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(
        InputError, match=r"the demo cannot be written to '.*taken': .*[Nn]ame a folder that you may write"
    ):
        demo.write_digits(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_nothing_is_written_where_one_file_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "samples.npy").mkdir()
    with pytest.raises(InputError, match=r"'samples.npy' is a folder there"):
        demo.write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npy"]
