"""The table of Keras layers: a sample of it, and that none is forgotten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.converters import keras_models  # noqa: F401  # silences TensorFlow

from benchmarks import keras_layers, pages  # isort: skip

PAGE = Path(__file__).parents[1] / "converters" / "README.md"


@pytest.mark.parametrize(
    "name", ["Attention", "Conv2DTranspose", "Discretization", "Embedding", "GRUCell", "PReLU", "SeparableConv1D"]
)
def test_layers_of_the_table_sum_to_delta(name: str) -> None:
    outcome = keras_layers.TABLE.check(name)
    assert outcome.fine, outcome
    assert outcome.rules


def test_a_layer_that_cannot_be_done_has_its_reason() -> None:
    outcome = keras_layers.TABLE.check("Hashing")
    assert outcome.exports is False
    assert "StringToHashBucketFast" in outcome.reason
    assert not outcome.fine


def test_the_page_has_every_layer() -> None:
    table = pages.inside(PAGE, keras_layers.TABLE.marks)
    assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE)[1:] == keras_layers.names()
    assert "nothing is known" not in table
