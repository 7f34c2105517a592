"""pyproject.toml, constraints.txt, environment.yml and the Makefile say the same, and say enough."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
TRAINERS = ROOT / "tests" / "data" / "trainers"
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "isal": "python-isal"}
CONDA_ONLY = {"python", "pip"}
CONDA_SPEC = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*) (?P<version>[<>=!~]=?[0-9a-z.*]+(,[<>=!~]=?[0-9a-z.*]+)*)")
OPTIONAL_ROOMS = ("demo", "plots", "widgets")  # what they import need not be there for the command line
BROUGHT_ALONG = {"boto3": "moto", "ipython": "ipykernel", "tokenizers": "transformers", "traitlets": "ipywidgets"}
AT_RUN_TIME = ("zstd", "remote", "transformers", "notebook")  # the extras of a user, not of a developer


def project() -> dict[str, Any]:
    """The `[project]` table."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def core() -> list[Requirement]:
    return [Requirement(text) for text in project()["dependencies"]]


def extra(name: str) -> list[Requirement]:
    return [Requirement(text) for text in project()["optional-dependencies"][name]]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def lower_bound(specifiers: SpecifierSet) -> str:
    """The version behind the one `>=`."""
    (bound,) = [specifier.version for specifier in specifiers if specifier.operator == ">="]
    return bound


def environment() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    return loaded


def conda_specs() -> list[str]:
    """The lines of environment.yml that conda itself resolves."""
    return [entry for entry in environment()["dependencies"] if isinstance(entry, str)]


def conda_parts(spec: str) -> tuple[str, SpecifierSet]:
    """Name and versions; a bare name has no versions."""
    if spec in CONDA_ONLY:
        return spec, SpecifierSet()
    match = CONDA_SPEC.fullmatch(spec)
    assert match, f"not `name >=version`: {spec!r}"
    return match["name"], SpecifierSet(match["version"])


