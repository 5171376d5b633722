"""Rules that an installed package brings through the entry-point group, and options of the resolver."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from deepshap_ir.engine import registry
from deepshap_ir.errors import InputError, RuleError
from deepshap_ir.graph import Node


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module on the path that is an entry point of the group."""
    entry = EntryPoint("lab", "lab_rules", "deepshap_ir.rules")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]).select(group=group))
    registry.load_installed_rules.cache_clear()
    return tmp_path / "lab_rules.py"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    sys.modules.pop("lab_rules", None)
    registry.BUILT_IN.rules.pop("lab::Twice", None)
    registry.load_installed_rules.cache_clear()


def test_a_package_brings_rules(installed: Path) -> None:
    installed.write_text(
        'from deepshap_ir.extend import rule\n\n@rule("lab::Twice")\ndef twice(ctx, m):\n    return m[0] * 2.0\n'
    )
    found = registry.Resolver().rule(Node("n", "Twice", ("x",), ("y",), domain="lab"))
    assert found is not None
    assert found.name == "lab_rules.twice"


def test_a_broken_package_is_named(installed: Path) -> None:
    installed.write_text('raise ValueError("no licence")\n')
    with pytest.raises(RuleError, match="'lab_rules' of a package cannot be loaded: no licence; update or uninstall"):
        registry.Resolver()


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(InputError, match="there is no 'maxpool'; there are 'max_pooling', 'max'"):
        registry.Resolver(options={"maxpool": "shapley"})
    with pytest.raises(InputError, match="max_pooling='best'; choose 'shap' or 'shapley'"):
        registry.Resolver(options={"max_pooling": "best"})
