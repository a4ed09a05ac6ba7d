"""Training of a run: its state, and how that is updated, evaluated, saved and exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from safetensors import SafetensorError

from smart_jax import Encoder
from smart_jax.retrieval import Adapter
from smart_jax.runtime import is_main, on_any, wait_for_all
from train.checkpoints import Checkpoints, fingerprint, weights_fingerprint
from train.config import TrainConfig
from train.data import Batcher, parse_names
from train.export import export_lora, export_model, exports, is_exported, mark_exported
from train.monitor import Cost, Sample, training_cost
from train.objective import Metrics, Params, TrainBatch
from train.optimizer import make_optimizer, make_schedule
from train.run_directory import UnwrittenError
from train.setup import adapter_config, load_backbone, load_encoder, make_objective, weight_folders
from train.states import StatesBatcher, StatesCache, keep_states
from train.step import TrainState, init_state, make_train_step
from train.validation import EvalFn, Validation


class Training:
    """The model of a run with the state of its training.

    Attributes:
      config: of the run.
      encoder: the model as it was loaded, with the preprocessing of the run.
      objective: the loss.
      frozen: parameters that do not change.
      state: all that an update changes.
      batcher: makes batches of examples.
      cost: FLOPs of an update.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, steps: int, eval_fn: EvalFn | None = None):
        """Loads the model and makes the state before the first update.

        Args:
          config: of the run.
          mesh: of devices, for batches and parameters.
          steps: batches of the whole run.
          eval_fn: metrics of an encoder by name, for `evaluate`.

        Raises:
          ValueError: the settings do not fit the model; the message names them.
        """
        self.config, self._mesh = config, mesh
        self.encoder = load_encoder(config, mesh)
        params, self.frozen, self.objective = make_objective(config, self.encoder, mesh, steps)
        teacher = config.loss.distillation != "none"
        batcher = Batcher(self.encoder.preprocessor, config.data, mesh, teacher=teacher)
        self.batcher: Batcher | StatesBatcher = batcher
        self._validation = Validation(config, batcher, self.objective, eval_fn)
        self.cost: Cost = training_cost(self.objective.partition, params | self.frozen, self.encoder.config)
        optimizer = make_optimizer(config.optimizer, steps, config.accumulate)
        schedule = make_schedule(config.optimizer, steps // config.accumulate)
        self.state = init_state(params, optimizer, mesh)
        self._train_step = make_train_step(self.objective, optimizer, schedule, self.state)

    @property
    def step(self) -> int:
        """Number of batches seen."""
        return int(self.state.step)

    def update(self, batch: TrainBatch) -> Metrics:
        """Takes a training step; returns its metrics, which the devices may be computing still."""
        self.state, metrics = self._train_step(self.state, self.frozen, batch)
        return metrics

    def keep_states(self, folder: Path, steps: int) -> StatesCache | None:
        """Has the frozen states computed once where `data.cache_states` asks for it, and trains with them from then on.

        Args:
          folder: the run directory.
          steps: that are left.

        Returns:
          The states; the examples of batches are then those of `StatesCache.items`. None = they are not kept.

        Raises:
          ValueError, UnwrittenError: as `train.states.keep_states`.
        """
        config, adapter = self.config, self.objective.adapter
        if adapter is None:
            return None
        data, every = config.data, config.eval.every
        evaluations = 1 + (steps - 1) // every if every else 1
        searched = config.eval.validation_batches * config.batch_size + config.eval.validation_documents
        once = data.cache_states == "auto" and evaluations == 1
        splits = [data.split] if once or not searched else [data.split, data.validation_split]
        cache = keep_states(
            config,
            self.encoder,
            self.objective,
            self.frozen,
            adapter_config(config, self.encoder.config).layers,
            splits=[(name, split) for split in splits for name in parse_names(data.name)],
            read=steps * config.batch_size * (1 + data.negatives) + (evaluations - 1) * searched,
            run=folder,
            started=self.step > 0,
        )
        if cache is not None:
            teacher = config.loss.distillation != "none"
            batcher = StatesBatcher(cache, self.encoder.preprocessor, data, self.objective, teacher=teacher)
            self.batcher = batcher
            self._validation.use_states(batcher)
            self.cost = training_cost(self.objective.partition, self.state.params, self.encoder.config)
        return cache

    def check_evaluation(self) -> None:
        """Refuses settings at which `evaluate` would fail, see `Validation.check`."""
        self._validation.check(self.state, self.frozen, self.trained)

    def evaluate(self) -> tuple[dict[str, float], list[Sample]]:
        """Returns metrics of the state, and the best and worst queries of its search, see `Validation`."""
        return self._validation(self.state, self.frozen, self.trained)

    def trained(self, params: Params | None = None) -> Encoder:
        """Returns an encoder with these trained parameters; None = those of the state."""
        params = self.state.params if params is None else params
        backbone, adapter = self.objective.backbone, self.objective.adapter
        weights = backbone.state(self.frozen | self.objective.cast(params))
        encoder = self.encoder.with_params(weights, graphdef=backbone.graphdef)
        return encoder.with_adapter(None if adapter is None else adapter.merge(params))

    @property
    def identity(self) -> dict[str, Any]:
        """Identity of a checkpoint's parameters: architecture, what is trained, and the weights that are not."""
        adapter, model = self.objective.adapter, self.encoder.config
        identity = {
            "architecture": fingerprint(model),
            "trainable": self.config.trainable,
            "adapter": None if adapter is None else adapter_config(self.config, model).settings(),
            # What is trained belongs to weights that are not; training of all weights holds them itself.
            "weights": weights_fingerprint(*weight_folders(self.encoder)) if self.frozen else None,
        }
        if "lora" in self.config.parts:
            identity["lora"] = dataclasses.asdict(dataclasses.replace(self.config.lora, merge=False))
        return identity

    def resume(self, checkpoints: Checkpoints) -> dict[str, Any] | None:
        """Takes the state of the newest checkpoint, where there is one.

        A damaged checkpoint is set aside, and the one before it read.

        Returns:
          What was saved beside it: the position in the data; None = there is no checkpoint.
        """
        if checkpoints.latest_step() is None:
            return None
        train_state = {"step": self.state.step, "optimizer": self.state.opt_state}
        saved = checkpoints.restore_newest(params=self.state.params, train_state=train_state)
        self.state = TrainState(saved.train_state["step"], saved.params, saved.train_state["optimizer"])
        return saved.data

    def save(self, checkpoints: Checkpoints, data: dict[str, Any], metrics: dict[str, float]) -> None:
        """Writes a checkpoint with the position in the data and the metrics that the best one is chosen by."""
        train_state = {"step": self.state.step, "optimizer": self.state.opt_state}
        checkpoints.save(self.step, params=self.state.params, train_state=train_state, data=data, metrics=metrics)

    def export(self, folder: Path, checkpoints: Checkpoints) -> list[Path]:
        """Writes adapter/, lora/ and model/ into the run directory: the best checkpoint's, where a metric chooses it.

        Of several processes all take part, and the first writes. What is there, whole and of the same step, is left.

        Returns:
          The folders.

        Raises:
          UnwrittenError: they cannot be written.
        """
        best, names = checkpoints.best_step(), exports(self.config)
        step = self.step if best is None else best
        if not on_any(is_main() and not is_exported(folder, names, step)):
            return [folder / name for name in names]
        params = self.state.params if best is None else checkpoints.restore_params(best, params=self.state.params)
        try:
            written = self._write(folder, params)
            if is_main():
                mark_exported(folder, names, step)
        except (OSError, SafetensorError) as error:
            raise UnwrittenError(
                f"what was trained cannot be written to {folder} ({error}): make room on that disk, or set the "
                "cause right, and resume the run, of which only this is left to do"
            ) from error
        wait_for_all("exported")  # the others would not wait long for one that writes a large model
        return written

    def _write(self, folder: Path, params: Params) -> list[Path]:
        written, config = [], self.config
        if self.objective.adapter is not None:
            adapter: Adapter = self.objective.adapter.merge(params)
            if is_main():
                adapter.save(folder / "adapter")
            written.append(folder / "adapter")
        if config.trainable == "adapter":
            return written
        weights = self.objective.backbone.state(self.frozen | params)
        if "full" in config.parts:
            return [*written, export_model(folder / "model", self.encoder, weights, config)]
        written.append(export_lora(folder / "lora", self.encoder, weights, config))
        wait_for_all("branches written")
        if config.lora.merge:
            # Merged into the weights as they are in the base's files, quantised or not in training.
            merged = load_backbone(written[-1], config, self._mesh)
            written.append(export_model(folder / "model", merged, merged.params, config))
        return written
