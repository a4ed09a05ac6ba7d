"""Every model of the table, random but in its layout, from a folder of its name through the evaluation's command."""

from __future__ import annotations

import json

import pytest

from smart_jax.inputs.presets import PRESETS
from tests.backbone import write_checkpoint
from tests.processes import ROOT, run_main

FOLDERS = {  # head: (model_type, the hub's name)
    "qwen3_vl_embedding": ("qwen3_vl", "Qwen3-VL-Embedding-2B"),
    "gme": ("qwen2_vl", "gme-Qwen2-VL-2B-Instruct"),
    "lamra": ("qwen2_5_vl", "LamRA-Ret-Qwen2.5VL-7b"),
    "lamra_qwen3_vl": ("qwen3_vl", "LamRA-Qwen3-VL-2B"),
    "vlm2vec": ("qwen2_vl", "VLM2Vec-V2.0"),
    "jina_embeddings_v4": ("qwen2_5_vl", "jina-embeddings-v4"),
    "ops_mm_embedding": ("qwen2_vl", "Ops-MM-embedding-v1-2B"),
    "rzen_embed": ("qwen2_vl", "RzenEmbed"),
    "unite": ("qwen2_vl", "Unite-Base-Qwen2-VL-2B"),
    "gve": ("qwen2_5_vl", "GVE-3B"),
    "moca": ("qwen2_5_vl", "MoCa-Qwen25VL-3B"),
    "nomic_embed_multimodal": ("qwen2_5_vl", "nomic-embed-multimodal-3b"),
    "eager_embed": ("qwen3_vl", "eager-embed-v1"),
    "colqwen2": ("qwen2_5_vl", "colqwen2.5-v0.2"),
    "ops_colqwen3": ("qwen3_vl", "Ops-Colqwen3-4B"),
    "tomoro_colqwen3": ("qwen3_vl", "tomoro-colqwen3-embed-4b"),
    "colqwen3": ("qwen3_vl", "SauerkrautLM-ColQwen3-2b-v0.1"),
    "colqwen3_5": ("qwen3_5", "colqwen3.5-4.5B-v3"),
    "evie": ("qwen3_5", "EVIE-4.5B"),
    "pplx_embed_v2_late": ("qwen3_5", "pplx-embed-v2-late-0.6b"),
    "nemotron_colembed": ("qwen3_vl", "nemotron-colembed-vl-4b-v2"),
    "embedding_gemma2": ("embedding_gemma2", "embeddinggemma-2"),
}


def test_every_model_is_here():
    assert set(FOLDERS) == set(PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(FOLDERS))
def test_pages_benchmark(head, tmp_path):
    model_type, name = FOLDERS[head]
    folder = write_checkpoint(tmp_path / name, model_type=model_type)
    bounds = {"min_pixels": 2048, "max_pixels": 65536, "first_pixels": None}
    options = {"pages": 10, "query_seeds": 1, "meaning": False, "output": tmp_path / "out", "model": folder}
    if model_type == "embedding_gemma2":
        options["soft_tokens"] = 140  # its folder says 70
    else:
        (folder / "smart_jax.json").write_text(json.dumps(bounds))
    changes = (f"--config.{key}={value}" for key, value in options.items())
    done = run_main("eval.run", f"--config={ROOT}/configs/eval_tiny.py:64x128", *changes)
    assert done.returncode == 0, done.stderr
    [benchmark] = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]
    rows = {"late"} if PRESETS[head].settings.pooling == "none" else {"pooled", "late", "hybrid"}
    assert rows == set(benchmark["rows"]) - {"chance", "bm25"}
