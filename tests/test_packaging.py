"""One package from three folders: what is installed, what an import costs, and which names are public."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FOLDERS = {"deepshap_ir": "deepshap_ir", "converters": "deepshap_ir.converters", "rules": "deepshap_ir.rules"}
OPTIONAL = {
    "captum",
    "keras",
    "matplotlib",
    "onnxscript",
    "pandas",
    "pyarrow",
    "shap",
    "skl2onnx",
    "sklearn",
    "tensorflow",
    "tf2onnx",
    "torch",
}
PUBLIC = {
    "deepshap_ir": {
        "AdditivityError",
        "DeepExplainer",
        "DeepShapError",
        "InputError",
        "MissingDependencyError",
        "ModelError",
        "NonFiniteError",
        "RuleError",
        "UnsupportedOperatorError",
    },
    "deepshap_ir.extend": {
        "Array",
        "Context",
        "Emitter",
        "Expansion",
        "Graph",
        "Node",
        "Parts",
        "RuleError",
        "RuleSet",
        "UnsupportedOperatorError",
        "Value",
        "Windows",
        "as_graph",
        "expand",
        "named_rules",
        "resized_axes",
        "rule",
        "takes_batches",
    },
}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules() -> Iterator[tuple[str, Path]]:
    """All Python files of the packages as (path in an installation, file); the two links are not followed."""
    for folder, package in FOLDERS.items():
        for parent, _, names in os.walk(ROOT / folder):
            if (Path(parent) / "__init__.py").exists():
                inside = Path(*package.split(".")) / Path(parent).relative_to(ROOT / folder)
                yield from ((str(inside / name), Path(parent, name)) for name in names if name.endswith(".py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy so that nothing stale in a ``build`` folder gets in and nothing new is left."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(out)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (file,) = out.iterdir()
    return file


def test_listed_packages_are_the_folders_with_an_init_file() -> None:
    setuptools = project()["tool"]["setuptools"]
    found = {str(Path(path).parent).replace(os.sep, ".") for path, _ in modules() if path.endswith("__init__.py")}
    assert set(setuptools["packages"]) == found
    assert setuptools["package-dir"] == {package: folder for folder, package in FOLDERS.items()}


@pytest.mark.parametrize("folder", ["rules", "converters"])
def test_the_link_for_editors_is_relative(folder: str) -> None:
    assert os.readlink(ROOT / "deepshap_ir" / folder) == f"../{folder}"


def test_the_wheel_holds_every_module_and_the_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = {f"deepshap_ir/data/digits.{ending}" for ending in ("onnx", "npz", "md")}
    assert names == {path for path, _ in modules()} | data | {"deepshap_ir/py.typed"}


def test_the_wheel_carries_its_license_and_its_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        contents = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if "dist-info/" in name}
    assert contents["LICENSE"].startswith("MIT License")
    assert "deepshap = deepshap_ir.commands.cli:main" in contents["entry_points.txt"]


def test_no_optional_package_is_imported_before_it_is_used() -> None:
    script = (
        "import importlib, pkgutil, sys, deepshap_ir\n"
        "for module in pkgutil.walk_packages(deepshap_ir.__path__, 'deepshap_ir.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print(*sorted({OPTIONAL!r} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("file", sorted((ROOT / "rules").glob("[!_]*.py")), ids=lambda file: file.stem)
def test_a_built_in_rule_imports_what_a_users_rule_imports(file: Path) -> None:
    """`deepshap_ir.extend`, numpy, the standard library, and the rules beside it: nothing of the core's inside."""
    for statement in ast.walk(ast.parse(file.read_text())):
        if isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{file.name}:{statement.lineno}: relative import"
            names = [statement.module or ""]
        elif isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            continue
        for name in names:
            ours = name == "deepshap_ir.extend" or name.startswith("deepshap_ir.rules.")
            theirs = name.partition(".")[0] in {"numpy", *sys.stdlib_module_names}
            assert ours or theirs, f"{file.name}:{statement.lineno}: {name}"


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_change_on_purpose(module: str) -> None:
    imported = importlib.import_module(module)
    assert set(imported.__all__) == PUBLIC[module]
    assert all(hasattr(imported, name) for name in imported.__all__)


def test_version_is_the_one_of_the_distribution() -> None:
    assert importlib.import_module("deepshap_ir").__version__ == project()["project"]["version"]


def test_every_dependency_has_one_pinned_version_that_fits() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    metadata = project()["project"]
    extras = chain.from_iterable(metadata["optional-dependencies"].values())
    for requirement in map(Requirement, [*metadata["dependencies"], *extras]):
        if requirement.name != metadata["name"]:
            pin = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(pin), f"{requirement} against {pin}"
