"""The Python blocks of README.md and of docs/ run, from top to bottom, where what they name exists."""

import re
from pathlib import Path

import mteb
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from smart_jax import Adapter, AdapterConfig
from tests.backbone import CONFIG
from tests.small_pdf import write_pdf
from tests.test_mteb import image_task

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture
def named(tmp_path, monkeypatch, checkpoint):
    """Works in a folder with the files that the texts name; a hub id is a folder here, too."""
    for name in ("Qwen/Qwen3-VL-Embedding-2B", "path/to/model"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).symlink_to(checkpoint)
    for name in ("page", "page1", "page2", "page3"):
        Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "papers").mkdir()
    write_pdf(tmp_path / "papers" / "old.pdf", [[(20, 300, 12, "Revenue by region")]] * 2, [])
    config = AdapterConfig(hidden_size=CONFIG["text_config"]["hidden_size"], dim=16)
    Adapter(config, rngs=nnx.Rngs(0)).save(tmp_path / "runs/vidore/adapter")
    monkeypatch.setattr(mteb, "get_benchmark", lambda _: mteb.Benchmark("local", tasks=[image_task()[0]]))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page):
    for example in Sybil([PythonCodeBlockParser()]).parse(page).examples():
        example.evaluate()


def test_the_readme_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown
    for code, output in shown:
        exec(code, {})
        assert capsys.readouterr().out == output
