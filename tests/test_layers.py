"""The table of torch's modules in ``converters/README.md``: a line for each, and a sample of them as they are now."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import layers, pages

PAGE = Path(__file__).parent.parent / "converters" / "README.md"


def lines() -> dict[str, list[str]]:
    """Cells of the page's lines, by module."""
    text = pages.inside(PAGE, layers.TABLE.marks)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    return {row[0]: row[1:] for row in rows[1:]}


def test_every_module_has_a_line() -> None:
    assert list(lines()) == layers.names()
    assert set(layers.names()) == {*layers.CASES, *layers.LEFT_OUT}


@pytest.mark.parametrize(
    "name", ["Bilinear", "CosineSimilarity", "LPPool2d", "LSTMCell", "MaxUnpool2d", "Softmax2d", "Tanhshrink"]
)
def test_a_sample_is_explained_as_the_table_says(name: str) -> None:
    found = layers.TABLE.check(name)
    exports, rules, _ = lines()[name]
    assert (exports, rules) == ("yes", ", ".join(found.rules))
    assert found.fine, f"gap {found.error}: {found.reason}"


def test_what_is_refused_has_its_reason() -> None:
    found = layers.TABLE.check("CTCLoss")
    exports, rules, reason = lines()["CTCLoss"]
    assert (exports, rules) == ("no", "")
    assert found.reason == reason
