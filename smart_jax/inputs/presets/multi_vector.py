"""Published multi-vector models, which late interaction alone scores: ColQwen2, 2.5 and 3, and their kin.

Their states after the final norm go through a linear map; every token of the prompt takes part, and there is no pooled
vector. A text is written as a query on either side: the models' own code has no other form for texts. A page that comes
with a text has it behind "Describe the image.", as Tomoro's code has it, which alone knows such items.
"""

from __future__ import annotations

import dataclasses

from smart_jax.inputs.presets.preset import Preset
from smart_jax.inputs.settings import VISUAL, Settings

_SUFFIX = "<|endoftext|>" * 10  # of queries: tokens that the model fills with what the query leaves out


def colpali_prompt(prefix: str, answer: str = "") -> str:
    """Returns the template of colpali-engine's models.

    Args:
      prefix: before a query.
      answer: opens the assistant's turn after a page.
    """
    return (
        "{% if images %}<|im_start|>user\n{{ visual }}Describe the image."
        "{{ ' ' ~ (texts | join(' ')) if texts else '' }}<|im_end|>" + answer + "<|endoftext|>"
        "{% else %}" + prefix + "{{ texts | join(' ') }}" + _SUFFIX + "{% endif %}"
    )


COLQWEN = Settings(
    prompt=colpali_prompt("Query: "),
    pooling="none",
    keep="all",
    instructions="none",
    default_instruction=None,
    min_pixels=None,
    max_pixels=None,
    max_length=32768,
    video="none",
)
PRESETS: dict[str, Preset] = {
    "colqwen2": Preset(
        COLQWEN,
        ("qwen2_vl", "qwen2_5_vl"),
        r"colqwen2|colnomic|evoqwen",
        architecture=("ColQwen2", "ColQwen2_5", "ColQwen2ForRetrieval"),
    ),
    "ops_colqwen3": Preset(
        dataclasses.replace(COLQWEN, prompt=colpali_prompt("Query: ", "<|im_start|>assistant\n")),
        ("qwen3_vl",),
        r"ops-colqwen3",
        architecture="OpsColQwen3Model",
    ),
    "tomoro_colqwen3": Preset(
        dataclasses.replace(COLQWEN, prompt=colpali_prompt(""), max_pixels=1280 * 32**2),
        ("qwen3_vl",),
        r"tomoro",
        key="embed_dim",
    ),
    "colqwen3": Preset(
        dataclasses.replace(COLQWEN, prompt=colpali_prompt("")),
        ("qwen3_vl",),
        r"colqwen3|colturk",
        architecture="ColQwen3",
    ),
    # As NVIDIA's code runs it: no projector, attention to both sides, and the states before the final norm.
    "nemotron_colembed": Preset(
        dataclasses.replace(
            COLQWEN,
            prompt=(("user", VISUAL, "{{ 'Query: query:' if query else 'passage:' }} {{ texts | join(' ') }}"),),
            causal=False,
            final_norm=False,
            max_length=4096,
        ),
        ("qwen3_vl",),
        r"nemotron-colembed-vl",
        architecture="Qwen3VLNemotronEmbedModel",
    ),
}
