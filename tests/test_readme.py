"""The Python of the README and of the guide to rules runs as it stands, one block after the other."""

import re
from pathlib import Path

import pytest

from deepshap_ir.commands.demo import write_digits
from deepshap_ir.engine.registry import collected

README = Path(__file__).parents[1] / "README.md"
GUIDE = Path(__file__).parents[1] / "rules" / "README.md"


def run_blocks(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_digits(tmp_path / "digits-demo")
    monkeypatch.chdir(tmp_path)
    run_blocks(README)
    printed = capsys.readouterr().out
    gap = re.search(r"largest sum-to-delta error: (\S+)", printed)
    assert gap is not None
    assert float(gap[1]) < 1e-4
    assert "rule='__main__.relu'" in printed


def test_the_guide_to_rules_runs() -> None:
    with collected() as rules:
        run_blocks(GUIDE)
    assert list(rules.rules) == ["my.domain::Root"]
