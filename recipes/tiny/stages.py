"""The curriculum of the embedded model: the reading warm-up, then contrastive training on growing pages.

`get_config` makes a config of the trainer from each stage; `recipes/tiny/pretrain.py:STAGE` names it on a command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from recipes.tiny.architecture import PROMPT_PIECES, QUERY_PIECES
from recipes.tiny.canvas import Canvas
from train.config import default_config

ROOT = Path("build/tiny")


class ReadingStage(NamedTuple):
    """The reading warm-up: pages and texts of one batch, and the number of updates."""

    canvas: Canvas
    batch_size: int
    steps: int


class Stage(NamedTuple):
    """Contrastive training on pages of one size.

    Attributes:
      start: the model folder that it goes on from, below the recipe's folder.
      height, width: of the pages, in pixels.
      pairs: pairs of a query and a page, made once.
      batch_size, steps, learning_rate, temperature: of the trainer.
      decay_ratio: share of the steps, at the end, over which the learning rate falls.
      meaning, shuffled: shares of the pairs, see `training_pairs`.
    """

    start: str
    height: int
    width: int
    pairs: int
    batch_size: int
    steps: int
    learning_rate: float
    temperature: float
    decay_ratio: float = 0.0
    meaning: float = 0.05
    shuffled: float = 0.2

    @property
    def canvas(self) -> Canvas:
        """The pages."""
        return Canvas(self.height, self.width)


READING = ReadingStage(Canvas(64, 128), batch_size=64, steps=220)
# Muon: after two minutes at 64x128 the in-batch accuracy was .58, AdamW's .52. In equal time, twice or half the rate,
# half the batch and several queries for each page gained nothing; bfloat16 is no faster on a CPU.
STAGES = {
    "32x64": Stage("warmup", 32, 64, 40_000, 256, 220, 1.5e-3, 0.07, meaning=0.0, shuffled=0.0),
    "64x128": Stage("32x64/model", 64, 128, 60_000, 128, 800, 1.5e-3, 0.05),
    "128x256": Stage("64x128/model", 128, 256, 100_000, 128, 850, 1.2e-3, 0.035, decay_ratio=0.75),
}


def get_config(arg: str = "32x64") -> ConfigDict:
    """Returns the trainer's config of one stage.

    Args:
      arg: name of the stage, as in `--config recipes/tiny/pretrain.py:64x128`.

    Raises:
      ValueError: there is no such stage.

    Example:
      >>> config = get_config("64x128")
      >>> config.model, config.output, config.data.document_length
      ('build/tiny/32x64/model', 'build/tiny/64x128', 18)
    """
    if arg not in STAGES:
        raise ValueError(f"stage '{arg}' is unknown: choose one of {', '.join(STAGES)}")
    stage = STAGES[arg]
    visual = stage.height * stage.width // 1024  # tokens of a page
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
    config.data.query_length = QUERY_PIECES + PROMPT_PIECES
    config.data.document_length = visual + 10
    config.data.document_patches = 4 * visual
    config.eval.validation_batches = 4
    config.checkpoint.every = 100
    config.checkpoint.keep = 1
    return config
