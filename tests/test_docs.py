"""The documentation says what is true: its code runs, its commands parse, its references are complete and fresh."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import nbformat
import pytest
import torch
import yaml

import dcptools
from dcptools import errors, findings, plots, widgets
from dcptools.cli import convert_command, main_group
from dcptools.demo import Demo
from dcptools.demo.__main__ import main as demo_command

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if path.exists()]
RENDERED = sorted((DOCS / "notebooks").glob("*.md"))  # their code is that of the notebooks, which run by themselves
MAX_IMAGE_BYTES = 200_000
COMMANDS = {"dcptools": main_group, "dcptools.convert": convert_command, "dcptools.demo": demo_command}
LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)")
NOT_RUN = re.compile(r"<!-- not run: .*\S.* -->")


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    text: str
    line: int  # of its first line of code, from 1
    opted_out: bool


def blocks_of(path: Path) -> Iterator[Block]:
    lines = path.read_text("utf-8").splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r"(```+)(\w*)", lines[at])
        if fence is None:
            at += 1
            continue
        end = next(i for i in range(at + 1, len(lines)) if lines[i].rstrip() == fence[1])
        before = next((line for line in reversed(lines[:at]) if line.strip()), "")
        yield Block(fence[2], "\n".join(lines[at + 1 : end]) + "\n", at + 2, bool(NOT_RUN.fullmatch(before.strip())))
        at = end + 1


def prose_of(path: Path) -> str:
    """The page without code."""
    text = re.sub(r"^(```+)\w*\n.*?^\1$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


class TestPython:
    @pytest.mark.parametrize("path", PAGES, ids=page_id)
    def test_the_blocks_of_a_page_run_one_after_the_other(self, path: Path, demo: Demo, tmp_path: Path) -> None:
        blocks = [block for block in blocks_of(path) if block.language == "python" and not block.opted_out]
        names: dict[str, Any] = {
            "load_dir": str(demo.checkpoint),
            "model_assets_dir": str(demo.assets),
            "save_dir": str(tmp_path / "model"),
        }
        for block in blocks:
            padded = "\n" * (block.line - 1) + block.text  # so that a traceback names the page's line
            exec(compile(padded, str(path), "exec"), names)

    @pytest.mark.parametrize("comment", ["", "<!-- not run: -->", "<!-- not run -->"])
    def test_a_block_is_left_out_only_with_a_reason(self, comment: str, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(f"{comment}\n\n```python\n1 / 0\n```\n")
        assert [block.opted_out for block in blocks_of(page)] == [False]
        page.write_text("<!-- not run: needs a cluster -->\n```python\n1 / 0\n```\n")
        assert [block.opted_out for block in blocks_of(page)] == [True]

    @pytest.mark.parametrize("path", PAGES, ids=page_id)
    def test_every_block_says_what_it_is_in(self, path: Path) -> None:
        known = {"python", "sh", "text", "pycon", "toml", "yaml", "console"}
        assert {block.language for block in blocks_of(path)} <= known


def commands_of(path: Path) -> Iterator[list[str]]:
    """The words of each command in the page's shell blocks."""
    for block in blocks_of(path):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                stop = next((i for i, word in enumerate(words) if re.fullmatch(r"[|;>&]+", word)), len(words))
                if words:
                    yield words[:stop]


def parse(words: list[str]) -> None:
    """Let click parse a command of this project, without running it; other commands are left alone."""
    words = words[1:] if words[0] == "srun" else words
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    if words[:2] == ["python", "-m"] and words[2].partition(".")[0] == "dcptools":
        words = words[2:]
    elif words[0] != "dcptools":
        return
    command, arguments = COMMANDS[words[0]], words[1:]
    if isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    with contextlib.suppress(click.exceptions.Exit):  # --version, --help
        command.make_context(words[0], arguments)