def pins() -> dict[str, str]:
    """Name to version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found: dict[str, str] = {}
    for requirement in requirements:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"constraints.txt pins exactly, unlike {requirement}"
        found[canonicalize_name(requirement.name)] = specifier.version
    assert len(found) == len(requirements), "constraints.txt pins a name twice"
    return found


class TestConstraints:
    @pytest.mark.parametrize("group", ["core", *project()["optional-dependencies"]])
    def test_every_direct_dependency_is_pinned_inside_its_bounds(self, group: str) -> None:
        pinned = pins()
        wanted = core() if group == "core" else extra(group)
        assert names(wanted) <= set(pinned)
        outside = [str(r) for r in wanted if not r.specifier.contains(pinned[canonicalize_name(r.name)])]
        assert outside == []

    def test_torch_comes_first(self) -> None:
        assert next(iter(pins())) == "torch"


class TestEnvironment:
    def test_it_has_what_the_notebooks_need_with_the_bounds_of_pyproject(self) -> None:
        wanted = {
            CONDA_NAMES.get(requirement.name, requirement.name): lower_bound(requirement.specifier)
            for requirement in (*core(), *extra("notebook"))
        }
        parts = [conda_parts(spec) for spec in conda_specs()]
        assert len({name for name, _ in parts}) == len(parts)
        assert {name: lower_bound(versions) for name, versions in parts if name not in CONDA_ONLY} == wanted

    def test_python_has_the_same_range(self) -> None:
        versions = dict(conda_parts(spec) for spec in conda_specs())
        assert versions["python"] == SpecifierSet(project()["requires-python"])

    def test_only_conda_forge_and_the_package_itself_by_pip(self) -> None:
        loaded = environment()
        assert loaded["name"] == project()["name"]
        assert loaded["channels"] == ["conda-forge", "nodefaults"]
        assert loaded["dependencies"][-1] == {"pip": ["-e ."]}
        assert "pip" in loaded["dependencies"], "conda warns when pip is used and not asked for"

    @pytest.mark.parametrize("wrong", ["pytorch>=2.6", "pytorch >=", "pytorch => 2.6", "Pytorch >=2.6", "pytorch", ""])
    def test_a_broken_line_is_noticed(self, wrong: str) -> None:
        with pytest.raises(AssertionError):
            conda_parts(wrong)

    def test_conda_reads_every_line(self) -> None:
        rattler = pytest.importorskip("rattler", reason="py-rattler, conda's own parser, is not installed")
        parsed = [rattler.MatchSpec(spec, strict=True) for spec in conda_specs()]
        assert [spec.name.normalized for spec in parsed] == [conda_parts(spec)[0] for spec in conda_specs()]


class Imports(ast.NodeVisitor):
    """Top-level names that a file imports: `eager` ones when it is imported, `lazy` ones in a function.

    Imports for type checkers alone are in neither.
    """

    def __init__(self) -> None:
        self.eager: set[str] = set()
        self.lazy: set[str] = set()
        self._depth = 0  # functions around this line

    def _add(self, module: str) -> None:
        (self.lazy if self._depth else self.eager).add(module.partition(".")[0])

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0 and node.module:
            self._add(node.module)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def _function(self, node: ast.AST) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _function


def imports_of(source: str) -> Imports:
    visitor = Imports()
    visitor.visit(ast.parse(source))
    return visitor


def files_under(directory: Path) -> Iterator[Path]:
    yield from sorted(path for path in directory.rglob("*.py") if "__pycache__" not in path.parts)


@functools.cache
def installed() -> dict[str, str]:
    """Module name to the name that it was installed by."""
    return {module: canonicalize_name(found[0]) for module, found in packages_distributions().items()}


def distributions(modules: set[str]) -> set[str]:
    """The installable names behind third-party modules."""
    ours = {project()["name"], "tests", *(path.stem for path in (ROOT / "tests").iterdir())}
    foreign = modules - set(sys.stdlib_module_names) - ours
    found = {installed().get(module, canonicalize_name(module)) for module in foreign}
    return {BROUGHT_ALONG.get(name, name) for name in found}


class TestImports:
    """What is imported is declared, so that an install without extras runs."""

    def test_kinds_of_imports_are_told_apart(self) -> None:
        found = imports_of(
            "import a.b, c\nfrom .d import e\nif TYPE_CHECKING:\n    import f\nelse:\n    import g\n"
            "try:\n    import h\nexcept ImportError:\n    pass\n"
            "class C:\n    import i\n    def m(self):\n        from j.k import l\n"
        )
        assert found.eager == {"a", "c", "g", "h", "i"}
        assert found.lazy == {"j"}

    def test_the_library_is_imported_with_its_core_dependencies_alone(self) -> None:
        package = ROOT / project()["name"]
        undeclared = {
            str(path.relative_to(ROOT)): missing
            for path in files_under(package)
            if path.relative_to(package).parts[0].removesuffix(".py") not in OPTIONAL_ROOMS
            if (missing := distributions(imports_of(path.read_text("utf-8")).eager) - names(core()))
        }
        assert undeclared == {}

    @pytest.mark.parametrize(("directory", "extras"), [("dcptools", AT_RUN_TIME), ("tests", (*AT_RUN_TIME, "test"))])
    def test_every_import_is_declared_somewhere(self, directory: str, extras: tuple[str, ...]) -> None:
        declared = names(core()).union(*(names(extra(name)) for name in extras))
        undeclared = {}
        for path in files_under(ROOT / directory):
            if path.parent == TRAINERS:
                continue  # each of these scripts says what it installs, in an environment of its own
            found = imports_of(path.read_text("utf-8"))
            if missing := distributions(found.eager | found.lazy) - declared:
                undeclared[str(path.relative_to(ROOT))] = missing
        assert undeclared == {}


class TestMetadata:
    def test_the_command_is_there_and_can_be_called(self) -> None:
        (script,) = entry_points(group="console_scripts", name="dcptools")
        assert script.value == project()["scripts"]["dcptools"]
        assert callable(script.load())

    def test_the_licence_is_the_one_that_is_named(self) -> None:
        assert project()["license"] == "Apache-2.0"
        text = (ROOT / "LICENSE").read_text("utf-8")
        assert text.split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]
        assert "END OF TERMS AND CONDITIONS" in text

    def test_every_named_file_exists(self) -> None:
        named = [project()["readme"], *project()["license-files"]]
        assert [name for name in named if not (ROOT / name).is_file()] == []

    def test_the_readme_of_the_index_needs_no_other_file(self) -> None:
        text = (ROOT / project()["readme"]).read_text("utf-8")
        links = re.findall(r"\]\(([^)]+)\)|src=[\"']([^\"']+)", text)
        assert [link for link in links if not "".join(link).startswith("https://")] == []
        (command,) = re.findall(r"```sh\n(.+)\n```", text)
        assert command in (ROOT / "README.md").read_text("utf-8")

    def test_the_versions_of_python_are_those_that_are_asked_for(self) -> None:
        minors = [c.rpartition(" ")[2] for c in project()["classifiers"] if re.search(r":: 3\.\d+$", c)]
        wanted = SpecifierSet(project()["requires-python"])
        assert minors == [f"3.{n}" for n in range(30) if wanted.contains(f"3.{n}")]


class TestWheel:
    def test_one_wheel_has_all_and_is_for_every_platform(self, tmp_path: Path) -> None:
        for name in ("pyproject.toml", "PACKAGE.md", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md"):
            shutil.copy(ROOT / name, tmp_path)
        shutil.copytree(ROOT / "dcptools", tmp_path / "dcptools", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (wheel,) = tmp_path.glob("*.whl")
        assert wheel.name.endswith("-py3-none-any.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = {name for name in archive.namelist() if name.startswith("dcptools/")}
        sources = {str(path.relative_to(ROOT)) for path in files_under(ROOT / "dcptools")}
        kinds = ("*.toml", "*.js", "*.css")
        found = (path for kind in kinds for path in (ROOT / "dcptools").rglob(kind))
        data = {"dcptools/py.typed", *(str(path.relative_to(ROOT)) for path in found)}
        assert "dcptools/widgets/table.js" in data
        assert packed == sources | data


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
class TestMakefile:
    def test_alone_it_lists_every_target(self) -> None:
        makefile = (ROOT / "Makefile").read_text("utf-8")
        (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
        shown = make()
        assert shown.returncode == 0, shown.stderr
        assert [line.split()[1] for line in shown.stdout.splitlines()] == phony.split()

    @pytest.mark.parametrize("target", ["install", "demo", "test", "check"])
    def test_torch_is_installed_before_what_would_fetch_another(self, target: str, tmp_path: Path) -> None:
        plan = make("-n", target, f"VENV={tmp_path}/venv")
        assert plan.returncode == 0, plan.stderr
        installs = [line for line in plan.stdout.splitlines() if " install " in line]
        assert f" 'torch=={pins()['torch']}' 2>&1 || " in installs[0]
        assert " -c constraints.txt -e '.[notebook,test,docs]' 2>&1 || " in installs[1]

    def test_an_old_python_is_refused_in_words(self, tmp_path: Path) -> None:
        old = tmp_path / "python3"
        old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n')
        old.chmod(0o755)
        refused = make("install", f"PYTHON={old}", f"VENV={tmp_path}/venv")
        assert refused.returncode != 0
        assert f"dcptools needs Python 3.11 to 3.14, and '{old}' is: Python 3.9.2" in refused.stderr
        assert not (tmp_path / "venv").exists()
