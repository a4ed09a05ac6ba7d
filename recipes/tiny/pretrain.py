"""The embedded default model, trained from scratch: `python -m recipes.tiny.pretrain --out build/tiny`.

A Qwen3-VL-shaped retriever of 2.1 M parameters learns to read small pages of Python documentation. The command makes
the steps below in order and skips those whose product is there:

  new          tokenizer (2,048 lower-case pieces, fitted on training text), config, random weights
  warmup       `recipes.tiny.warmup`: heads that read characters and bags of pieces, dropped afterwards
  data-STAGE   pairs of `recipes.tiny.pairs`, converted by `train.data` like any other data set
  STAGE        `python -m train.posttrain --config recipes/tiny/pretrain.py:STAGE`, all weights, objective "pooled";
               pages grow from stage to stage, each stage starts from the model folder of the one before
  finish       the last stage's model with float16 weights, in OUT/tiny

Pages come from docstrings of the standard library and of the installed packages, never from the held-out modules
(`recipes.tiny.corpus`).

Three seeds side by side, PJRT_NPROC=1 and an --out for each, took less than two hours on two cores. jemalloc
(LD_PRELOAD) spares XLA's large buffers the page faults of glibc's allocator. The weights in the package are seed 0's.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

import smart_jax
from recipes.tiny.architecture import MODEL, PHRASES, PIECES, QUERY_PIECES, SETTINGS
from recipes.tiny.corpus import kept_for_training
from recipes.tiny.docstrings import Docstring
from recipes.tiny.new_model import new_checkpoint, train_tokenizer
from recipes.tiny.pairs import training_pairs, write_pairs
from recipes.tiny.reading import piece_weights, reading_batches
from recipes.tiny.stages import READING, ROOT, STAGES, get_config
from recipes.tiny.warmup import warm_up
from smart_jax.models import save_weights
from train.config import TrainConfig
from train.data import Prefetch, convert
from train.export import export_model

__all__ = ["get_config", "main"]  # the trainer reads get_config from this file


class Step(NamedTuple):
    """A step of the recipe.

    Attributes:
      name: as --only has it.
      product: the step is skipped where it exists.
      make: makes the product, and takes nothing.
    """

    name: str
    product: Path
    make: partial[None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; None = the arguments of the process."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.pretrain", description="Make the embedded model.")
    parser.add_argument("--out", default=str(ROOT), help="folder of all steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: %(default)s)")
    parser.add_argument("--only", default="", help="comma-separated steps: new, warmup, data-STAGE, STAGE, finish")
    options = parser.parse_args(arguments)
    only = set(filter(None, options.only.split(",")))
    for step in steps(Path(options.out), options.seed):
        if step.name in only if only else not step.product.exists():
            step.make()


def steps(root: Path, seed: int) -> Iterator[Step]:
    """Yields the recipe's steps in order, with what they make below `root`."""
    yield Step("new", root / "new", partial(make_new, root, seed))
    yield Step("warmup", root / "warmup", partial(make_warmup, root, seed))
    for name in STAGES:
        yield Step(f"data-{name}", root / "data" / f"pages_{name}", partial(make_data, root, name))
        yield Step(name, root / name / "model", partial(make_stage, root, name, seed))
    yield Step("finish", root / "tiny", partial(make_final, root))


def corpus(root: Path) -> list[Docstring]:
    """Reads the docstrings to train on from the recipe's folder, where the first step writes them."""
    return kept_for_training(root / "docstrings.jsonl")


def make_new(root: Path, seed: int) -> None:
    """Makes the tokenizer and random weights."""
    texts = [docstring.text[:600] for docstring in corpus(root)]
    tokenizer = train_tokenizer(texts, PIECES, phrases=PHRASES)
    new_checkpoint(root / "new", MODEL, tokenizer, settings=SETTINGS, seed=seed)


def make_warmup(root: Path, seed: int) -> None:
    """Makes the backbone that the reading warm-up leaves."""
    encoder, docstrings = smart_jax.load(root / "new"), corpus(root)
    made = reading_batches(encoder, docstrings, canvas=READING.canvas, batch_size=READING.batch_size, seed=seed)
    batches = Prefetch(made, lambda batch: batch, depth=4)
    weights = piece_weights(encoder, docstrings)
    encoder = warm_up(encoder, batches, steps=READING.steps, piece_weights=weights, seed=seed)
    batches.close()
    export_model(root / "warmup", encoder, encoder.params, TrainConfig())


def make_data(root: Path, name: str) -> None:
    """Makes one stage's pairs of pages and queries, and converts them."""
    stage, number = STAGES[name], list(STAGES).index(name)
    tokenizer = Tokenizer.from_file(str(root / "new" / "tokenizer.json"))
    pairs = training_pairs(
        corpus(root),
        stage.canvas,
        count=stage.pairs,
        seed=number,
        meaning=stage.meaning,
        shuffled=stage.shuffled,
        accept=lambda query: len(tokenizer.encode(query).ids) <= QUERY_PIECES,
    )
    source = root / "pairs" / name
    if not any(source.glob("data/*.parquet")):
        write_pairs(source, pairs)
    convert(source, f"pages_{name}", root / "data", validation_ratio=0.02, overwrite=True)


def make_stage(root: Path, name: str, seed: int) -> None:
    """Trains one stage in a process of its own, which goes on where an earlier one was interrupted."""
    overrides = {"model": root / STAGES[name].start, "output": root / name, "seed": seed, "data.dir": root / "data"}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    command = ["-m", "train.posttrain", "--config", f"recipes/tiny/pretrain.py:{name}"]
    subprocess.run([sys.executable, *command, *flags, "--config.resume=True"], check=True)


def make_final(root: Path) -> None:
    """Writes the last stage's model with float16 weights: what the package carries as assets/tiny."""
    last = root / list(STAGES)[-1] / "model"
    shutil.copytree(last, root / "tiny")
    encoder = smart_jax.load(last)
    save_weights(root / "tiny", encoder.params, encoder.config, dtype=np.float16)


if __name__ == "__main__":
    main()
