"""Training steps without arrays: shapes with their places on a mesh, to be lowered and compiled."""

from __future__ import annotations

import dataclasses
from typing import cast

import jax
from jax.sharding import Mesh

from smart_jax.models import QwenVLConfig
from train.config import LoraOptions, LossConfig, TrainConfig
from train.optimizer import make_optimizer, make_schedule
from train.plan import AbstractRun, BatchShape, abstract_run
from train.step import make_train_step

GIB = 2**30
STEPS = 100  # steps of the run that a step is taken from


@dataclasses.dataclass(frozen=True)
class Work:
    """Trained part and size of a step.

    Attributes:
      trainable: "adapter", or "lora" of the text projections.
      rows: queries of each device, and as many pages.
      query_tokens: tokens of a padded query.
      page_tokens: tokens of a padded page.
      patches: patches of a page.
      chunk: rows of each device that pass through the backbone at a time; None = all.
      remat: see `train.objective.Objective`.
      r: rank of "lora".
    """

    trainable: str
    rows: int
    query_tokens: int = 64
    page_tokens: int = 512
    patches: int = 1024
    chunk: int | None = None
    remat: bool = False
    r: int = 128

    def run(self, model: QwenVLConfig, mesh: Mesh) -> AbstractRun:
        """Returns the shapes of a run of it on a bfloat16 backbone."""
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        config = TrainConfig(
            trainable=self.trainable,
            dtype="bfloat16",
            remat=self.remat,
            chunk_size=None if self.chunk is None else self.chunk * shards,
            loss=LossConfig() if self.trainable == "adapter" else LossConfig(objective="hybrid"),
            lora=LoraOptions(r=self.r, alpha=2.0 * self.r),
        )
        rows = self.rows * shards
        return abstract_run(
            config, model, BatchShape(rows, rows, self.query_tokens, self.page_tokens, self.patches), mesh
        )


def abstract_step(model: QwenVLConfig, mesh: Mesh, work: Work) -> tuple[jax.stages.Wrapped, AbstractRun]:
    """Returns the step of `train.step` on a bfloat16 backbone, and the shapes of its arguments."""
    run, settings = work.run(model, mesh), TrainConfig().optimizer
    schedule, optimizer = make_schedule(settings, STEPS), make_optimizer(settings, STEPS)
    return cast(jax.stages.Wrapped, make_train_step(run.objective, optimizer, schedule, run.state)), run
