"""Pages that MkDocs makes from notebooks, from documents at the top of the repository and from command help.

MkDocs loads this module by the entry `hooks` of mkdocs.yml. Pages show the outputs that notebooks hold;
``python docs/hooks.py`` (make notebooks) makes them anew.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMANDS = ROOT / "lulc" / "cli"

TOP = ("CHANGES", "CONTRIBUTING", "SECURITY", "LICENSE")
"""Documents at the top of the repository that are pages as well."""

SECONDS = 600
"""Longest time of a cell; a cell that takes longer has gone wrong."""


def execute(path: Path) -> Any:
    """Run a notebook from a clean state and return it with its outputs; nothing is written beside it."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # The kernel starts beside a copy of the data, so that a notebook needs nothing else but the package.
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(path.parent / "data", Path(folder, "data"))
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", []):
            # Reports of progress and warnings tell nothing on a page; a test looks through them.
            output.get("data", {}).pop("text/html", None)
    return notebook


def store(path: Path) -> None:
    """Run a notebook and keep its outputs in it."""
    notebook = execute(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


def render(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """Return an executed notebook as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            heading = _last_heading(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                parts.append(f"![{heading}]({file})")
            else:
                text = output.get("text") or data.get("text/plain", "")
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave pages that this checkout lacks out of the navigation."""
    made = {f"notebooks/{path.stem}.md" for path in NOTEBOOKS} | set(_documents())
    config.nav = [_prune(item, made, Path(config.docs_dir)) for item in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add notebooks, the documents at the top of the repository, and the help of the commands."""
    for path in NOTEBOOKS:
        markdown, pictures = render(nbformat.read(path, as_version=4), path.stem)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=markdown))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for name, content in _documents().items():
        files.append(File.generated(config, name, content=content))
    return files


def _documents() -> dict[str, str]:
    """Return the pages that are made from other files, by name."""
    pages = {"index.md": "README.md"} | {f"{n.lower()}.md": f"{n}.md" for n in TOP}
    texts = {page: _moved((ROOT / source).read_text(encoding="utf-8")) for page, source in pages.items()}
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    texts["citation.md"] = f"# Citation\n\n```yaml\n{citation}```\n"
    texts["reference/commands.md"] = _commands()
    return texts


def _moved(text: str) -> str:
    """Return a document from the top of the repository with its links as they are within docs/."""
    text = text.replace("](docs/", "](").replace("](CITATION.cff)", "](citation.md)")
    return re.sub(rf"\]\(({'|'.join(TOP)})\.md\)", lambda m: f"]({m[1].lower()}.md)", text)


def _commands() -> str:
    """Return the help of every command at the top of the repository."""
    parts = ["# Commands\n\nWhat `--help` prints."]
    for script in sorted(path for path in ROOT.glob("*.py") if (COMMANDS / path.name).exists()):
        called = [sys.executable, script.name, "--help"]
        told = subprocess.run(
            called, cwd=ROOT, env=os.environ | {"COLUMNS": "100"}, capture_output=True, text=True, check=True
        )
        parts.append(f"## {script.name}\n\n```text\n{told.stdout.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def _prune(item: Any, made: set[str], docs: Path) -> Any:
    if isinstance(item, dict):
        name, value = next(iter(item.items()))
        if isinstance(value, list):
            kept = [_prune(child, made, docs) for child in value]
            return {name: [child for child in kept if child is not None]}
        return item if value in made or (docs / value).exists() else None
    return item


def _last_heading(source: str) -> str:
    headings = re.findall(r"^#+ (.+)$", source, re.MULTILINE)
    return headings[-1] if headings else "Figure"


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        store(notebook)
