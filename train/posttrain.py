"""Post-trains a retriever: `python -m train.posttrain --config configs/x.py[:ARG] [--config.KEY=VALUE ...]`.

With trainable = "adapter" the backbone stays frozen and a token projection is learned (arXiv:2605.24938). With "lora"
low-rank branches of its linear maps are learned, with "full" its own weights; "adapter+lora" and "adapter+full" learn
both. The run directory gets metrics.jsonl, tensorboard/, checkpoints/, config.json and, at the end, what
`smart_jax.load` opens: adapter/, lora/ (which PEFT opens, too) and model/.

`--sweep optimizer.learning_rate=1e-3,3e-4` runs once for each value, into OUTPUT/01, OUTPUT/02 and so on. An adapter's
runs share the frozen states in OUTPUT/states, unless `data.cache_states` says otherwise.

A config file has `get_config(arg="")` and, if the run is to be evaluated, `get_eval_fn(config: TrainConfig)`, which
returns a function of an `Encoder` to metrics by name.
"""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from smart_jax.config_files import run_config_file
from smart_jax.runtime import batch_part, distributed, is_main, make_mesh, on_any
from train.checkpoints import Checkpoints
from train.config import TrainConfig, from_config_dict
from train.data import Batcher, Examples, Mixture, Prefetch, Prepared, open_examples
from train.monitor import (
    LossGuard,
    MetricsLog,
    Progress,
    StopRequest,
    Throughput,
    WandbLog,
    announce,
    format_table,
    import_wandb,
    memory,
    peak_flops,
)
from train.plan import advice, batch_shape, fit, model_config, this_machine
from train.run_directory import BusyRunError, UnwrittenError, check_run, hold_run, open_run
from train.states import StatesBatcher, StatesCache
from train.sweep import sweep
from train.training import Training
from train.validation import EvalFn, UnevaluatedError, evaluation_of, failed_evaluation


def train(config: TrainConfig, eval_fn: EvalFn | None = None) -> dict[str, float]:
    """Runs, or goes on with, the training that `config` describes.

    Args:
      config: of the run.
      eval_fn: function of an `Encoder` to metrics by name, which are logged as "eval/NAME"; None = there is none.

    Returns:
      The last evaluation's metrics; none if SIGTERM ended the run early.

    Raises:
      FileExistsError: the run directory is not empty, without `resume` or `overwrite`.
      BusyRunError: another process writes to the run directory.
      ValueError: settings, data or checkpoints do not fit together; the message names the remedy.
      UnwrittenError: the disk is full, for example; the run resumes from its last checkpoint.
      UnevaluatedError: the run is trained and exported, but the evaluation after it failed.
      FloatingPointError: loss or gradient are not finite, more often than `optimizer.skip_nonfinite` in a row; the
        message names the step and the batch's examples.
    """
    distributed.initialize(config.distributed)
    check_run(config.output, resume=config.resume, overwrite=config.overwrite)
    if config.log.wandb:
        import_wandb(config.log.wandb)
    asked, config = config, fitted(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp or 1, config.mesh.tensor)
    examples = open_data(config, mesh)
    steps = count_steps(config, examples.batches_per_epoch)
    training = Training(config, mesh, steps, eval_fn)
    training.check_evaluation()
    # The directory is touched last, when settings, data and model are known to fit.
    with hold_run(config.output):
        return train_in(asked, config, training, examples, mesh, steps)


