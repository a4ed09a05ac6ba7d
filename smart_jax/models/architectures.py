"""The backbones, by Hugging Face's model_type."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from smart_jax.files import Checkpoint, other_folder, read_json, shown
from smart_jax.models import bert
from smart_jax.models.bert import Bert
from smart_jax.models.bert_config import BertConfig
from smart_jax.models.config_values import check_given, check_values
from smart_jax.models.embedding_gemma2 import IGNORED as GEMMA_IGNORED
from smart_jax.models.embedding_gemma2 import SHARDING_RULES as GEMMA_RULES
from smart_jax.models.embedding_gemma2 import EmbeddingGemma2, EmbeddingGemma2Config
from smart_jax.models.pooling import read_pooling
from smart_jax.models.qwen3_5 import IGNORED as QWEN35_IGNORED
from smart_jax.models.qwen3_5 import SHARDING_RULES as QWEN35_RULES
from smart_jax.models.qwen3_5 import Qwen35, Qwen35Config
from smart_jax.models.qwen_vl import QWEN2_NAMES, SHARDING_RULES, QwenVL
from smart_jax.models.qwen_vl_config import QwenVLConfig
from smart_jax.models.token_projector import TokenProjector, find_projector
from smart_jax.runtime import Rules
from smart_jax.typing import JsonObject

# Each has model_type, state_width, token_dim, and text with hidden_size and num_hidden_layers.
ModelConfig = QwenVLConfig | BertConfig | EmbeddingGemma2Config
Model = QwenVL | Bert | EmbeddingGemma2


class Architecture(NamedTuple):
    """Config, modules and placement rules of the backbones of one model_type.

    Attributes:
      config: class of its config, with `from_hf`.
      model: makes the Flax module from a config and `rngs`.
      sharding_rules: how its parameters are split over a mesh.
      renames: regular expressions and their replacements, which make a checkpoint's names of ours.
      prefix: prefix of the names of written weights.
      ignored: regular expression of the names of tensors that may be there without a parameter of that name.
      float16: whether its states fit in float16.

    Example:
      >>> ARCHITECTURES["bert"].config.__name__
      'BertConfig'
    """

    config: type[QwenVLConfig] | type[BertConfig] | type[EmbeddingGemma2Config]
    model: Callable[..., Model]
    sharding_rules: Rules
    renames: tuple[tuple[str, str], ...] = ()
    prefix: str = "model."
    ignored: str = r"(?:.+\.)?lm_head\.weight"
    float16: bool = True


ARCHITECTURES: dict[str, Architecture] = {
    "qwen3_vl": Architecture(QwenVLConfig, QwenVL, SHARDING_RULES),
    "qwen2_5_vl": Architecture(QwenVLConfig, QwenVL, SHARDING_RULES, QWEN2_NAMES),
    "qwen2_vl": Architecture(QwenVLConfig, QwenVL, SHARDING_RULES, QWEN2_NAMES),
    "qwen3_5": Architecture(Qwen35Config, Qwen35, QWEN35_RULES, ignored=QWEN35_IGNORED),
    "bert": Architecture(BertConfig, Bert, bert.SHARDING_RULES, prefix="", ignored=bert.IGNORED),
    "embedding_gemma2": Architecture(
        EmbeddingGemma2Config, EmbeddingGemma2, GEMMA_RULES, prefix="", ignored=GEMMA_IGNORED, float16=False
    ),
}
# Classes, named in config.json's `architectures`, and model types that are one of these under a name of their own.
_CLASSES = {
    "JinaEmbeddingsV4Model": "qwen2_5_vl",
    "UniteQwen2VL": "qwen2_vl",
    "ColQwen2": "qwen2_vl",
    "ColQwen2_5": "qwen2_5_vl",
    "ColQwen3": "qwen3_vl",
    "ColQwen3_5": "qwen3_5",
    "OpsColQwen3Model": "qwen3_vl",
    "Qwen3VLNemotronEmbedModel": "qwen3_vl",
}
_TYPES = {
    "colqwen2_5": "qwen2_5_vl",
    "colqwen3": "qwen3_vl",
    "colqwen3_5": "qwen3_5",
    "ops_colqwen3": "qwen3_vl",
    "qwen3_vl_nemotron_embed": "qwen3_vl",
}
_WRAPPED = "vlm_config"  # of transformers' ColQwen2ForRetrieval: the backbone's config within the retriever's


# Models of each of them, for the messages that say what can be loaded.
_PUBLISHED = {
    "qwen3_vl": "Qwen3-VL-Embedding, LamRA, eager-embed, ColQwen3",
    "qwen2_5_vl": "jina-embeddings-v4, LamRA, GVE, MoCa, nomic-embed-multimodal, ColQwen2.5",
    "qwen2_vl": "GME, LamRA-Ret, VLM2Vec-V2, Ops-MM-embedding, RzenEmbed, UNITE, ColQwen2",
    "qwen3_5": "ColQwen3.5, EVIE, pplx-embed-v2-late",
    "bert": "all-MiniLM-L6-v2 and other sentence-transformers",
    "embedding_gemma2": "EmbeddingGemma 2",
}
_MULTI_VECTOR = ("col", "paligemma", "idefics3", "modernvbert")  # beginnings of model_types of ColPali and its kin


def projector_of(config: ModelConfig) -> TokenProjector | None:
    """Returns the linear map that makes the token vectors; None = the architecture or the checkpoint has none.

    Example:
      >>> from smart_jax.files import resolve
      >>> projector_of(load_config(resolve("tiny"))) is None
      True
    """
    return getattr(config, "projector", None)


def supported() -> str:
    """Returns, in a sentence, which architectures can be loaded, with models of each.

    Example:
      >>> supported().split(",")[0]
      'architectures that can be loaded: qwen3_vl (Qwen3-VL-Embedding'
    """
    return "architectures that can be loaded: " + "; ".join(f"{name} ({_PUBLISHED[name]})" for name in ARCHITECTURES)


def check_supported(folder: Path) -> None:
    """Refuses a folder whose config.json, if it has one, is of an architecture that cannot be loaded.

    Raises:
      ValueError: it is, or the file is not JSON; the message says which architectures there are.

    Example:
      >>> from smart_jax.files import resolve
      >>> check_supported(resolve("tiny"))
    """
    if (path := folder / "config.json").is_file():
        _read_config(path)


def load_config(checkpoint: Checkpoint | str | Path, *, pooling: str | None = None) -> ModelConfig:
    """Reads the config of a checkpoint from its config.json and, of a BERT, its pooling rule.

    Args:
      checkpoint: from `smart_jax.files.open_checkpoint`, or a folder in Hugging Face layout.
      pooling: rule of a BERT, "mean" or "cls"; None = as the folder says, see `read_pooling`. The rule of other models
        is in their batches (`Batch.pool_mask`).

    Raises:
      FileNotFoundError: there is no config.json; the message says what the folder is instead, where that is known.
      ValueError: it is not JSON, its model_type is unknown, a key is missing, or the pooling is unknown.

    Example:
      >>> from smart_jax.files import resolve
      >>> load_config(resolve("tiny")).model_type
      'qwen3_vl'
    """
    checkpoint = Checkpoint.of(checkpoint)
    path = checkpoint.path("config.json")
    if not path.is_file():
        if (instead := other_folder(checkpoint.folder)) is not None:
            raise FileNotFoundError(f"'{checkpoint}' is no checkpoint: {instead}")
        raise FileNotFoundError(f"{path} does not exist: a checkpoint folder in Hugging Face layout has a config.json")
    model_type, hf = _read_config(path)
    check_values(hf, str(path))
    try:
        config = ARCHITECTURES[model_type].config.from_hf({**hf, "model_type": model_type})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise ValueError(f"{path}: a key has a value of another kind ({error}): fetch the checkpoint again") from error
    check_given(config, str(path))
    if isinstance(config, BertConfig):
        return dataclasses.replace(config, pooling=read_pooling(checkpoint, pooling))
    if isinstance(config, QwenVLConfig) and config.projector is None:
        return dataclasses.replace(config, projector=find_projector(checkpoint))
    return config


def _read_config(path: Path) -> tuple[str, JsonObject]:
    """Returns the architecture and the content of a config.json; raises ValueError where it cannot be loaded."""
    hf = read_json(path, remedy="fetch the checkpoint again")
    named, classes = hf.get("model_type"), hf.get("architectures")
    model_type: object = named
    if model_type not in tuple(ARCHITECTURES):
        if isinstance(inner := hf.get(_WRAPPED), dict):
            model_type, hf = inner.get("model_type"), inner
        else:
            model_type = _TYPES.get(named, named) if isinstance(named, str) else named
            known = [_CLASSES[name] for name in classes if name in tuple(_CLASSES)] if isinstance(classes, list) else []
            model_type = next(iter(known), model_type)
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        kin = str(named).startswith(_MULTI_VECTOR)
        why = " (a multi-vector model on another backbone than those of ColQwen2, 2.5, 3 and 3.5)" if kin else ""
        raise ValueError(f"{path}: model_type {shown(named)} is not supported{why}; {supported()}")
    return model_type, hf
