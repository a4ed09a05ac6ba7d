"""Small random BERT checkpoints in the layouts of Hugging Face and sentence-transformers, written without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from smart_jax.models import load_config
from smart_jax.models.weights import init_weights, save_weights

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXT = "revenue by region in the report of a year pump bearing query document grease oil : , . find how does"
WORDS = tuple(TEXT.split())
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.2,
}


def word_tokenizer() -> Tokenizer:
    """Whole lower-case words, [CLS] before and [SEP] after a text."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def write_plain(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """config.json, weights and tokenizer: nothing says how the states are pooled."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG | changes)
    config = load_config(folder, pooling="mean")
    save_weights(folder, init_weights(config, seed)[1], config)
    word_tokenizer().save(str(folder / "tokenizer.json"))
    special = {f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True} | special)
    return folder


def write_sentence_transformer(folder: Path, pooling: str = "mean", seed: int = 0, **changes: Any) -> Path:
    """The same with the modules that sentence-transformers writes, pooled by "mean" or "cls"."""
    write_plain(folder, seed, **changes)
    names = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    kinds = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in names.items()]
    write_json(folder / "modules.json", kinds)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    flags = {f"pooling_mode_{name}": mode == pooling for mode, name in modes.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **flags})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    return folder


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
