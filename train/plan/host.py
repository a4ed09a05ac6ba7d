"""Demands of a run on its host, namely steps, pages a second and disk, beside what there is."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import jax

from smart_jax.files import open_checkpoint
from smart_jax.inputs import open_preprocessor
from smart_jax.models import ModelConfig
from train.config import TrainConfig
from train.data import Work, open_split, parse_names
from train.monitor import peak_flops, training_cost
from train.plan.abstract import AbstractRun
from train.plan.kept_states import KeptStates, kept_states
from train.plan.machines import Machine
from train.plan.shapes import BatchShape, is_here
from train.setup import preprocessing_overrides

UTILISATION = 0.4  # of the peak, that a step is taken to reach: an assumption
ROWS = 8  # of a data set, whose preparation is timed


class Host(NamedTuple):
    """Demands of a run on its host, beside what there is; None = not known.

    Attributes:
      steps: of the run.
      examples: of the data set's split.
      step_seconds: time of a step, at `UTILISATION` of the devices' peak.
      pages_wanted: documents a second that keep the devices busy.
      pages_had: documents a second that this host prepares with `data.workers` threads, at most one for each core.
      batches: bytes of the batches in host memory, over all hosts: `data.prefetch` of them, one that is begun, and one
        that goes to the devices.
      disk_wanted: bytes that the run directory grows to.
      disk_had: bytes that are free there.
      states: what keeping the frozen states takes; None = they are not to be kept.
      states_seconds: time of a step that reads them, as `step_seconds`.

    Example:
      >>> Host(10, 640, 2.0, 32.0, 40.0, 3, 1, 2).hours == 10 * 2 / 3600
      True
    """

    steps: int | None
    examples: int | None
    step_seconds: float | None
    pages_wanted: float | None
    pages_had: float | None
    batches: int
    disk_wanted: int
    disk_had: int | None
    states: KeptStates | None = None
    states_seconds: float | None = None

    @property
    def hours(self) -> float | None:
        """Hours of all steps; None = not known."""
        return None if None in (self.steps, self.step_seconds) else self.steps * self.step_seconds / 3600  # type: ignore[operator]


def host(config: TrainConfig, model: ModelConfig, shape: BatchShape, run: AbstractRun, machine: Machine) -> Host:
    """Returns what a run asks of the host it is planned on.

    Args:
      config: of the run.
      model: its backbone's.
      shape: padded sizes of a batch.
      run: its shapes.
      machine: where it is to run.
    """
    seconds = step_seconds(model, shape, run, machine)
    examples = count_examples(config)
    steps = config.steps
    if steps is None and examples is not None:
        steps = max(1, int(config.epochs * (examples // config.batch_size)))
    wanted = None if seconds is None else shape.documents / seconds
    had = None if examples is None else pages_per_second(config, model)
    batch = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.batch))
    batches = (config.data.prefetch + 2) * batch
    kept = config.data.cache_states
    folder = config.output if kept in ("off", "auto") else kept
    states = kept_states(config, model, shape, run, examples=examples, steps=steps, free=free_disk(folder))
    reading = None if states is None else seconds_of(states.flops, machine)
    disk = disk_wanted(config, run), free_disk(config.output)
    return Host(steps, examples, seconds, wanted, had, batches, *disk, states, reading)


def seconds_of(flops: float, machine: Machine) -> float | None:
    """Returns the time of so many operations at `UTILISATION` of a machine's peak; None = that is not known."""
    peak = peak_flops(machine.kind)
    return None if peak is None else flops / (peak * machine.devices * UTILISATION)


def step_seconds(model: ModelConfig, shape: BatchShape, run: AbstractRun, machine: Machine) -> float | None:
    """Returns the time of a step, see `seconds_of`."""
    weights: dict[str, jax.Array | jax.ShapeDtypeStruct] = {**run.state.params, **run.frozen}
    cost = training_cost(run.objective.partition, weights, model)
    work = Work(
        examples=shape.queries,
        tokens=shape.queries * shape.query_tokens + shape.documents * shape.document_tokens,
        token_pairs=shape.queries * shape.query_tokens**2 + shape.documents * shape.document_tokens**2,
        patches=shape.documents * shape.patches,
        patch_pairs=shape.documents * shape.patches**2,
    )
    return seconds_of(cost.flops(work), machine)


def count_examples(config: TrainConfig) -> int | None:
    """Returns the number of examples of a run's data; None = the data are not here."""
    try:
        return sum(len(open_split(config.data.dir, name, config.data.split)) for name in parse_names(config.data.name))
    except (FileNotFoundError, ValueError):
        return None


def pages_per_second(config: TrainConfig, model: ModelConfig) -> float | None:
    """Returns how many documents this host prepares a second, from the CPU time of a few; None = no model is here."""
    if not is_here(config.model):
        return None
    preprocessor = open_preprocessor(open_checkpoint(config.model), model, **preprocessing_overrides(config))
    split = open_split(config.data.dir, next(iter(parse_names(config.data.name))), config.data.split)
    documents = [split[i].document for i in range(min(ROWS, len(split)))]
    started = time.process_time()
    rows = [preprocessor.tokenize(document, instruction=config.data.document_instruction) for document in documents]
    preprocessor.collate(rows)
    taken = max(time.process_time() - started, 1e-9)
    cores = min(config.data.workers, len(os.sched_getaffinity(0)))
    return len(documents) * cores / taken


def disk_wanted(config: TrainConfig, run: AbstractRun) -> int:
    """Returns the bytes of the checkpoints that are kept, of one that is being written, and of what is exported."""
    whole = jax.tree.map(lambda x: x.size * x.dtype.itemsize, (run.state.params, run.state.opt_state))
    checkpoint = sum(jax.tree.leaves(whole))
    kept = config.checkpoint.keep + 1 + (config.checkpoint.best_metric is not None)
    trained = sum(jax.tree.leaves(whole[0]))
    model = sum(x.size * x.dtype.itemsize for x in run.frozen.values()) if config.trainable != "adapter" else 0
    return int(kept * checkpoint + trained + model)


def free_disk(folder: str) -> int | None:
    """Returns the free bytes of the disk on which a folder is, or will be; None = no folder is named."""
    if not folder:
        return None
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
