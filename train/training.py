"""What a run trains: its state, and how that is updated, evaluated, saved and exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from safetensors import SafetensorError

from smart_jax import Encoder
from smart_jax.retrieval import Adapter
from smart_jax.runtime import is_main, wait_for_all
from train.checkpoints import Checkpoints, fingerprint, weights_fingerprint
from train.config import TrainConfig
from train.data import Batcher
from train.export import export_lora, export_model
from train.monitor import Cost, Sample, training_cost
from train.objective import Metrics, Params, TrainBatch
from train.optimizer import make_optimizer, make_schedule
from train.run_directory import UnwrittenError
from train.setup import adapter_config, load_backbone, load_encoder, make_objective, weight_folders
from train.step import TrainState, init_state, make_train_step
from train.validation import EvalFn, Validation


class Training:
    """The model of a run with the state of its training.

    Attributes:
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
        self._config, self._mesh = config, mesh
        self.encoder = load_encoder(config, mesh)
        params, self.frozen, self.objective = make_objective(config, self.encoder, mesh, steps)
        teacher = config.loss.distillation != "none"
        self.batcher = Batcher(self.encoder.preprocessor, config.data, mesh, teacher=teacher)
        self._validation = Validation(config, self.batcher, self.objective, eval_fn)
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
        """What a checkpoint's parameters belong to: architecture, what is trained, and the weights that are not."""
        adapter = self.objective.adapter
        identity = {
            "architecture": fingerprint(self.encoder.config),
            "trainable": self._config.trainable,
            "adapter": None if adapter is None else dataclasses.asdict(adapter_config(self._config, self.encoder)),
            # What is trained belongs to weights that are not; training of all weights holds them itself.
            "weights": weights_fingerprint(*weight_folders(self.encoder)) if self.frozen else None,
        }
        if "lora" in self._config.parts:
            identity["lora"] = dataclasses.asdict(dataclasses.replace(self._config.lora, merge=False))
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

        Of several processes all take part, and the first writes.

        Returns:
          The folders that were written.

        Raises:
          UnwrittenError: they cannot be written.
        """
        best = checkpoints.best_step()
        params = self.state.params if best is None else checkpoints.restore_params(best, params=self.state.params)
        try:
            written = self._write(folder, params)
        except (OSError, SafetensorError) as error:
            raise UnwrittenError(
                f"what was trained cannot be written to {folder} ({error}): make room on that disk, or set the "
                "cause right, and resume the run, of which only this is left to do"
            ) from error
        wait_for_all("exported")  # the others would not wait long for one that writes a large model
        return written

    def _write(self, folder: Path, params: Params) -> list[Path]:
        written, config = [], self._config
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
