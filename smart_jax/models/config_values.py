"""Values of config.json: sizes and constants of every family, checked before anything is built of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from smart_jax.files import checked_float, checked_int, shown
from smart_jax.typing import JsonObject

MOST_LAYERS = 1024  # ten times as many as published models have
_WIDEST, _LONGEST, _MOST_WORDS = 2**20, 2**26, 2**24
_LAYERS = ("num_hidden_layers", "depth", "num_layers")
_WIDTHS = (
    *("hidden_size", "intermediate_size", "out_hidden_size", "embed_dim", "head_dim", "patch_size", "window_size"),
    *("num_attention_heads", "num_key_value_heads", "num_heads", "temporal_patch_size", "spatial_merge_size"),
    *("in_channels", "in_chans", "spatial_patch_size", "type_vocab_size", "multi_vector_projector_dim"),
)
_LONG = ("max_position_embeddings", "num_position_embeddings")
_FLOATS = ("rope_theta", "rms_norm_eps", "layer_norm_eps", "mlp_ratio", "tokens_per_second")
_MARKS = (  # tokens that prompts are made of
    *("image_token_id", "video_token_id", "audio_token_id", "vision_start_token_id", "vision_end_token_id"),
    *("boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index"),
)
_LISTS = ("mrope_section", "deepstack_visual_indexes", "fullatt_block_indexes")
# Largest value by key; null is left to the family, for some of which it has a meaning.
MOST: dict[str, int] = {
    **dict.fromkeys(_LAYERS, MOST_LAYERS),
    **dict.fromkeys(_WIDTHS, _WIDEST),
    **dict.fromkeys(_LONG, _LONGEST),
    "vocab_size": _MOST_WORDS,
}


def check_values(hf: JsonObject, name: str) -> None:
    """Checks the numbers of a config.json, in all its sections, by their keys.

    Args:
      hf: the parsed file.
      name: of the file, for messages.

    Raises:
      ValueError: a size is no integer from 1 to a bound that no model reaches, a constant is no positive number, a
        token's id no integer, or a list no list of integers.

    Example:
      >>> check_values({"text_config": {"num_hidden_layers": 10**9}}, "config.json")
      Traceback (most recent call last):
      ValueError: config.json: text_config.num_hidden_layers is 1000000000, expected an integer from 1 to 1024
    """
    for path, key, value in _values(hf, name):
        if value is None:
            continue
        if key in MOST:
            checked_int(value, path, most=MOST[key])
        elif key in _FLOATS:
            checked_float(value, path)
        elif key in _MARKS:
            checked_int(value, path, least=0)
        elif key.endswith("_token_id") and not isinstance(value, list):
            checked_int(value, path, least=-1)  # which says that there is none
        elif key in _LISTS:
            if not isinstance(value, list | tuple) or len(value) > MOST_LAYERS:
                raise ValueError(f"{path} is {shown(value)}, expected a list of integers")
            for each in value:
                checked_int(each, path, least=0, most=_WIDEST)


def check_given(config: Any, name: str) -> None:
    """Checks that a config dataclass, and those in it, have all their sizes: `check_values` lets null by.

    Args:
      config: as a family's `from_hf` makes it.
      name: of the file, for messages.

    Raises:
      ValueError: a size is None that must be there.

    Example:
      >>> from smart_jax.files import resolve
      >>> from smart_jax.models import load_config
      >>> check_given(load_config(resolve("tiny")), "config.json")
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_given(value, name)
        elif value is None and field.type == "int" and field.name in MOST:
            raise ValueError(f"{name}: {field.name} is null, expected a positive integer: fetch the checkpoint again")


def _values(section: JsonObject, name: str, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    for key, value in section.items():
        yield f"{name}: {prefix}{key}", key, value
        if isinstance(value, dict) and prefix.count(".") < 3:
            yield from _values(value, name, f"{prefix}{key}.")
