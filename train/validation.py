"""Quality of the trained model: loss on the validation split, a search of it, the config file's own evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from smart_jax import Encoder
from smart_jax.retrieval import Embeddings
from smart_jax.runtime import batch_part
from train.config import TrainConfig
from train.data import UNREADABLE, Batcher, Example, Examples, Source, clean_query, open_split, parse_names
from train.monitor import METRICS, SCORES, HeldOut, Sample, ranking_metrics
from train.objective import Metrics, Objective, Params, TrainBatch
from train.states import StatesBatcher
from train.step import TrainState, make_eval_step

EvalFn = Callable[[Encoder], dict[str, float]]  # it may have `metric_names(encoder)`, which takes no evaluation
PREFIXES = ("validation/", "eval/")  # of the metrics' names


class UnevaluatedError(RuntimeError):
    """Error of an evaluation after the last step: the run is trained and exported, and can be evaluated later."""


class Validation:
    """The validation split of every data set of a run, opened when it is first needed, and the config's `eval_fn`."""

    def __init__(self, config: TrainConfig, batcher: Batcher, objective: Objective, eval_fn: EvalFn | None = None):
        """Takes what a run is put together from.

        Args:
          config: of the run.
          batcher: makes batches of the validation split, too.
          objective: the loss.
          eval_fn: metrics of an encoder by name; None = there are no others.
        """
        self._config, self._batcher, self._mesh, self._eval_fn = config, batcher, objective.mesh, eval_fn
        self._eval_step = make_eval_step(objective)
        self._states: StatesBatcher | None = None

    def use_states(self, batcher: StatesBatcher) -> None:
        """Evaluates with kept states from then on, if they are of the validation split, too."""
        split = self._config.data.validation_split
        if all(batcher.covers((name, split)) for name in parse_names(self._config.data.name)):
            self._states = batcher

    def __call__(
        self, state: TrainState, frozen: Params, encoder: Callable[[], Encoder]
    ) -> tuple[dict[str, float], list[Sample]]:
        """Evaluates the parameters of a run.

        Args:
          state: with the trained parameters.
          frozen: the others.
          encoder: makes the model with both, if it is needed.

        Returns:
          Metrics: means over the validation batches and a search of the split ("validation/loss",
          "validation/late_ndcg@5", ...), and `eval_fn`'s ("eval/..."); and the search's best and worst queries.

        Raises:
          ValueError: a split has too few examples, or `checkpoint.best_metric` is none of the metrics.
        """
        results = self._loss(state, frozen) if self._config.eval.validation_batches else {}
        samples: list[Sample] = []
        if self._held_out:
            of_search, samples = self._search(encoder(), state.params)
            results |= of_search
        if self._eval_fn is not None:
            results |= {f"eval/{name}": float(x) for name, x in self._eval_fn(encoder()).items()}
        best = self._config.checkpoint.best_metric
        if best is not None and best not in results:
            raise ValueError(f"checkpoint.best_metric '{best}' is none of the evaluation's: {', '.join(results)}")
        return results, samples

    def check(self, state: TrainState, frozen: Params, encoder: Callable[[], Encoder]) -> None:
        """Refuses, before training, what an evaluation would fail at: arguments as of a call.

        The splits are opened, and `checkpoint.best_metric` is looked for among the metrics' names, as far as these are
        known.

        Raises:
          FileNotFoundError: a data set is missing.
          ValueError: a split is missing or has too few examples, or `checkpoint.best_metric` is none of the metrics.
        """
        if self._config.eval.validation_batches:
            self._splits  # noqa: B018, for its errors
        self._held_out  # noqa: B018
        best = self._config.checkpoint.best_metric
        if best is None:
            return
        known = self._validation_names(state, frozen) if best.startswith(PREFIXES[0]) else set[str]()
        if best.startswith(PREFIXES[1]) and self._eval_fn is not None:
            if (names_of := getattr(self._eval_fn, "metric_names", None)) is None:
                return  # the first evaluation tells
            known = {f"{PREFIXES[1]}{name}" for name in names_of(encoder())}
        if best not in known:
            names = f"those that begin so are: {', '.join(sorted(known))}" if known else "there are none that begin so"
            raise ValueError(f"checkpoint.best_metric is '{best}', which is no metric of this run; {names}")

    def _validation_names(self, state: TrainState, frozen: Params) -> set[str]:
        """Returns the names of the metrics of the validation split; nothing is computed."""
        names: set[str] = set()
        if self._config.eval.validation_batches:
            metrics = jax.eval_shape(self._eval_step, state, frozen, self._smallest_batch())
            names = {f"{PREFIXES[0]}{name}" for name in metrics}
        if self._config.eval.validation_documents:
            names |= {f"{PREFIXES[0]}{kind}_{metric}" for kind in SCORES for metric in METRICS}
        return names

    def _smallest_batch(self) -> TrainBatch:
        """Returns a batch of short texts, which has the metrics of any other."""
        data, preprocessor = self._config.data, self._batcher.preprocessor
        rows, documents = 2 * self._mesh.shape["data"] * self._mesh.shape["fsdp"], 1 + data.negatives
        item = preprocessor.tokenize({"text": "a"}, name="a text")
        ids = np.arange(4 * rows * documents, dtype=np.uint32).reshape(-1, 4)
        teacher = None if self._config.loss.distillation == "none" else np.zeros((rows, documents), np.float32)
        queries, pages = (preprocessor.collate([item] * count) for count in (rows, rows * documents))
        return TrainBatch(queries, pages, ids, teacher)

    def _loss(self, state: TrainState, frozen: Params) -> dict[str, float]:
        """Mean over the batches of each data set, and over the data sets."""
        sums: dict[str, float] = {}
        assert isinstance(self._mesh, Mesh)  # of devices
        index, count = batch_part(self._mesh)
        batcher: Batcher | StatesBatcher = self._batcher
        for name, (source, size) in self._splits.items():
            if self._states is not None:
                batcher = self._states
                source = batcher.items.examples((name, self._config.data.validation_split))
            # The same batches each time, and in each run.
            examples = Examples(source, size, seed=0, epochs=1, process_index=index, process_count=count)
            batches = min(self._config.eval.validation_batches, len(source) // size)
            for prepared in batcher.prepare(examples, count=batches):
                batch = prepared.put(self._mesh).batch
                metrics: Metrics = jax.device_get(self._eval_step(state, frozen, batch))
                for name, x in metrics.items():
                    sums[name] = sums.get(name, 0.0) + float(x) / batches / len(self._splits)
        return {f"validation/{name}": mean for name, mean in sums.items()}

    @cached_property
    def _splits(self) -> dict[str, tuple[Source, int]]:
        """The validation split of every data set, and the size of its batches."""
        data, shards = self._config.data, self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        splits: dict[str, tuple[Source, int]] = {}
        for name in parse_names(data.name):
            source = open_split(data.dir, name, data.validation_split)
            size = min(self._config.batch_size, len(source))
            size -= size % shards
            if size < 2:
                raise ValueError(
                    f"split '{data.validation_split}' of {name} has {len(source)} examples, too few for a batch on "
                    f"{shards} devices: convert the data with more, or set config.eval.validation_batches=0"
                )
            splits[name] = source, size
        return splits

    def _search(self, encoder: Encoder, params: Params) -> tuple[dict[str, float], list[Sample]]:
        """Mean over the data sets, and samples of each."""
        means: dict[str, float] = {}
        samples: list[Sample] = []
        for name, held_out in self._held_out.items():
            ranked = held_out.search(encoder, self._config, self._embed(name, params))
            for kind, scores in ranked.scores.items():
                for metric, value in ranking_metrics(scores, ranked.positives).items():
                    key = f"validation/{kind}_{metric}"
                    means[key] = means.get(key, 0.0) + value / len(self._held_out)
            prefix = "samples" if len(self._held_out) == 1 else f"samples/{name}"
            count, objective = self._config.eval.samples, self._config.loss.objective
            samples += held_out.samples(ranked, objective, count, encoder, prefix)
        return means, samples

    def _embed(self, name: str, params: Params) -> Callable[[Sequence[int], bool], Embeddings] | None:
        """Returns what embeds examples of a data set's validation split by their states; None = there are none."""
        if (states := self._states) is None or self._config.loss.tokens != "kept":  # which a search compares
            return None
        key = name, self._config.data.validation_split
        return lambda numbers, query: states.embed(params, key, numbers, query=query)

    @cached_property
    def _held_out(self) -> dict[str, HeldOut]:
        data, limit = self._config.data, self._config.eval.validation_documents

        def open_one(name: str) -> HeldOut:
            source = open_split(data.dir, name, data.validation_split)
            return HeldOut(source, limit, self._readable, name=f"split '{data.validation_split}' of {name}")

        return {name: open_one(name) for name in parse_names(data.name)} if limit else {}

    def _readable(self, example: Example) -> bool:
        if not self._config.data.max_skipped:
            return True  # or an error where it is encoded
        try:
            for item in (clean_query(example.query, self._config.data.clean_queries), example.document):
                self._batcher.preprocessor.tokenize(item, name=f"example '{example.id}'")
        except UNREADABLE as error:
            print(f"\nleft out of the validation: {error}")
            return False
        return True


def evaluation_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of an evaluation in a record of the log; none = the step was not evaluated.

    Example:
      >>> evaluation_of({"step": 8, "loss": 0.5, "validation/loss": 0.75})
      {'validation/loss': 0.75}
    """
    return {name: value for name, value in record.items() if name.startswith(PREFIXES)}


def failed_evaluation(config: TrainConfig, exported: Sequence[Path], error: Exception) -> str:
    """Returns what to tell of a run whose evaluation after the last step failed.

    Args:
      config: of the run.
      exported: folders of what was trained.
      error: of the evaluation.
    """
    where = {folder.name: folder for folder in exported}
    model = where.get("model", where.get("lora", config.model))
    adapter = f" --config.adapter={where['adapter']}" if "adapter" in where else ""
    return (
        f"the run is trained and exported ({', '.join(map(str, exported))}), but its evaluation failed: "
        f"{type(error).__name__}: {error}. Set the cause right and start the run again with --config.resume=True: it "
        "evaluates, and neither trains nor exports again. Or evaluate it alone, with the config file of any benchmark: "
        f"python -m eval.run --config configs/vidore_eval.py --config.model={model}{adapter}"
    )
