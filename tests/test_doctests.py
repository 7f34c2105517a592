"""Every example in the package runs, and every public name explains itself.

Examples may use the demo checkpoint (``demo``), a fresh directory (``tmp_dir``) and the six verbs without importing
them; everything else must be in the module that the example stands in.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import dcptools
from dcptools.demo import Demo

PACKAGE = Path(dcptools.__file__).parent


def modules_with_examples() -> list[str]:
    """Names of the modules that have a prompt in them; the others need not be imported, and some take a second."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if ">>>" in path.read_text(encoding="utf-8"))
    dotted = (".".join(("dcptools", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in paths)
    return [name.removesuffix(".__init__") for name in dotted]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_run(name: str, demo: Demo, tmp_path: Path) -> None:
    module = importlib.import_module(name)
    verbs = {verb: getattr(dcptools, verb) for verb in ("read", "preview", "plan", "write", "convert", "inspect")}
    names = {**verbs, "demo": demo, "tmp_dir": tmp_path, **vars(module)}
    tests = doctest.DocTestFinder().find(module, name, globs=names)
    runner = doctest.DocTestRunner()
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert "".join(said) == ""
    assert runner.tries > 0


PUBLIC = {name: getattr(dcptools, name) for name in dcptools.__all__}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


def section(docstring: str, title: str) -> str:
    """The text of a numpy section, up to the next one; empty if there is none."""
    parts = re.split(r"^(\w+)\n-+\n", docstring, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(title, "")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    docstring = PUBLIC[name].__doc__
    assert docstring
    assert not docstring.startswith(f"{name}(")  # what a dataclass gets without one


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_names_each_parameter_what_it_raises_and_an_example(name: str) -> None:
    docstring = inspect.getdoc(FUNCTIONS[name]) or ""
    terms = re.findall(r"^(\w[\w, ]*)$", section(docstring, "Parameters"), flags=re.MULTILINE)
    named = [parameter for term in terms for parameter in term.split(", ")]
    assert sorted(named) == sorted(inspect.signature(FUNCTIONS[name]).parameters)
    assert re.match(r"\w+", section(docstring, "Raises"))
    assert ">>> " in section(docstring, "Examples")


def test_the_line_of_the_package_docstring_is_the_line_of_the_api(demo: Demo, tmp_path: Path) -> None:
    steps = re.findall(r"^    (\w+ +=.*?)  #", dcptools.__doc__ or "", flags=re.MULTILINE)
    assert len(steps) == 4
    namespace: dict[str, Any] = {"dcptools": dcptools, "load_dir": demo.checkpoint, "save_dir": tmp_path / "out"}
    exec("\n".join(steps).replace("...", "100_000"), namespace)
    values = [namespace[name] for name in ("checkpoint", "mapping", "plan", "report")]
    assert [type(value).__name__ for value in values] == ["Checkpoint", "KeyMapping", "ShardPlan", "Report"]
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("name", sorted(name for name in dcptools.__all__ if name[0].islower()))
def test_a_verb_is_exported_as_the_function_and_not_shadowed_by_a_module(name: str) -> None:
    assert inspect.isfunction(getattr(dcptools, name))
