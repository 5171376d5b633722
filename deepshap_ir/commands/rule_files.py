"""Rules of the command line, for one explainer: ``deepshap explain --rules my_rules.py --rules reveal_cancel``."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from deepshap_ir.engine.registry import RuleSet, collected
from deepshap_ir.engine.rule_sets import find_rule_set
from deepshap_ir.errors import DeepShapError, InputError, RuleError


def load_rules(given: Iterable[str | os.PathLike[str]]) -> list[RuleSet]:
    """Run Python files, find rule sets by name, and return them in the order in which they are asked.

    First the rules of all files: those that the decorators `deepshap_ir.extend.rule` and ``expand`` register, and those
    of every `RuleSet` that a file binds to a name. Then the sets for all operators that files bind, and the named ones.

    Parameters
    ----------
    given : names of rule sets, and files: what ends in .py, contains a slash, or is there.

    Raises
    ------
    InputError
        A file is not there or is not Python, or there is no rule set of a name.
    RuleError
        A file fails, has no rules, or two rules are for the same operator or node.
    """
    paths, general = [], []
    for one in given:
        text = os.fspath(one)
        if text.endswith(".py") or Path(text).name != text or Path(text).exists():
            paths.append(Path(text))
            continue
        try:
            general.append(find_rule_set(text))
        except InputError as error:
            raise InputError(f"{error}; rules of your own come from a .py file") from None
    with collected() as rules:
        for position, path in enumerate(paths):
            before = _count(rules)
            found = _run(path, f"deepshap_rules_{position}_{path.stem}")
            for other in found:
                if other.general or other.last or other.all is not None:
                    general.insert(position, other)
                else:
                    _add(rules, other)
            if _count(rules) == before and not found:
                raise RuleError(f"{path}: registers no rule; write @rule('domain::Operator') above a function (ctx, m)")
    return [rules, *general]


def _run(path: Path, name: str) -> list[RuleSet]:
    """Run a file as the module `name` and return the rule sets that it binds."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; rules come from .py files")
    if not path.is_file():
        raise InputError(f"{path}: no such file (the current folder is {os.getcwd()})")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: rules come from .py files")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not Python: {error}") from error
    except DeepShapError as error:
        raise RuleError(f"{path}: {error}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise RuleError(f"{path}{where}: {type(error).__name__}: {error}") from error
    return [value for value in vars(module).values() if isinstance(value, RuleSet)]


def _add(rules: RuleSet, other: RuleSet) -> None:
    for entries in other.rules.values():
        for entry in entries:
            register = rules.rule(
                entry.operator, since=entry.since, until=entry.until, exact=entry.exact, parts=entry.parts
            )
            register(entry.function)
    for operator, function in other.expansions.items():
        rules.expand(operator)(function)
    for name, entry in other.nodes.items():
        rules.for_node(name, exact=entry.exact)(entry.function)


def _count(rules: RuleSet) -> int:
    return sum(map(len, rules.rules.values())) + len(rules.expansions) + len(rules.nodes)
