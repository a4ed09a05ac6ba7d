"""The benchmark of pixels on a small page: its table, and that the stages are those of the whole."""

from __future__ import annotations

import io

import numpy as np

from benchmarks import host_pixels


def test_the_table_has_both_resizes_and_their_difference(monkeypatch):
    monkeypatch.setattr(host_pixels, "SIZES", ((300, 420),))
    head, rule, exact, fast = host_pixels.table(1)
    assert head.count("|") == rule.count("|") == exact.count("|") == fast.count("|") == 10
    cells = [[cell.strip() for cell in line.split("|")] for line in (exact, fast)]
    assert [c[2] for c in cells] == ["exact", "fast"] and cells[0][9] == "" and "," in cells[1][9]
    assert all(float(cell) < 1000 for c in cells for cell in c[3:7])
    patches = (416 // 32) * (288 // 32) * 4  # 420 x 300 rounded to whole visual tokens
    assert cells[0][8] == f"{patches * 768 / 1e6:.1f}"


def test_stages_give_the_same_patches():
    buffer = io.BytesIO()
    host_pixels.drawn_page(300, 420).save(buffer, "JPEG", quality=90)
    for resize in ("exact", "fast"):
        preprocessor = host_pixels.page_preprocessor(resize=resize)
        calls = host_pixels.stages(buffer.getvalue(), preprocessor)
        whole, decoded = calls["tokenize"](), calls["tokenize decoded"]()
        assert np.array_equal(whole.patches, decoded.patches)
        batch = calls["collate"]()
        assert np.array_equal(batch.vision.patches[3, : len(whole.patches)], whole.patches)
