"""Published models on Qwen3.5, which late interaction alone scores."""

from __future__ import annotations

import dataclasses
import string

from smart_jax.inputs.presets.multi_vector import COLQWEN, colpali_prompt
from smart_jax.inputs.presets.preset import Preset

_COLQWEN35 = dataclasses.replace(COLQWEN, prompt=colpali_prompt(""))

PRESETS: dict[str, Preset] = {
    "colqwen3_5": Preset(_COLQWEN35, ("qwen3_5",), r"colqwen3[._]5|vultron", architecture="ColQwen3_5"),
    # Of the same class; its code makes the layers of full attention look to both sides after they are loaded, and its
    # figures are of pages of at most 1,024 visual tokens.
    "evie": Preset(
        dataclasses.replace(_COLQWEN35, causal=False, max_pixels=1024 * 32**2),
        ("qwen3_5",),
        r"\bevie\b|--evie",
        architecture="ColQwen3_5",
    ),
    # By sentence-transformers: a token of its own before either side, and no punctuation among a document's tokens.
    "pplx_embed_v2_late": Preset(
        dataclasses.replace(
            COLQWEN,
            prompt="{{ '[Q] ' if query else '[D] ' }}{{ visual }}{{ texts | join(' ') }}",
            document_skips=tuple(string.punctuation),
            min_pixels=3136,
            max_pixels=1_800_964,
            max_length=4096,
            query_length=1024,
        ),
        ("qwen3_5",),
        r"pplx-embed-v2-late",
    ),
}
