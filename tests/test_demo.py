"""The demo's report: its table, its plot, and questions to an index with their evidence, in one file."""

from __future__ import annotations

import re

import pytest
from flax import nnx
from PIL import Image

import smart_jax
from recipes import demo
from smart_jax import Adapter, AdapterConfig
from tests.small_pdf import write_pdf

MARKDOWN = "### wording (2 queries)\n\n| row | hit@1 |\n|---|---|\n| pooled <x> | .500 |\n\nBrackets: 95 %.\n"


@pytest.mark.slow
def test_the_report_has_table_plot_and_evidence(tmp_path, monkeypatch):
    for name in ("results", "limit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.md").write_text(MARKDOWN.replace("wording", name))
        Image.new("RGB", (4, 4)).save(tmp_path / name / "results.png")
    width = smart_jax.load("tiny").width
    Adapter(AdapterConfig(hidden_size=width, dim=16), rngs=nnx.Rngs(0)).save(tmp_path / "run" / "adapter")
    pdf = write_pdf(tmp_path / "manual.pdf", [[(20, 300, 12, "Revenue by region")]] * 2, [])
    monkeypatch.setattr(demo, "write_pages", lambda folder, write=demo.write_pages: write(folder, 6))
    page = demo.report(tmp_path, pdf, ["revenue"])
    assert "<th>hit@1</th>" in page and "<td>pooled &lt;x&gt;</td><td>.500</td>" in page and "<p>Brackets" in page
    assert (
        page.count('src="data:image/png;base64,') == 2 + demo.QUESTIONS + 1
    )  # the plots, and a page for each question
    ranks = [int(each) for each in re.findall(r"hybrid (\d+)\.", page)]
    assert len(ranks) == demo.QUESTIONS and all(1 <= rank <= 6 for rank in ranks)
    assert "<h3>limit (2 queries)" in page and "<h3>results (2 queries)" in page
    assert "Questions to manual.pdf" in page and page.count('<figure class="smart-evidence">') == demo.QUESTIONS + 1


@pytest.mark.slow
def test_without_a_pdf_a_manual_is_asked(tmp_path):
    path = demo.write_manual(tmp_path / "manual.pdf", ["csv", "textwrap"])
    with smart_jax.Index(tmp_path / "index", model="minilm") as index:
        assert index.add(path).added > 4
        assert "wrap(" in index.search(demo.ASKED[0], k=1)[0].text
