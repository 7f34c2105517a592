"""Write docs/notebooks: copies of the notebooks as Markdown, with the outputs of a run on the demo.

    python docs/scripts/notebooks.py

Needs the extras `notebook` and `test`. A widget leaves its static view, a figure a picture. Outputs hold times and
memory, so a test compares the sources only.
"""

from __future__ import annotations

import base64
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
PAGES = ROOT / "docs" / "notebooks"
PARAMETERS = {"load_dir": "step-100", "model_assets_dir": "assets", "save_dir": "model"}
NOTE = "<!-- Written by docs/scripts/notebooks.py from notebooks/{name}.ipynb -->\n"
COLOURS = 128
SCALED = 0.5  # the pictures have two pixels for each that they take


def main() -> None:
    from dcptools.demo import default_demo

    demo = default_demo()
    PAGES.mkdir(exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(demo.checkpoint, Path(scratch, "step-100"))
            shutil.copytree(demo.assets, Path(scratch, "assets"))
            notebook = executed(path, Path(scratch))
        for old in PAGES.glob(f"{path.stem}-*.png"):
            old.unlink()
        text = "\n".join(blocks(notebook, path.stem))
        page = PAGES / f"{path.stem}.md"
        page.write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
        print(f"{page}: {page.stat().st_size:,} bytes")


def executed(path: Path, directory: Path) -> nbformat.NotebookNode:
    """The notebook after a run in that directory, on the checkpoint that is there."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = with_parameters(cell)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(directory)}}).execute()
    return notebook


def with_parameters(cell: nbformat.NotebookNode) -> str:
    """The source of a cell, with the paths of the run in the one that is tagged for it."""
    source = str(cell.source)
    if "parameters" in cell.metadata.get("tags", ()):
        for name, value in PARAMETERS.items():
            source = re.sub(rf'^{name} = ""', f'{name} = "{value}"', source, flags=re.MULTILINE)
    return source


def with_links(prose: str) -> str:
    """Links to other notebooks as links to their pages."""
    return re.sub(r"\]\((\S+)\.ipynb\)", r"](\1.md)", prose)


def blocks(notebook: nbformat.NotebookNode, name: str) -> Iterator[str]:
    """The page in pieces, an empty line after each."""
    for number, cell in enumerate(notebook.cells):
        yield f"```python\n{cell.source}\n```\n" if cell.cell_type == "code" else f"{with_links(cell.source)}\n"
        for output in cell.get("outputs", ()):
            yield shown(output, f"{name}-{number}")
    yield NOTE.format(name=name)  # last, since a page's title is looked for in its first line


def shown(output: nbformat.NotebookNode, stem: str) -> str:
    """An output as Markdown; progress bars and what goes to stderr are left out."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```\n" if output.name == "stdout" else ""
    data = output.get("data", {})
    if "image/png" in data:
        return picture(data, stem)
    if "text/html" in data:
        return plain_html(data["text/html"])
    is_widget = "application/vnd.jupyter.widget-view+json" in data
    return "" if is_widget else f"```text\n{data.get('text/plain', '').rstrip()}\n```\n"


def picture(data: dict[str, Any], stem: str) -> str:
    """Save the picture beside the page, small, with the figure's own description."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    size = [round(SCALED * pixels) for pixels in image.size]
    image.resize(size, Image.Resampling.LANCZOS).quantize(COLOURS, dither=Image.Dither.NONE).save(
        PAGES / f"{stem}.png", optimize=True
    )
    about = data["text/plain"].removeprefix("<Figure: ").removesuffix(">").replace("[", "(").replace("]", ")")
    return f"![{about}]({stem}.png)\n"


def plain_html(text: str) -> str:
    """HTML without styles, which a page of documentation has its own, and without empty lines, which would end it."""
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' (class|style|border)=("[^"]*"|\'[^\']*\')', "", text)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()) + "\n"


if __name__ == "__main__":
    main()