class TestShell:
    @pytest.mark.parametrize("path", PAGES, ids=page_id)
    def test_commands_have_only_options_that_exist(self, path: Path) -> None:
        for words in commands_of(path):
            parse(words)

    def test_an_option_that_does_not_exist_is_noticed(self) -> None:
        for wrong in (
            "python -m dcptools.convert x --shards 5GB",
            "dcptools plan x --dtype int4",
            "srun torchrun --nnodes 2 -m dcptools.convert x --shards 5GB",
        ):
            with pytest.raises(click.UsageError):
                parse(shlex.split(wrong))
        with pytest.raises(KeyError):
            parse(["dcptools", "transmogrify"])

    @pytest.mark.parametrize("path", PAGES, ids=page_id)
    def test_make_has_the_targets_that_are_named(self, path: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
        named = {words[1] for words in commands_of(path) if words[0] == "make"}
        named |= set(re.findall(r"`make ([a-z-]+)`", path.read_text("utf-8")))
        assert named <= targets

    def test_the_job_of_kubernetes_is_one(self) -> None:
        """Its arguments are a command of torchrun, for as many machines as it has pods."""
        (block,) = [block for block in blocks_of(DOCS / "cluster.md") if block.language == "yaml"]
        service, job = yaml.safe_load_all(block.text)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        parse([*container["command"], *container["args"]])
        assert f"--nnodes={job['spec']['completions']}" in container["args"]
        endpoint = f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
        assert f"--rdzv-endpoint={endpoint}" in container["args"]


class TestReadme:
    """What stands at its top, with a checkpoint that VeOmni saved."""

    @pytest.fixture(autouse=True)
    def files(self, demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trainer = ROOT / "tests" / "data" / "trainers" / "veomni-qwen3-moe"
        shutil.copytree(trainer / "checkpoint", tmp_path / "step-2")
        shutil.copytree(demo.assets, tmp_path / "assets")
        shutil.copy(trainer / "config.json", tmp_path / "assets")
        monkeypatch.chdir(tmp_path)

    def test_commands_print_what_is_shown(self) -> None:
        blocks = [block.text for block in blocks_of(ROOT / "README.md") if block.language == "console"]
        assert len(blocks) == 2
        for block in blocks:
            command, shown = block.removeprefix("$ dcptools ").split("\n", 1)
            words = [sys.executable, "-m", "dcptools", *shlex.split(command)]
            printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            for part in shown.split("...\n"):
                assert part in printed

    def test_the_model_loads(self) -> None:
        first = next(commands_of(ROOT / "README.md"))
        assert "dcptools.convert" in first
        subprocess.run([sys.executable, *first[1:]], check=True, capture_output=True)
        loading = next(block for block in blocks_of(ROOT / "README.md") if block.language == "python")
        names: dict[str, Any] = {}
        exec(loading.text, names)
        assert type(names["model"]).__name__ == "Qwen3MoeForCausalLM"
        assert names["model"].dtype == torch.bfloat16


class TestComplete:
    @pytest.mark.parametrize("module", [dcptools, plots, widgets], ids=lambda module: module.__name__)
    def test_every_public_name_has_a_place_in_the_reference(self, module: Any) -> None:
        documented = set(re.findall(r"^### (\S+)$", text_of("api.md"), flags=re.MULTILINE))
        in_table = {f"dcptools.{name}" for name in error_names()}
        assert {f"{module.__name__}.{name}" for name in module.__all__} <= documented | in_table

    def test_every_error_class_is_in_the_reference(self) -> None:
        assert set(re.findall(r"^\| `(\w+)` \| `", text_of("api.md"), flags=re.MULTILINE)) >= error_names()

    def test_the_table_of_findings_has_every_code_with_its_severity_meaning_and_advice(self) -> None:
        kinds = {code: (kind.severity, kind.meaning, findings.advice(code)) for code, kind in findings.CODES.items()}
        assert finding_rows() == kinds

    def test_every_option_of_convert_is_explained(self) -> None:
        explained = set(re.findall(r"--[a-z-]+", text_of("convert.md")))
        options = {name for parameter in convert_command.params for name in parameter.opts if name.startswith("--")}
        assert options <= explained


def error_names() -> set[str]:
    return {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.DcptoolsError)}


def finding_rows() -> dict[str, tuple[str, str, str]]:
    """Code to severity, meaning and advice, from the page."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \| (.+?) \| (.+) \|$", text_of("findings.md"), flags=re.MULTILINE)
    return {code: (severity, meaning, advice) for code, severity, meaning, advice in rows}


class TestTroubleshooting:
    def test_the_messages_are_those_of_the_code(self) -> None:
        said = "\0".join(" ".join(text.split()) for text in messages())
        rows = re.findall(r"^\| `([^`]+)` \|", text_of("troubleshooting.md"), flags=re.MULTILINE)
        assert len(rows) > 25
        pieces = {piece.strip() for row in rows for piece in row.split("…")}
        assert {piece for piece in pieces if piece not in said} == set()


def messages() -> Iterator[str]:
    """Every text in the sources; where something is put into it, a mark."""
    for path in sorted((ROOT / "dcptools").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (value.value if isinstance(value, ast.Constant) else "\1" for value in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


class TestFresh:
    @pytest.mark.parametrize("name", ["cli", "api"])
    def test_a_generated_page_is_what_its_script_writes(self, name: str) -> None:
        script = DOCS / "scripts" / f"{name}.py"
        assert runpy.run_path(str(script))["render"]() == text_of(f"{name}.md"), f"run: python {page_id(script)}"

    def test_the_rendered_notebooks_are_those_of_today(self) -> None:
        script = DOCS / "scripts" / "notebooks.py"
        written_by = runpy.run_path(str(script))
        with_parameters, with_links = written_by["with_parameters"], written_by["with_links"]
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            cells = nbformat.read(path, as_version=4).cells
            page = DOCS / "notebooks" / f"{path.stem}.md"
            code = [with_parameters(cell) + "\n" for cell in cells if cell.cell_type == "code"]
            assert [b.text for b in blocks_of(page) if b.language == "python"] == code, f"run: python {page_id(script)}"
            prose = page.read_text("utf-8")
            said = [with_links(cell.source) for cell in cells if cell.cell_type == "markdown"]
            assert [each for each in said if each not in prose] == []


class TestLinks:
    @pytest.mark.parametrize("path", [*PAGES, *RENDERED], ids=page_id)
    def test_links_lead_to_files_and_headings_that_exist(self, path: Path) -> None:
        for target, fragment in links_of(path):
            file = path.parent / target if target else path
            assert file.is_file(), f"{target} does not exist"
            assert not fragment or fragment in anchors_of(file), f"{target} has no heading {fragment!r}"

    def test_every_image_is_used_small_and_described(self) -> None:
        pages = "\n".join(path.read_text("utf-8") for path in (*PAGES, *RENDERED))
        used = {Path(name).name: about for about, name in re.findall(r"!\[(.*?)\]\(([^)\s]+)\)", pages)}
        images = {path.name: path for path in DOCS.rglob("*.png")}
        assert images.keys() == used.keys()
        assert [name for name, about in used.items() if len(about) < 15] == []
        assert [name for name, path in images.items() if path.stat().st_size > MAX_IMAGE_BYTES] == []

    def test_the_navigation_has_every_page(self) -> None:
        listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
        assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def links_of(path: Path) -> Iterator[tuple[str, str]]:
    """Path and fragment of each link to another file or heading of the repository."""
    text = prose_of(path)
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.MULTILINE):
        if not re.match(r"[a-z]+:", link):
            target, _, fragment = link.partition("#")
            yield target, fragment


def anchors_of(path: Path) -> set[str]:
    """The anchors that both GitHub and mkdocs give to the headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


class TestSite:
    def test_mkdocs_builds_without_a_warning_and_fetches_nothing(self, tmp_path: Path) -> None:
        pytest.importorskip("material", reason="mkdocs-material is not installed")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        pages = sorted((tmp_path / "site").rglob("*.html"))
        assert len(pages) >= len(RENDERED) + 12
        for page in pages:
            loaded = re.findall(
                r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]+)", page.read_text()
            )
            assert loaded == [], f"{page.name} loads from elsewhere"

    def test_the_theme_has_no_fonts_of_others(self) -> None:
        loader = type("Loader", (yaml.SafeLoader,), {})
        assert yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), loader)["theme"]["font"] is False
