"""Random checkpoints of every family, and the batches that they encode, as torch and as this library take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

from smart_jax.files import resolve
from smart_jax.models import Batch, BertConfig, EmbeddingGemma2Config, ModelConfig, load_config, load_weights
from tests.parity import embedding_gemma2, qwen2_vl, qwen3_5, qwen3_vl

# Rows of a batch, each of parts: a number of text tokens, or the frames (1), rows and columns of an image's patches.
Spec = Sequence[Sequence[int | tuple[int, int, int]]]

TEXT = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
VISION: dict[str, dict[str, Any]] = {
    "qwen3_vl": {
        "depth": 12,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_heads": 6,
        "out_hidden_size": 512,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [2, 5, 8],
    },
    "qwen3_5": {
        "depth": 12,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_heads": 6,
        "out_hidden_size": 512,
        "num_position_embeddings": 2304,
    },
    "qwen2_vl": {"depth": 12, "embed_dim": 384, "num_heads": 6, "mlp_ratio": 4, "hidden_size": 512},
    "qwen2_5_vl": {
        "depth": 12,
        "hidden_size": 384,
        "intermediate_size": 1024,  # of a gated MLP
        "num_heads": 6,
        "out_hidden_size": 512,
        "window_size": 112,
        "fullatt_block_indexes": [2, 5, 8, 11],
    },
}
SECTIONS = [12, 10, 10]
# Every fourth layer is full; the others' heads are as wide as the published, and their values twice the states' width.
HYBRID = {
    **TEXT,
    "head_dim": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
# The published widths, with half of the layers and few words.
GEMMA: tuple[dict[str, Any], dict[str, Any]] = (
    {"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 2048, "head_dim": 256, "global_head_dim": 512}
    | {"hidden_size_per_layer_input": 512, "embedding_dim": 768, "sliding_window": 512, "sliding_window_pattern": 6},
    {"num_hidden_layers": 6, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 16}
    | {"num_key_value_heads": 12, "head_dim": 64, "position_embedding_size": 512},
)
MINILM: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 200,
}


def _bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(**MINILM)).eval().save_pretrained(folder)


def _qwen3(folder: Path) -> None:
    qwen3_vl.torch_model((TEXT, VISION["qwen3_vl"], SECTIONS)).save_pretrained(folder)


def _qwen35(folder: Path) -> None:
    qwen3_5.torch_model((HYBRID, VISION["qwen3_5"], [6, 5, 5], 0.25)).save_pretrained(folder)


def _gemma(folder: Path) -> None:
    embedding_gemma2.torch_model(*GEMMA).save_pretrained(folder)


def _qwen2(family: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        qwen2_vl.torch_model((family, TEXT, VISION[family], SECTIONS)).save_pretrained(folder)

    return write


WRITE: dict[str, Callable[[Path], None]] = {
    "qwen3_vl": _qwen3,
    "qwen3_5": _qwen35,
    "qwen2_vl": _qwen2("qwen2_vl"),
    "qwen2_5_vl": _qwen2("qwen2_5_vl"),
    "embedding_gemma2": _gemma,
    "bert": _bert,
}
MODELS = (*WRITE, "tiny")  # "tiny" = the embedded Qwen3-VL


def checkpoint(model: str, scratch: Path) -> Path:
    """Returns a folder with random weights of the model, or with the embedded model's."""
    if model == "tiny":
        return resolve("tiny")
    folder = scratch / model
    if not folder.exists():
        WRITE[model](folder)
    return folder


@dataclasses.dataclass
class Texts:
    """Texts of one length for a text encoder: a row's tokens are its only part."""

    rows: list[tuple[np.ndarray]]

    def batch(self, *_: object, **__: object) -> Batch:
        """Returns the batch that a backbone takes; the arguments of `Inputs.batch` do not matter here."""
        ids = np.stack([row for (row,) in self.rows]).astype(np.int32)
        mask = np.ones(ids.shape, bool)
        positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), (3, *ids.shape))
        return Batch(ids, mask, positions, np.zeros_like(mask), np.full(ids.shape, -1, np.int32), None)

    def torch_last(self, model: torch.nn.Module) -> np.ndarray:
        """Returns the last hidden states of transformers' model."""
        ids = torch.tensor(np.stack([row for (row,) in self.rows]))
        with torch.no_grad():
            return model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state.numpy()


class GemmaInputs(embedding_gemma2.Inputs):
    """Rows of an EmbeddingGemma 2."""

    def batch(self, *_: object, **__: object) -> Batch:
        """Returns the batch that a backbone takes, whose rows share no bins."""
        return self.for_ours()

    def torch_last(self, model: torch.nn.Module) -> np.ndarray:
        """Returns the last hidden states of transformers' model."""
        with torch.no_grad():
            return model(**self.for_torch(left=False)).last_hidden_state.numpy()


def inputs(config: ModelConfig, spec: Spec) -> Texts | qwen3_vl.Inputs | GemmaInputs:
    """Returns random inputs of the model."""
    if isinstance(config, EmbeddingGemma2Config):
        return GemmaInputs(GemmaInputs.random(spec, size=16).rows)
    if isinstance(config, BertConfig):
        rng = np.random.default_rng(0)
        return Texts([(rng.integers(20, 180, length),) for (length,) in spec])
    ids = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
    return qwen3_vl.Inputs.random(spec, ids=ids, size=config.vision.patch_size)


def config_of(folder: Path) -> ModelConfig:
    """Reads the config of a checkpoint that need not say how it pools."""
    try:
        return load_config(folder)
    except ValueError:  # a BERT that does not say how it pools
        return load_config(folder, pooling="mean")


def ours(folder: Path, spec: Spec, bins: int) -> Callable[[], np.ndarray]:
    """Returns a call of this library that computes the last hidden states [B, L, H]."""
    config = config_of(folder)
    graphdef, params = load_weights(folder, config)
    run = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b).states[:, :, 0])
    batch = jax.device_put(inputs(config, spec).batch(config, bins=bins))
    return lambda: np.asarray(run(params, batch))


def theirs(folder: Path, spec: Spec, bins: int) -> Callable[[], np.ndarray]:
    """Returns the same call of transformers and torch, whose rows share no bins: `bins` is not used."""
    import transformers

    config = config_of(folder)
    classes = {
        "qwen3_vl": "Qwen3VLModel",
        "qwen3_5": "Qwen3_5Model",
        "qwen2_vl": "Qwen2VLForConditionalGeneration",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "embedding_gemma2": "EmbeddingGemma2Model",
        "bert": "BertModel",
    }
    kind = getattr(transformers, classes[config.model_type])
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    if config.model_type.startswith("qwen2"):
        model = model.model
    batch = inputs(config, spec)
    return lambda: batch.torch_last(model)
