"""What the commands of ``benchmarks/`` write into pages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import layers, pages

MARKS = pages.marks("rows")


def test_only_what_is_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert pages.inside(page, MARKS) == "\nold\n"
    pages.put(page, MARKS, ["a \\1", "b"])
    assert page.read_text() == f"before\n{MARKS[0]}\na \\1\nb\n{MARKS[1]}\nafter\n"
    pages.put(page, MARKS, ["c"])
    assert pages.inside(page, MARKS) == "\nc\n"


@pytest.mark.parametrize("text", ["", MARKS[0], f"{MARKS[1]} {MARKS[0]}"])
def test_a_page_without_the_markers_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page.md has no lines <!-- rows --> and <!-- /rows -->"):
        pages.put(page, MARKS, ["new"])
    assert page.read_text() == text


def test_a_table_of_layers_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("\n".join(layers.TABLE.marks))
    monkeypatch.setattr(sys, "argv", ["layers", "--only", "Tanh", "--write", str(page)])
    assert layers.TABLE.main(None) == 0
    score, _, head, _, *rows = pages.inside(page, layers.TABLE.marks).strip().splitlines()
    assert score.startswith("2 of 2 modules are explained")
    assert head.startswith("| module | exports |")
    assert [row.split("|")[1].strip() for row in rows] == ["Tanh", "Tanhshrink"]
    assert capsys.readouterr().out.splitlines() == [*rows, score]
