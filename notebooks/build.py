"""Notebooks from their sources: `python -m notebooks.build [NAME ...]` executes NAME.md and writes NAME.ipynb.

The sources are Markdown as jupytext reads it. The first cell of each is setup.py, the last line of its first text a
badge. A notebook is executed in an empty folder, with the embedded model and MiniLM; what it prints and draws is kept.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.md"))
TIMEOUT = 900  # seconds of a cell
BARS = re.compile(r"^.*\d+%\|.*\n?", re.MULTILINE)  # of progress


def source(name: str) -> nbformat.NotebookNode:
    """Returns the cells of a notebook before they are executed."""
    notebook = jupytext.read(FOLDER / f"{name}.md")
    notebook.metadata.pop("jupytext", None)
    url = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}/blob/main/notebooks/"
    first, *rest = notebook.cells
    first.source += f"\n\n{badge}{name}.ipynb)"
    setup = nbformat.v4.new_code_cell((FOLDER / "setup.py").read_text(encoding="utf-8").rstrip())
    notebook.cells = [first, setup, *rest]
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{i}"
    return notebook


def execute(name: str) -> nbformat.NotebookNode:
    """Returns an executed notebook; a cell that fails raises nbclient's CellExecutionError."""
    notebook = source(name)
    paths = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{paths}", "HF_HUB_OFFLINE": "1"}
    environment.pop("COLAB_RELEASE_TAG", None)
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=TIMEOUT, kernel_name="python3", resources=where, coalesce_streams=True
        )
        client.execute(env=environment)
        return _tidy(notebook, {f"{folder}/": "", f"{ROOT}/": "", str(ROOT): "."})


def _tidy(notebook: nbformat.NotebookNode, paths: dict[str, str]) -> nbformat.NotebookNode:
    """Removes times, progress and this machine's folders from what was printed."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            for kind, text in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output.data[kind] = _shown(text, paths)
            if output.output_type == "stream":
                output.text = _shown(output.text, paths)
                output.text = re.sub(r"\n{3,}", "\n\n", BARS.sub("", output.text)).lstrip("\n")
        if "outputs" in cell:
            cell.outputs = [each for each in cell.outputs if each.get("text", "shown").strip() and not _is_widget(each)]
    notebook.metadata.pop("language_info", None)
    return notebook


def _shown(text: str, paths: dict[str, str]) -> str:
    for path, shown in paths.items():
        text = text.replace(path, shown)
    return text


def _is_widget(output: nbformat.NotebookNode) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})  # a bar of progress


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; None = the arguments of the process."""
    parser = argparse.ArgumentParser(prog="python -m notebooks.build", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none = all of them")
    for name in parser.parse_args(arguments).names or NAMES:
        nbformat.write(execute(name), FOLDER / f"{name}.ipynb")
        print(FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
