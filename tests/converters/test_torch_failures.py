"""What a user reads where torch cannot export a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepshap_ir import DeepExplainer, InputError, ModelError
from tests.converters.modules import Net, rows


def checked(net: Net, x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise ValueError("not finite")
    return x


def lacking(net: Net, x: Tensor) -> Tensor:
    return x.nanmedian(1).values


def wrong(net: Net, x: Tensor) -> Tensor:
    return x + torch.zeros(7)


MESSAGES: dict[Callable[[Net, Tensor], Tensor], tuple[type[Exception], str]] = {
    checked: (
        ModelError,
        r"by a value of the data, at .*test_torch_failures.py:\d+: if not torch.isfinite\(x\).all\(\):; compute both",
    ),
    lacking: (ModelError, "aten.nanmedian.*; compute it with other functions of torch"),
    wrong: (InputError, r"fails on rows of the background .*must match.*, at .*:\d+: return x \+ torch.zeros\(7\)"),
}


@pytest.mark.parametrize("forward", MESSAGES)
def test_the_message_says_where_and_what_to_do(forward: Callable[..., Any]) -> None:
    kind, message = MESSAGES[forward]
    with pytest.raises(kind, match=message):
        DeepExplainer(Net(forward), rows(4))
