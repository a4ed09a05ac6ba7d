"""A training run put together from its config: model, objective, optimizer, data, checkpoints, evaluation, export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from safetensors import SafetensorError

from smart_jax.encoder import Encoder
from smart_jax.retrieval import Adapter
from smart_jax.runtime import batch_part, is_main, make_mesh, sum_over_processes, wait_for_all
from train.checkpoints import Checkpoints, fingerprint, weights_fingerprint
from train.config import TrainConfig
from train.data import UNREADABLE, Batcher, Example, Examples, Prepared, open_examples, open_split, parse_names
from train.export import export_lora, export_model
from train.monitor import (
    HeldOut,
    MetricsLog,
    Sample,
    Throughput,
    WandbLog,
    import_wandb,
    peak_flops,
    ranking_metrics,
    training_cost,
)
from train.objective import Params
from train.optimizer import make_optimizer, make_schedule
from train.run_directory import UnwrittenError, check_run, open_run
from train.setup import adapter_config, load_backbone, load_encoder, make_objective, weight_folders
from train.step import TrainState, init_state, make_eval_step, make_train_step

EvalFn = Callable[[Encoder], dict[str, float]]


class Run:
    """Everything of a run but its loop.

    The run directory is touched last, when model, data and settings are known to fit.

    Attributes:
      folder: the run directory.
      steps: batches of the whole run.
      train_step: compiled `(state, frozen, batch) -> (state, metrics)`.
      frozen: parameters that do not change.
      batcher: examples -> batches.
    """

    def __init__(self, config: TrainConfig, eval_fn: EvalFn | None = None):
        self.config, self.eval_fn = config, eval_fn
        mode = {"resume": config.resume, "overwrite": config.overwrite}
        check_run(config.output, **mode)
        if config.log.wandb:
            import_wandb(config.log.wandb)
        self.mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        self._check_batch_size(config.batch_size)
        data = config.data
        index, count = batch_part(self.mesh)
        self._part: dict[str, Any] = {"process_index": index, "process_count": count}
        self._examples = open_examples(
            data.dir, data.name, data.split, config.batch_size, seed=config.seed, **self._part
        )
        epochs = int(config.epochs * self._examples.batches_per_epoch)
        # Of whole updates.
        self.steps = max(1, epochs // config.accumulate) * config.accumulate if config.steps is None else config.steps
        self.encoder = load_encoder(config, self.mesh)
        teacher = config.loss.distillation != "none"
        self.batcher = Batcher(self.encoder.preprocessor, config.data, self.mesh, teacher=teacher)
        params, self.frozen, self.objective = make_objective(config, self.encoder, self.mesh, self.steps)
        optimizer = make_optimizer(config.optimizer, self.steps, config.accumulate)
        self._cost = training_cost(params, self.frozen, self.encoder.config)
        self._start, self._skipped = init_state(params, config.loss, optimizer, self.mesh), 0
        schedule = make_schedule(config.optimizer, self.steps // config.accumulate)
        self.train_step = make_train_step(self.objective, optimizer, schedule, self._start)
        self._eval_step = make_eval_step(self.objective)
        self.folder = open_run(config.output, dataclasses.asdict(config), **mode)
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints",
            identity=self._identity(),
            keep=config.checkpoint.keep,
            best_metric=config.checkpoint.best_metric,
            best_mode=config.checkpoint.best_mode,
        )

    def start_or_resume(self) -> tuple[TrainState, dict[str, Any] | None]:
        """The state to go on from, and the position in the data; None = its start.

        A damaged checkpoint is set aside, and the one before it read.
        """
        state = self._start
        del self._start  # the first update reuses its buffers
        if self.checkpoints.latest_step() is None:
            return state, None
        found = self.checkpoints.restore_newest(
            params=state.params, train_state={"step": state.step, "optimizer": state.opt_state}
        )
        state = TrainState(found.train_state["step"], found.params, found.train_state["optimizer"])
        self._skipped = found.data.get("skipped", 0)
        return state, found.data

    def batches(self, position: dict[str, Any] | None) -> Iterator[Prepared]:
        """Endless training batches, on this process its part of each, from a saved position on."""
        if position is not None:
            self._examples.set_state(position)
        return self.batcher.prepare(self._examples, self._skipped)

    def skipped(self, item: Prepared) -> int:
        """Examples left out so far, by all processes, each of which has to call this; ValueError: too many."""
        count = self._skipped + int(sum_over_processes(item.skipped))
        if count > (limit := self.config.data.max_skipped):
            raise ValueError(f"{count} examples could not be read on all processes, data.max_skipped allows {limit}")
        return count

    def open_log(self, step: int) -> MetricsLog:
        """The run's log, without what was logged after `step`."""
        project = self.config.log.wandb if jax.process_index() == 0 else ""
        mirror = WandbLog(project, self.folder, dataclasses.asdict(self.config)) if project else None
        return MetricsLog(self.folder, step, mirror)

    def throughput(self) -> Throughput:
        """A clock of the run's updates."""
        asked = self.config.log.peak_tflops
        peak = peak_flops(self.mesh.devices.flat[0]) if asked is None else asked * 1e12
        return Throughput(self._cost, None if peak is None else peak * self.mesh.size)

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], list[Sample]]:
        """Metrics: means over the validation batches and a search of the split ("validation/loss",
        "validation/late_ndcg@5", ...), and `eval_fn`'s ("eval/..."); and the search's best and worst queries."""
        results = self._validate(state) if self.config.eval.validation_batches else {}
        found, samples = self._search(state)
        results |= found
        if self.eval_fn is not None:
            results |= {f"eval/{name}": float(x) for name, x in self.eval_fn(self.trained(state.params)).items()}
        best = self.config.checkpoint.best_metric
        if best is not None and best not in results:
            raise ValueError(f"checkpoint.best_metric '{best}' is none of the evaluation's: {', '.join(results)}")
        return results, samples

    @property
    def chooses_best(self) -> bool:
        return self.config.checkpoint.best_metric is not None

    def save(self, state: TrainState, item: Prepared, metrics: dict[str, float]) -> None:
        """Writes a checkpoint; `item` is the batch of its last update."""
        train_state = {"step": state.step, "optimizer": state.opt_state}
        data = {**item.position, "skipped": self.skipped(item)}
        self.checkpoints.save(int(state.step), params=state.params, train_state=train_state, data=data, metrics=metrics)

    def trained(self, params: Params) -> Encoder:
        """An encoder with these parameters."""
        e, objective = self.encoder, self.objective
        return Encoder(
            e.config,
            e.preprocessor,
            objective.backbone.graphdef,
            objective.backbone.state(self.frozen | objective.cast(params)),
            adapter=None if objective.adapter is None else objective.adapter.merge(params),
            mesh=self.mesh,
            folder=e.folder,
        )

    def export(self, state: TrainState) -> list[Path]:
        """Writes adapter/, lora/ and model/ (the best checkpoint's, where a metric chooses it); returns the folders.

        Of several processes all take part, and the first writes.

        Raises:
          UnwrittenError: they can not be written.
        """
        best = self.checkpoints.best_step()
        params = state.params if best is None else self.checkpoints.restore_params(best, params=state.params)
        try:
            written = self._write(params)
        except (OSError, SafetensorError) as error:
            raise UnwrittenError(
                f"what was trained can not be written to {self.folder} ({error}): make room on that disk, or set the "
                "cause right, and resume the run, of which only this is left to do"
            ) from error
        wait_for_all("exported")  # the others would not wait long for one that writes a large model
        return written

    def _write(self, params: Params) -> list[Path]:
        written = []
        if self.objective.adapter is not None:
            adapter: Adapter = self.objective.adapter.merge(params)
            if is_main():
                adapter.save(self.folder / "adapter")
            written.append(self.folder / "adapter")
        if self.config.trainable == "adapter":
            return written
        weights = self.objective.backbone.state(self.frozen | params)
        if "full" in self.config.parts:
            return [*written, export_model(self.folder / "model", self.encoder, weights, self.config)]
        written.append(export_lora(self.folder / "lora", self.encoder, weights, self.config))
        wait_for_all("branches written")
        if self.config.lora.merge:
            # Merged into the weights as they are in the base's files, quantised or not in training.
            merged = load_backbone(written[-1], self.config, self.mesh)
            written.append(export_model(self.folder / "model", merged, merged.params, self.config))
        return written

    @cached_property
    def _validation(self) -> list[tuple[Any, int]]:
        """The validation split of every data set, and the size of its batches."""
        data, shards, found = self.config.data, self._shards(), []
        for name in parse_names(data.name):
            source = open_split(data.dir, name, data.validation_split)
            size = min(self.config.batch_size, len(source))
            size -= size % shards
            if size < 2:
                raise ValueError(
                    f"split '{data.validation_split}' of {name} has {len(source)} examples, too few for a batch on "
                    f"{shards} devices: convert the data with more, or set config.eval.validation_batches=0"
                )
            found.append((source, size))
        return found

    def _validate(self, state: TrainState) -> dict[str, float]:
        """Mean over the batches of each data set, and over the data sets."""
        sums: dict[str, float] = {}
        for source, size in self._validation:
            # The same batches each time, and in each run.
            examples = Examples(source, size, seed=0, epochs=1, **self._part)
            count = min(self.config.eval.validation_batches, len(source) // size)
            for _, prepared in zip(range(count), self.batcher.prepare(examples), strict=False):
                for name, x in jax.device_get(self._eval_step(state, self.frozen, prepared.batch)).items():
                    sums[name] = sums.get(name, 0.0) + float(x) / count / len(self._validation)
        return {f"validation/{name}": mean for name, mean in sums.items()}

    @cached_property
    def _held_out(self) -> dict[str, HeldOut]:
        data, limit = self.config.data, self.config.eval.validation_documents

        def open_one(name: str) -> HeldOut:
            source = open_split(data.dir, name, data.validation_split)
            return HeldOut(source, limit, self._readable, name=f"split '{data.validation_split}' of {name}")

        return {name: open_one(name) for name in parse_names(data.name)} if limit else {}

    def _readable(self, example: Example) -> bool:
        if not self.config.data.max_skipped:
            return True  # or an error where it is encoded
        try:
            for item in (example.query, example.document):
                self.encoder.preprocessor.row(item, name=f"example '{example.id}'")
        except UNREADABLE as error:
            print(f"\nleft out of the validation: {error}")
            return False
        return True

    def _search(self, state: TrainState) -> tuple[dict[str, float], list[Sample]]:
        """Mean over the data sets, and samples of each."""
        means: dict[str, float] = {}
        samples: list[Sample] = []
        if not self._held_out:
            return means, samples
        encoder, options = self.trained(state.params), self.config.eval
        for name, held_out in self._held_out.items():
            found = held_out.search(encoder, self.config)
            for kind, scores in found.scores.items():
                for metric, value in ranking_metrics(scores, found.positives).items():
                    key = f"validation/{kind}_{metric}"
                    means[key] = means.get(key, 0.0) + value / len(self._held_out)
            prefix = "samples" if len(self._held_out) == 1 else f"samples/{name}"
            samples += held_out.samples(found, self.config.loss.objective, options.samples, encoder, prefix)
        return means, samples

    def _shards(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def _check_batch_size(self, size: int) -> None:
        if size % self._shards():
            raise ValueError(
                f"batch_size {size} does not divide by the {self._shards()} devices that share the batch: choose a "
                "multiple, or fewer devices (config.mesh.data)"
            )
        if (chunk := self.config.chunk_size) is not None and chunk < self._shards():
            raise ValueError(f"chunk_size {chunk} is below the {self._shards()} devices that share the batch: raise it")

    def _identity(self) -> dict[str, Any]:
        adapter = self.objective.adapter
        identity = {
            "architecture": fingerprint(self.encoder.config),
            "trainable": self.config.trainable,
            "adapter": None if adapter is None else dataclasses.asdict(adapter_config(self.config, self.encoder)),
            # What is trained belongs to weights that are not; training of all weights holds them itself.
            "weights": weights_fingerprint(*weight_folders(self.encoder)) if self.frozen else None,
        }
        if "lora" in self.config.parts:
            identity["lora"] = dataclasses.asdict(dataclasses.replace(self.config.lora, merge=False))
        return identity