def train_in(
    asked: TrainConfig, config: TrainConfig, training: Training, examples: Examples | Mixture, mesh: Mesh, steps: int
) -> dict[str, float]:
    """Does what `train` does, in the run directory, which no other process writes to.

    Args:
      asked: the config as it was given.
      config: the same, with what it left to the devices' memory.
      training: before the first update.
      examples: to train with.
      mesh: of devices.
      steps: batches of the whole run.
    """
    folder = open_run(config.output, dataclasses.asdict(asked), resume=config.resume, overwrite=config.overwrite)
    checkpoints = open_checkpoints(folder, config, training)
    skipped = resume(training, examples, checkpoints)
    if training.step > steps:
        raise ValueError(
            f"{folder} is at step {training.step}, and the config asks for {steps}: raise config.steps (or "
            "config.epochs) to go on, or start another run (--config.output=runs/NAME)"
        )
    start, position = training.step, examples.get_state() | {"skipped": skipped}
    announce(f"{folder}: steps {start + 1} to {steps}" if start < steps else f"{folder}: all {steps} steps are done")
    cache = training.keep_states(folder, steps - start) if start < steps else None
    if cache is not None:
        examples = open_data(config, mesh, cache)
        examples.set_state(position)
    log = open_log(folder, config, start)
    with ExitStack() as whole, ExitStack() as stack:
        whole.enter_context(closing(log))
        stop = stack.enter_context(StopRequest())
        batches = stack.enter_context(
            closing(open_batches(training.batcher, examples, skipped, mesh, config.data.prefetch))
        )
        progress = stack.enter_context(closing(Progress(start, steps, config.batch_size)))
        throughput = Throughput(training.cost, peak_of_all(config, mesh))
        guard = LossGuard(config.optimizer.skip_nonfinite)
        for step in range(start + 1, steps + 1):
            prepared = next(batches)
            metrics = training.update(prepared.batch)
            throughput.add(prepared.work)
            guard.push(step, prepared.ids, metrics["loss"], metrics["grad_norm"])
            progress.update(step, guard.last)
            stopping = stop.asked(step) and step < steps
            evaluating = step < steps and due(step, config.eval.every, steps) and not stopping
            if step < steps and not stopping and not evaluating:
                batches.advance()  # onto the devices, while they compute this step; the one before is done
            if due(step, config.log_every, steps) or evaluating:
                guard.flush()
                record = {name: float(x) for name, x in jax.device_get(metrics).items()}
                record |= {"skipped_examples": prepared.count_skipped(config.data.max_skipped)}
                record |= throughput.read() | memory()
                with throughput.paused():
                    evaluated, samples = training.evaluate() if evaluating else ({}, [])
                    log.write(step, record | evaluated, samples)
            chosen_by_metric = evaluating and config.checkpoint.best_metric is not None
            if due(step, config.checkpoint.every, steps) or stopping or chosen_by_metric:
                guard.flush()
                with throughput.paused():
                    position = prepared.position | {"skipped": prepared.count_skipped(config.data.max_skipped)}
                    training.save(checkpoints, position, evaluated if evaluating else {})
            if stopping:
                announce(f"\nstopped by SIGTERM after saving step {step}: --config.resume=True goes on from there")
                return {}
        stack.close()
        results = finish(training, folder, checkpoints, log, position)
    if cache is not None and config.data.cache_states == "auto":
        cache.delete()
    return results


def finish(
    training: Training, folder: Path, checkpoints: Checkpoints, log: MetricsLog, position: dict[str, Any]
) -> dict[str, float]:
    """Exports what was trained, and evaluates it, unless an earlier start of the run has done so.

    The export comes first: an evaluation takes other data, disk and memory, and can fail after hours of training.

    Args:
      training: after the last step, whose checkpoint is written.
      folder: the run directory.
      checkpoints: of the run.
      log: gets the metrics.
      position: in the data, for a checkpoint with the metrics.

    Returns:
      The metrics.

    Raises:
      UnevaluatedError: the evaluation failed; what was trained is exported.
    """
    written, step = training.export(folder, checkpoints), training.step
    results = evaluation_of(log.last)
    if not on_any(is_main() and bool(results)):
        try:
            results, samples = training.evaluate()
        except Exception as error:
            raise UnevaluatedError(failed_evaluation(training.config, written, error)) from error
        log.write(step, results, samples)
        if training.config.checkpoint.best_metric is not None:
            training.save(checkpoints, position, results)
            written = training.export(folder, checkpoints)
    announce(format_table(results, f"after step {step}; {', '.join(map(str, written))}:"))
    return results


def fitted(config: TrainConfig) -> TrainConfig:
    """Returns the config with the settings chosen that it leaves to the devices' memory, see `train.plan`.

    Raises:
      ValueError: an update needs more memory than a device has; the message names what fits.
    """
    here = this_machine()
    found = fit(config, here)
    if not found.fits:
        model = model_config(config.model)
        remedy = advice(config, here, model, batch_shape(config, model))
        raise ValueError(f"an update does not fit {here.devices} x {here.kind}: {found.describe()}; {remedy}")
    if found.memory is not None:
        announce(found.describe())
    return found.config


