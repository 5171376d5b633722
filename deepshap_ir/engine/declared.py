"""Operators of users that take many rows at once: without a declaration they are run row by row."""

from __future__ import annotations

from deepshap_ir.engine.batching import broadcast, own_batch
from deepshap_ir.engine.lowering import BATCHING, BatchingRule
from deepshap_ir.errors import RuleError

WAYS: dict[str, BatchingRule] = {"element-wise": broadcast, "first axis": own_batch}


def takes_batches(*operators: str, how: str = "element-wise") -> None:
    """Declare how operators of your own, each ``"domain::OpType"``, take many rows at once.

    An operator that is not declared is run on one row at a time, which is slow and always right.
    `deepshap_ir.testing.check_rule` finds a wrong declaration: multipliers then depend on other rows.

    Parameters
    ----------
    how : ``"element-wise"``: any shape, and operands that broadcast; ``"first axis"``: the rows of the first input's
        first axis are computed apart, and the other inputs do not vary.

    Raises
    ------
    RuleError : an unknown way, an operator of the standard, or one that is declared otherwise.
    """
    if how not in WAYS:
        raise RuleError(f"takes_batches: how={how!r}; choose {' or '.join(map(repr, WAYS))}")
    for operator in operators:
        if "::" not in operator:
            raise RuleError(f"takes_batches: {operator!r} is an operator of the standard; yours is 'domain::OpType'")
        if BATCHING.get(operator, WAYS[how]) is not WAYS[how]:
            raise RuleError(f"takes_batches: {operator!r} is declared already, in another way")
    BATCHING.update(dict.fromkeys(operators, WAYS[how]))
