"""The embedded default model, trained from scratch: `python -m recipes.tiny.pretrain --out build/tiny`.

A Qwen3-VL-shaped retriever of 2.1 M parameters learns to read small pages of Python documentation. The command makes
every step below in order and skips those that are done:

  new        tokenizer (2,048 lower-case pieces, fitted on training text), config, random weights
  warmup     `recipes.tiny.warmup`: heads that read characters and bags of pieces, dropped afterwards
  STAGE      `python -m train.posttrain --config recipes/tiny/pretrain.py:STAGE`, full weights, objective "pooled" only;
             canvases grow from stage to stage, each starts from the model folder of the one before
  finish     the last stage's model with float16 weights, in OUT/tiny

Pages come from docstrings of the standard library and the installed packages, never from the held-out modules
(`recipes.tiny.docstrings`). Pairs are made by `recipes.tiny.pages` and converted by `train.data` like any other data
set.

Three seeds side by side, PJRT_NPROC=1 and an --out for each, took less than two hours on two cores. jemalloc
(LD_PRELOAD) spares XLA's large buffers the page faults of glibc's allocator. The weights in the package are seed 0's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from recipes.tiny.docstrings import Docstring
from recipes.tiny.pages import Canvas, for_training, training_pairs, wording_query, write_pairs
from recipes.tiny.typeset import grid_codes, typeset_grid, wrap
from train.config import default_config

ROOT = Path("build/tiny")
PIECES = 2048
QUERY_PIECES = 20  # of a training query; the prompt around it has 8
WARMUP = {"height": 64, "width": 128, "batch_size": 64, "steps": 220}

MODEL = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": PIECES,
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.05,  # 1 / sqrt(width), or nearly: 0.02 is made for wide models and starts slowly here
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 192,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1],
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.05,
    },
}
SETTINGS = {
    "min_pixels": 2048,
    "max_pixels": 65536,
    "max_length": 512,
    "length_buckets": [12, 20, 28, 42, 64, 128, 256, 512],
    "patch_buckets": [8, 16, 32, 64, 128, 256],
}
# The parts of the prompt that never change are one piece each.
PHRASES = ("system\nRepresent the user's input.", "user\n", "assistant\n")


class Stage(NamedTuple):
    """One canvas of the curriculum."""

    start: str  # the model folder that it goes on from
    height: int
    width: int
    pairs: int  # made once
    batch_size: int
    steps: int
    learning_rate: float
    temperature: float
    decay_ratio: float = 0.0  # share of the steps, at the end, over which the rate falls
    meaning: float = 0.05
    shuffled: float = 0.2


# Muon: after two minutes at 64x128 the in-batch accuracy was .58, AdamW's .52. In equal time, twice or half the rate,
# half the batch and several queries for each page gained nothing; bfloat16 is no faster on a CPU.
STAGES = {
    "32x64": Stage("warmup", 32, 64, 40_000, 256, 220, 1.5e-3, 0.07, meaning=0.0, shuffled=0.0),
    "64x128": Stage("32x64/model", 64, 128, 60_000, 128, 800, 1.5e-3, 0.05),
    "128x256": Stage("64x128/model", 128, 256, 100_000, 128, 850, 1.2e-3, 0.035, decay_ratio=0.75),
}


def get_config(arg: str = "32x64") -> ConfigDict:
    """The run of one stage, `--config recipes/tiny/pretrain.py:64x128`."""
    if arg not in STAGES:
        raise ValueError(f"stage '{arg}' is unknown: choose one of {', '.join(STAGES)}")
    stage = STAGES[arg]
    visual = stage.height * stage.width // 1024
    config = default_config()
    config.model = str(ROOT / stage.start)
    config.output = str(ROOT / arg)
    config.trainable, config.weights = "full", "."
    config.batch_size = stage.batch_size
    config.steps = stage.steps
    config.log_every = 20
    config.loss.objective = "pooled"
    config.loss.symmetric = True
    config.loss.temperature = stage.temperature
    config.loss.learn_temperature = True
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = stage.learning_rate
    config.optimizer.schedule = "wsd"
    config.optimizer.decay_ratio = stage.decay_ratio
    config.optimizer.b2 = 0.98
    config.data.dir = str(ROOT / "data")
    config.data.name = f"pages_{arg}"
    config.data.query_length = QUERY_PIECES + 8
    config.data.document_length = visual + 10
    config.data.document_patches = 4 * visual
    config.eval.validation_batches = 4
    config.checkpoint.every = 100
    config.checkpoint.keep = 1
    return config


def corpus(root: Path) -> list[Docstring]:
    """Docstrings to train on, kept in a file: to read them from the sources takes a minute or more."""
    file = root / "docstrings.jsonl"
    if not file.is_file():
        root.mkdir(parents=True, exist_ok=True)
        # A docstring about a tokenizer may spell a marker of the prompt, which no text may contain.
        lines = [json.dumps(dataclasses.asdict(d)) for d in for_training(packages=True) if "<|" not in d.text]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [Docstring(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def new(root: Path, seed: int) -> None:
    """Tokenizer and random weights."""
    from recipes.tiny.new_model import new_checkpoint, train_tokenizer

    texts = [d.text[:600] for d in corpus(root)]
    tokenizer = train_tokenizer(texts, PIECES, phrases=PHRASES)
    new_checkpoint(root / "new", MODEL, tokenizer, settings=SETTINGS, seed=seed)


def make_data(root: Path, name: str) -> None:
    """Pairs of one stage, converted."""
    from tokenizers import Tokenizer

    from train.data import convert

    stage, number = STAGES[name], list(STAGES).index(name)
    tokenizer = Tokenizer.from_file(str(root / "new" / "tokenizer.json"))
    rows = training_pairs(
        corpus(root),
        Canvas(stage.height, stage.width),
        count=stage.pairs,
        seed=number,
        meaning=stage.meaning,
        shuffled=stage.shuffled,
        accept=lambda query: len(tokenizer.encode(query).ids) <= QUERY_PIECES,
    )
    source = root / "pairs" / name
    if not any(source.glob("data/*.parquet")):
        write_pairs(source, rows)
    convert(source, f"pages_{name}", root / "data", validation_ratio=0.02, overwrite=True)


def warmup(root: Path, seed: int) -> None:
    """The reading warm-up."""
    import smart_jax
    from recipes.tiny.warmup import warm_up
    from smart_jax.models import save_weights
    from train.config import TrainConfig
    from train.data import Prefetch
    from train.export import export_model

    encoder = smart_jax.load(root / "new")
    batches = Prefetch(reading_batches(encoder, corpus(root), seed), depth=4)
    weights = _piece_weights(encoder, corpus(root))
    encoder = warm_up(encoder, batches, steps=WARMUP["steps"], piece_weights=weights, seed=seed)
    batches.close()
    export_model(root / "warmup", encoder, encoder.params, TrainConfig())
    save_weights(root / "warmup", encoder.params, encoder.config)


def reading_batches(encoder, docstrings: list[Docstring], seed: int) -> Iterator:
    from recipes.tiny.warmup import ReadingBatch

    height, width, size = WARMUP["height"], WARMUP["width"], WARMUP["batch_size"]
    rows, columns = height // 16, width // 8
    rng = np.random.default_rng(seed)
    prepare = encoder.preprocessor
    while True:
        pages: list = []
        codes: list = []
        shown: list = []
        queries: list = []
        while len(pages) < size:
            text = docstrings[int(rng.integers(len(docstrings)))].text
            start = int(rng.integers(0, max(1, len(text) - rows * columns)))
            text = text[start : start + 2 * rows * columns].partition(" ")[2] if start else text
            page, visible = typeset_grid(text, height, width)
            if len(visible) < rows * columns // 4:
                continue
            query = wording_query(visible, rng)
            if len(prepare.tokenizer(query)["input_ids"]) > QUERY_PIECES:
                continue
            pages.append(page)
            codes.append(grid_codes(wrap(text, rows, columns)[0], rows, columns))
            shown.append(visible)
            queries.append(query)
        yield ReadingBatch(
            pages=prepare.collate([prepare.row(page) for page in pages], length=rows * columns // 8 + 10),
            texts=prepare.collate([prepare.row(query) for query in queries], length=QUERY_PIECES + 8),
            characters=by_visual_token(np.stack(codes)),
            page_pieces=_pieces(encoder, shown),
            text_pieces=_pieces(encoder, queries),
        )


def by_visual_token(codes: np.ndarray) -> np.ndarray:
    """[B, rows, columns] -> [B, V, 8]: the 2 x 4 characters of each visual token, in lower case."""
    size, rows, columns = codes.shape
    lower = np.where((codes >= 33) & (codes <= 58), codes + 32, codes).astype(np.int32)
    blocks = lower.reshape(size, rows // 2, 2, columns // 4, 4).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(size, rows * columns // 8, 8)


def _pieces(encoder, texts: list[str]) -> np.ndarray:
    found = np.zeros((len(texts), encoder.config.text.vocab_size), bool)
    for i, ids in enumerate(encoder.preprocessor.tokenizer(texts, add_special_tokens=False)["input_ids"]):
        found[i, ids] = True
    return found


def _piece_weights(encoder, docstrings: list[Docstring]) -> np.ndarray:
    """Inverse document frequency / 3, between 0.07 and 2."""
    texts = [d.text[:300] for d in docstrings[::10]]
    counts = 1.0 + _pieces(encoder, texts).sum(0)
    return (np.clip(np.log(len(texts) / counts), 0.2, 6.0) / 3).astype(np.float32)


def finish(root: Path) -> None:
    """The last stage's model with float16 weights: what the package carries as assets/tiny."""
    import smart_jax
    from smart_jax.models import save_weights

    last = root / list(STAGES)[-1] / "model"
    shutil.copytree(last, root / "tiny")
    encoder = smart_jax.load(last)
    save_weights(root / "tiny", encoder.params, encoder.config, dtype=np.float16)


def main() -> None:
    """The whole recipe."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.pretrain")
    parser.add_argument("--out", default=str(ROOT))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="comma-separated steps: new, warmup, data-STAGE, STAGE, finish")
    options = parser.parse_args()
    root = Path(options.out)
    only = set(filter(None, options.only.split(",")))

    def wanted(step: str, product: Path) -> bool:
        if only:
            return step in only
        return not product.exists()

    if wanted("new", root / "new"):
        new(root, options.seed)
    if wanted("warmup", root / "warmup"):
        warmup(root, options.seed)
    for name in STAGES:
        if wanted(f"data-{name}", root / "data" / f"pages_{name}"):
            make_data(root, name)
        if wanted(name, root / name / "model"):
            command = ["-m", "train.posttrain", "--config", f"recipes/tiny/pretrain.py:{name}"]
            start = root / STAGES[name].start
            overrides = {"model": start, "output": root / name, "seed": options.seed, "data.dir": root / "data"}
            flags = [f"--config.{key}={value}" for key, value in overrides.items()]
            subprocess.run([sys.executable, *command, *flags, "--config.resume=True"], check=True)
    if wanted("finish", root / "tiny"):
        finish(root)


if __name__ == "__main__":
    main()
