"""The notebooks are made of their sources, run from an empty folder, and have what Colab needs."""

import tempfile

import nbformat
import pytest

from notebooks.build import FOLDER, NAMES, execute, source

DRAWN = {"image/png", "text/html", "text/markdown"}


def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_there_are_four():
    assert NAMES == ["evaluate", "posttrain", "search", "tour"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_made_of_its_source_and_has_outputs(name):
    ours, made = committed(name), source(name)
    assert [(cell.cell_type, cell.source) for cell in ours.cells] == [
        (cell.cell_type, cell.source) for cell in made.cells
    ], f"run: python -m notebooks.build {name}"
    assert ours.metadata == made.metadata
    assert ours.metadata.accelerator == "TPU" and ours.metadata.colab.gpuType == "V5E1"
    nbformat.validate(ours)
    outputs = [output for cell in ours.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    said = [output.get("text", "") + output.get("data", {}).get("text/markdown", "") for output in outputs]
    assert not [text for text in said if tempfile.gettempdir() in text]  # nor another folder of the machine


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_shows_what_is_committed(name):
    """Each cell draws as many pictures and tables; what they show differs by machine."""

    def drawn(notebook):
        outputs = [cell.get("outputs", ()) for cell in notebook.cells]
        return [sorted(kind for each in some for kind in each.get("data", ()) if kind in DRAWN) for some in outputs]

    assert drawn(execute(name)) == drawn(committed(name))
