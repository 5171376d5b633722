"""The Python of the README runs as it stands, one block after the other."""

import re
from pathlib import Path

import pytest

from deepshap_ir.demo import write_digits

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    write_digits(tmp_path / "digits-demo")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    gap = re.search(r"largest sum-to-delta error: (\S+)", printed)
    assert gap is not None
    assert float(gap[1]) < 1e-4
    assert "rule='__main__.relu'" in printed
