"""Post-trains a retriever: `python -m train.posttrain --config configs/x.py[:ARG] [--config.KEY=VALUE ...]`.

With trainable = "adapter" the backbone stays frozen and a token projection is learned (arXiv:2605.24938); with "lora"
low-rank branches of its linear maps are, with "full" its own weights; "adapter+lora" and "adapter+full" learn both. The
run directory gets metrics.jsonl, tensorboard/, checkpoints/, config.json and, at the end, adapter/, lora/ (which PEFT
opens, too) and model/, for `smart_jax.load`.

A config file has `get_config(arg="")` and, if the run is to be evaluated, `get_eval_fn(config: TrainConfig)`, which
returns a function of an `Encoder` to metrics by name.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import ExitStack, closing

import jax
from absl import app, flags
from ml_collections import config_flags

from smart_jax.runtime import compilation_cache, distributed
from train.config import TrainConfig, from_config_dict
from train.data import Prefetch
from train.monitor import LossGuard, Progress, StopRequest, announce, format_table, memory
from train.run import EvalFn, Run
from train.run_directory import UnwrittenError


def train(config: TrainConfig, eval_fn: EvalFn | None = None) -> dict[str, float]:
    """Runs, or goes on with, the training that `config` describes.

    Returns:
      The last evaluation's metrics; none if SIGTERM ended the run early.

    Raises:
      FileExistsError: the run directory is not empty, without `resume` or `overwrite`.
      ValueError: settings, data or checkpoints do not fit together; the message names the remedy.
      UnwrittenError: the disk is full, for example; the run resumes from its last checkpoint.
      FloatingPointError: loss or gradient are not finite, more often than `optimizer.skip_nonfinite` in a row; the
        message names the step and the batch's examples.
    """
    distributed.initialize(config.distributed)
    run = Run(config, eval_fn)
    state, position = run.start_or_resume()
    folder, start, steps = run.folder, int(state.step), run.steps
    announce(f"{folder}: steps {start + 1} to {steps}" if start < steps else f"{folder}: all {steps} steps are done")
    evaluated: dict[str, float] = {}
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        log = stack.enter_context(closing(run.open_log(start)))
        batches = stack.enter_context(closing(Prefetch(run.batches(position), config.data.prefetch)))
        throughput = run.throughput()
        progress = stack.enter_context(closing(Progress(start, steps, config.batch_size)))
        guard = LossGuard(config.optimizer.skip_nonfinite)
        for step in range(start + 1, steps + 1):
            item = next(batches)
            state, metrics = run.train_step(state, run.frozen, item.batch)
            throughput.add(item.work)
            guard.push(step, item.ids, metrics["loss"], metrics["grad_norm"])
            progress.update(step, guard.last)
            stopping = stop.asked(step) and step < steps
            evaluating = due(step, config.eval.every, steps) and not stopping
            if due(step, config.log_every, steps) or evaluating:
                guard.flush()
                record = {name: float(x) for name, x in jax.device_get(metrics).items()}
                record |= {"skipped_examples": run.skipped(item)} | throughput.read() | memory()
                with throughput.paused():
                    evaluated, samples = run.evaluate(state) if evaluating else ({}, [])
                    log.write(step, record | evaluated, samples)
            if due(step, config.checkpoint.every, steps) or stopping or (evaluating and run.chooses_best):
                guard.flush()
                with throughput.paused():
                    run.save(state, item, evaluated if evaluating else {})
            if stopping:
                announce(f"\nstopped by SIGTERM after saving step {step}: --config.resume=True goes on from there")
                return {}
    results = evaluated or run.evaluate(state)[0]
    where = ", ".join(map(str, run.export(state)))
    announce(format_table(results, f"after step {steps}; {where}:"))
    return results


def due(step: int, every: int, steps: int) -> bool:
    """Returns True at every `every`-th step (0 = none of them) and at the last."""
    return step == steps or (every > 0 and step % every == 0)


def main() -> None:
    """The command line."""
    flag = config_flags.DEFINE_config_file("config", help_string="Config file, with :ARG for its get_config.")

    def parse(argv: list[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError) as error:  # ml_collections' answer to an unknown key
            sys.exit(f"unknown config key: {str(error).strip(chr(39)).encode().decode('unicode_escape')}")

    def run(_: list[str]) -> None:
        if flag.value is None:
            sys.exit("give a config file: python -m train.posttrain --config configs/vidore.py")
        compilation_cache.enable()
        config = from_config_dict(flag.value)
        distributed.initialize(config.distributed)  # before get_eval_fn, which may use a device
        file = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
        spec = importlib.util.spec_from_file_location("run_config", file)
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        eval_fn = module.get_eval_fn(config) if hasattr(module, "get_eval_fn") else None
        try:
            train(config, eval_fn)
        except (FileExistsError, UnwrittenError) as error:
            sys.exit(str(error))

    app.run(run, flags_parser=parse)


if __name__ == "__main__":
    main()
