"""Configuration of BERT text encoders: the fields of config.json that matter, and the pooling rule of a folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smart_jax.files import Checkpoint
from smart_jax.models.layers import ACTIVATIONS

POOLINGS = ("mean", "cls")
_MODULES = ("Transformer", "Pooling", "Normalize")  # modules of sentence-transformers that are computed here
# Flags of sentence-transformers, and what its newer pooling_mode calls them.
_MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Configuration of a BERT. Names are those of config.json, except for `pooling`.

    Attributes:
      pooling: how a text's states become its pooled vector, "mean" or "cls"; config.json does not say it, see
        `read_pooling`.

    Example:
      >>> config = BertConfig.from_hf({
      ...     "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
      ...     "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40})
      >>> config.hidden_act, config.pooling
      ('gelu', 'mean')
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pooling: str = "mean"

    @property
    def text(self) -> BertConfig:
        """Config of the text tower, which every backbone's config has; of a BERT it is the whole."""
        return self

    @property
    def token_dim(self) -> None:
        """Width of a head's token vectors, as every backbone's config has it: a BERT has no head."""
        return None

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> BertConfig:
        """Returns the config that a parsed config.json describes.

        Raises:
          ValueError: a key is missing, or asks for something that this backbone does not compute; the message names it.
        """
        fields = [field for field in dataclasses.fields(cls) if field.name != "pooling"]
        needed = [field.name for field in fields if field.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in hf]:
            raise ValueError(f"config.json lacks {', '.join(missing)}: is the file complete?")
        config = cls(**{field.name: hf[field.name] for field in fields if field.name in hf})
        if config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act '{config.hidden_act}' is not supported, only {', '.join(ACTIVATIONS)}")
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} does not divide by num_attention_heads {config.num_attention_heads}"
            )
        for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            if hf.get(key, only) != only:
                raise ValueError(f"{key} is {hf[key]!r}, only {only!r} is supported")
        return config


def read_pooling(checkpoint: Checkpoint | str | Path, pooling: str | None = None) -> str:
    """Returns how token states become the pooled vector (Sentence-BERT, arXiv:1908.10084), "mean" or "cls".

    The argument comes first, then "pooling" in smart_jax.json, then the configuration of sentence-transformers'
    pooling module, whose folder is named in modules.json and otherwise 1_Pooling.

    Raises:
      ValueError: nothing says it, or it is not computed here; the message shows how to pass it.
    """
    checkpoint = Checkpoint.of(checkpoint)
    settings = checkpoint.path("smart_jax.json")
    folder = checkpoint.having("modules.json", "1_Pooling")
    modules = _read(folder / "modules.json", list) or []
    try:
        kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / 'modules.json'}: a module lacks its type or path ({error!r})") from error
    if unknown := [kind for kind in kinds if kind not in _MODULES]:
        raise ValueError(
            f"{folder / 'modules.json'}: {', '.join(unknown)} is not supported, only {', '.join(_MODULES)}: the pooled "
            "vectors would not be those of this model"
        )
    if pooling is None:
        pooling = (_read(settings, dict) or {}).get("pooling")
    if pooling is not None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}, expected {' or '.join(map(repr, POOLINGS))}")
        return pooling
    path = folder / kinds.get("Pooling", "1_Pooling") / "config.json"
    rules = _read(path, dict)
    if rules is None:
        raise ValueError(
            f"{folder} holds a BERT, but nothing says how its states are pooled ({path.relative_to(folder)} does not "
            "exist): pass it, smart_jax.load(folder, pooling='mean') or 'cls', or write {\"pooling\": \"mean\"} to the "
            "folder's smart_jax.json"
        )
    modes = [rules["pooling_mode"]] if "pooling_mode" in rules else []
    modes += [_MODES.get(key, key) for key, on in rules.items() if key.startswith("pooling_mode_") and on is True]
    if len(modes) != 1 or modes[0] not in POOLINGS or rules.get("include_prompt") is False:
        raise ValueError(
            f"{path}: pooling {', '.join(map(str, modes)) or 'by nothing'}"
            f"{' without the prompt' if rules.get('include_prompt') is False else ''} is not supported, only "
            f"{' or '.join(POOLINGS)} over all tokens: smart_jax.load(folder, pooling='mean') uses another"
        )
    return str(modes[0])


def _read(path: Path, kind: type) -> Any:
    """Returns the parsed JSON file, whose content must be a `kind`; None = there is no file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch the checkpoint again") from error
    if not isinstance(content, kind):
        kinds = f"{path} is a {type(content).__name__}, expected a {kind.__name__}"
        raise ValueError(f"{kinds}: fetch the checkpoint again")
    return content
