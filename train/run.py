"""A training run put together from its config: model, objective, optimizer, data, checkpoints, evaluation, export."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError

from smart_jax import encode
from smart_jax.adapter import Adapter, AdapterConfig, parse_layers
from smart_jax.checkpoint import Checkpoints, UnwrittenError, fingerprint, weights_fingerprint
from smart_jax.distributed import is_main, wait_for_all
from smart_jax.encode import Encoder
from smart_jax.hub import resolve_base
from smart_jax.lora import add_lora, save_lora
from smart_jax.models.peft import CONFIG_FILE, find_adapter, having
from smart_jax.models.weights import save_weights
from smart_jax.prompt import TOKENIZER_FILES
from smart_jax.settings import SETTINGS_FILE, Settings, read_settings
from smart_jax.sharding import batch_part, make_mesh, place, replicated
from train.batches import UNREADABLE, Batcher, Prepared
from train.config import TrainConfig
from train.data import Example, Examples, open_split
from train.heldout import HeldOut, ranking_metrics
from train.loop import MetricsLog, check_run, open_run
from train.mixture import open_examples, parse_names
from train.optimizer import make_optimizer, make_schedule
from train.step import (
    Objective,
    Params,
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
    take_apart,
)
from train.tensorboard import Sample
from train.throughput import Throughput, peak_flops, total, training_cost
from train.wandb_log import WandbLog, import_wandb

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
        count = self._skipped + int(total(item.skipped))
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
        """Metrics: means over the validation batches and, with one process, a search of the split ("validation/loss",
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
            merged = _load(written[-1], self.config, self.mesh)
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


def load_encoder(config: TrainConfig, mesh: Mesh) -> Encoder:
    """The backbone that is trained or frozen, with the preprocessing and low-rank branches that the config asks for.

    Raises:
      ValueError: no model is named, or low-rank branches are asked for beside those of an adapter that it has.
    """
    if not config.model:
        raise ValueError("config.model is empty: name a checkpoint folder or hub id, --config.model=...")
    encoder = _load(config.model, config, mesh, task=config.task)
    if "lora" not in config.parts:
        return encoder
    if (adapter := find_adapter(source_folder(encoder))) is not None:
        raise ValueError(
            f"{adapter} holds a PEFT adapter already, and a second LoRA would have no base to be saved for: merge it "
            "into the weights first (merge_and_unload of peft)"
        )
    graphdef, params = add_lora(encoder.graphdef, encoder.params, config.lora, seed=config.seed)
    return Encoder(encoder.config, encoder.preprocessor, graphdef, params, mesh=mesh, folder=encoder.folder)


def _load(model: str | Path, config: TrainConfig, mesh: Mesh, task: str | None = None) -> Encoder:
    dtypes = {"auto": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
    # Weights that are trained are kept, and updated, in float32.
    dtype = jnp.float32 if "full" in config.parts else dtypes[config.dtype]
    overrides = preprocessing_overrides(config)
    return encode.load(model, dtype=dtype, mesh=mesh, task=task, pooling=config.pooling, settings=overrides)


def source_folder(encoder: Encoder) -> Path:
    """Where the encoder's files are; one put together by hand has none."""
    if encoder.folder is None:
        raise ValueError("the encoder was not loaded from a folder, and a run needs its files: use smart_jax.load")
    return encoder.folder


def weight_folders(encoder: Encoder) -> list[Path]:
    """That the encoder's weights were read from: a checkpoint's, and those of a PEFT adapter or of its base."""
    source = source_folder(encoder)
    return list(dict.fromkeys(place for place in (source, find_adapter(source), resolve_base(source)) if place))


def preprocessing_overrides(config: TrainConfig) -> dict[str, Any]:
    """Settings of the checkpoint that the config changes."""
    asked = {name: getattr(config, name) for name in ("head", "pooling", "prompt")}
    asked |= {name: getattr(config.data, name) for name in ("min_pixels", "max_pixels", "max_length")}
    return {name: value for name, value in asked.items() if value is not None}


def make_objective(config: TrainConfig, encoder: Encoder, mesh: Mesh, steps: int) -> tuple[Params, Params, Objective]:
    """Trainable parameters, frozen parameters, and the loss of both.

    Raises:
      ValueError: no weight of the backbone matches `config.weights`, or vectors are no wider than a width of
        `loss.matryoshka`; and as `adapter_config`.
    """
    backbone, weights = take_apart("model", encoder.graphdef, encoder.params)
    params = {name: x for name, x in weights.items() if name.startswith("lora.")}
    dtype = None
    if "full" in config.parts:
        params = {name: x for name, x in weights.items() if re.search(config.weights, name.removeprefix("model."))}
        if not params:
            raise ValueError(
                f"config.weights {config.weights!r} matches no parameter of the backbone; it has "
                f"{', '.join(name.removeprefix('model.') for name in sorted(weights)[:4])}, ..."
            )
        on_accelerator = config.dtype == "auto" and jax.default_backend() != "cpu"
        dtype = jnp.bfloat16 if on_accelerator or config.dtype == "bfloat16" else None
    _check_widths(config, encoder)
    objective = Objective(
        config.loss,
        steps,
        mesh,
        backbone,
        dtype=dtype,
        remat=config.remat,
        remat_policy=config.remat_policy,
        chunk_size=config.chunk_size,
    )
    frozen = objective.cast({name: x for name, x in weights.items() if name not in params})
    if "lora" in config.parts and config.lora.dropout:
        objective = dataclasses.replace(objective, dropout_seed=config.seed)
    if "adapter" in config.parts:
        adapter = Adapter(adapter_config(config, encoder), rngs=nnx.Rngs(config.seed))
        structure, projection = take_apart("adapter", *nnx.split(adapter))
        objective = dataclasses.replace(objective, adapter=structure)
        params |= place(projection, replicated(mesh))
    return params, frozen, objective


def adapter_config(config: TrainConfig, encoder: Encoder) -> AdapterConfig:
    """Raises ValueError: layers that the backbone has not, or a regulariser without a trainable part."""
    text = encoder.config.text
    layers = parse_layers(config.adapter.layers, text.num_hidden_layers)
    frozen = config.trainable == "adapter"
    if frozen and len(layers) == 1 and (config.loss.diversity_weight or config.loss.overlap_weight):
        raise ValueError(
            "diversity_weight and overlap_weight act on the fused states, which one layer of a frozen backbone leaves "
            "without a trainable part: set them to 0 or fuse more layers (config.adapter.layers)"
        )
    return AdapterConfig(text.hidden_size, config.adapter.dim, layers, config.adapter.pooled_dim)


def _check_widths(config: TrainConfig, encoder: Encoder) -> None:
    """Raises ValueError: a width of `loss.matryoshka` would cut nothing."""
    hidden = encoder.config.text.hidden_size
    vectors = {"pooled vectors": hidden, "tokens": getattr(encoder.config, "token_dim", None) or hidden}
    if "adapter" in config.parts:
        vectors = {"pooled vectors": config.adapter.pooled_dim or hidden, "tokens": config.adapter.dim or hidden}
    if config.loss.objective == "pooled":
        del vectors["tokens"]
    for name, width in vectors.items():
        if wide := [w for w in config.loss.widths if w is not None and w >= width]:
            raise ValueError(
                f"loss.matryoshka is '{config.loss.matryoshka}', but the {name} have {width} components: choose widths "
                f"below that, not {wide[0]}; the full width always takes part"
            )


def export_lora(folder: Path, encoder: Encoder, params: nnx.State, config: TrainConfig) -> Path:
    """A folder that PEFT opens and, with the preprocessing of the run, `smart_jax.load`; both then need the base."""
    base = Path(config.model).resolve() if Path(config.model).is_dir() else config.model
    save_lora(folder, params, encoder.config, config.lora, base=base)
    if is_main():
        _write_settings(folder, encoder, config, read_settings(source_folder(encoder)))
    return folder


def export_model(folder: Path, encoder: Encoder, params: nnx.State, config: TrainConfig) -> Path:
    """A Hugging Face folder: the weights, and the source's other files. Of several processes the first writes."""
    if is_main():
        _copy_files(folder, encoder, config)
    save_weights(folder, params, encoder.config)
    return folder


def _copy_files(folder: Path, encoder: Encoder, config: TrainConfig) -> None:
    """All but the weights: the source's config, tokenizer and preprocessing files, and the run's settings."""
    source = source_folder(encoder)
    base = resolve_base(source)
    words = having(source, base, *TOKENIZER_FILES)
    for root in filter(None, (base, source)):  # a PEFT adapter's files replace its base's
        # Weights are written anew, with an adapter merged into them; the template comes with the tokenizer.
        left_out = (".", "model", CONFIG_FILE, *(() if root == words else ("chat_template",)))
        for file in sorted((*root.iterdir(), *root.glob("*/config.json"))):  # the latter of sentence-transformers
            if file.is_file() and not file.name.startswith(left_out) and file.suffix != ".safetensors":
                target = folder / file.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if hf.pop("task_names", None):  # of adapters, one of which is merged
        (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
    _write_settings(folder, encoder, config, read_settings(folder))


def _write_settings(folder: Path, encoder: Encoder, config: TrainConfig, known: dict[str, Any]) -> None:
    overrides = preprocessing_overrides(config)
    if isinstance(settings := encoder.preprocessor.settings, Settings):  # the folder's name may tell it no longer
        overrides["head"] = settings.head
    if overrides:
        text = json.dumps(known | overrides, indent=2) + "\n"
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")