def open_data(config: TrainConfig, mesh: Mesh, cache: StatesCache | None = None) -> Examples | Mixture:
    """Opens the training split, of which each process reads its part of every batch.

    Args:
      config: of the run.
      mesh: batches are split over its data axes.
      cache: states of the split, whose examples are then numbers; None = there are none.

    Raises:
      ValueError: `batch_size` or `chunk_size` does not fit the mesh; and as `open_examples`.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % shards:
        raise ValueError(
            f"batch_size {config.batch_size} does not divide by the {shards} devices that share the batch: choose a "
            "multiple, or fewer devices (config.mesh.data)"
        )
    if config.chunk_size is not None and config.chunk_size < shards:
        raise ValueError(f"chunk_size {config.chunk_size} is below the {shards} devices that share the batch: raise it")
    data, (index, count) = config.data, batch_part(mesh)
    how: dict[str, Any] = {"seed": config.seed, "process_index": index, "process_count": count}
    if cache is not None:
        items = cache.items
        how["opened"] = lambda name: items.examples((name, data.split))
    return open_examples(data.dir, data.name, data.split, config.batch_size, **how)


def open_batches(
    batcher: Batcher | StatesBatcher, examples: Examples | Mixture, skipped: int, mesh: Mesh, ahead: int
) -> Prefetch[Prepared, Prepared]:
    """Starts to prepare batches, which are given out on the mesh.

    At most `ahead` + 1 are in host memory: one is read while another is collated, or waits to be taken.
    """
    return Prefetch(batcher.prepare(examples, skipped), lambda prepared: prepared.put(mesh), ahead)


def count_steps(config: TrainConfig, batches_per_epoch: int) -> int:
    """Returns the number of batches of the whole run; those of `epochs` make whole updates."""
    if config.steps is not None:
        return config.steps
    return max(1, int(config.epochs * batches_per_epoch) // config.accumulate) * config.accumulate


def open_checkpoints(folder: Path, config: TrainConfig, training: Training) -> Checkpoints:
    """Opens the checkpoints in a run directory."""
    return Checkpoints(
        folder / "checkpoints",
        identity=training.identity,
        keep=config.checkpoint.keep,
        best_metric=config.checkpoint.best_metric,
        best_mode=config.checkpoint.best_mode,
    )


def resume(training: Training, examples: Examples | Mixture, checkpoints: Checkpoints) -> int:
    """Goes on from the newest checkpoint, where there is one; returns how many examples were skipped until then."""
    if (position := training.resume(checkpoints)) is None:
        return 0
    examples.set_state(position)
    return position.get("skipped", 0)


def open_log(folder: Path, config: TrainConfig, step: int) -> MetricsLog:
    """Opens the run's log, without what was logged after `step`."""
    project = config.log.wandb if is_main() else ""
    return MetricsLog(folder, step, WandbLog(project, folder, dataclasses.asdict(config)) if project else None)


def peak_of_all(config: TrainConfig, mesh: Mesh) -> float | None:
    """Returns the peak of a mesh's devices together in FLOP/s, from the config or a table; None = it is not known."""
    asked = config.log.peak_tflops
    peak = peak_flops(mesh.devices.flat[0].device_kind) if asked is None else asked * 1e12
    return None if peak is None else peak * mesh.size


def due(step: int, every: int, steps: int) -> bool:
    """Returns True at every `every`-th step (0 = none of them) and at the last."""
    return step == steps or (every > 0 and step % every == 0)


def main() -> None:
    """Runs the command."""
    flags.DEFINE_string("sweep", None, "KEY=VALUE,VALUE,...: a run for each value of a key of the config.")
    run_config_file(run, example="python -m train.posttrain --config configs/vidore.py", defaults=TrainConfig)


def run(values: ConfigDict, module: ModuleType) -> None:
    """Trains as a config file says, or once for each value of a sweep."""
    if not flags.FLAGS.sweep:
        return run_once(from_config_dict(values), module)
    failed = []
    for config in sweep(values.to_dict(), flags.FLAGS.sweep):
        try:
            run_once(config, module)
        except FloatingPointError as error:  # at too high a rate: the other runs go on
            announce(f"{config.output}: {error}")
            failed.append(config.output)
    if failed:
        sys.exit(f"there is nothing in {', '.join(failed)}: the loss was not finite")


def run_once(config: TrainConfig, module: ModuleType) -> None:
    """Trains; what the user can set right ends the program with a message."""
    distributed.initialize(config.distributed)  # before get_eval_fn, which may use a device
    eval_fn = module.get_eval_fn(config) if hasattr(module, "get_eval_fn") else None
    if eval_fn is None and config.eval.benchmark is not None:
        sys.exit(
            f"config.eval.benchmark is '{config.eval.benchmark}', but the config file evaluates none: drop the key, or "
            "give the file a get_eval_fn(config)"
        )
    try:
        train(config, eval_fn)
    except (FileExistsError, BusyRunError, UnwrittenError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
