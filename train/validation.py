"""How good the trained model is: loss on the validation split, a search of it, the config file's own evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import jax

from smart_jax import Encoder
from smart_jax.runtime import batch_part
from train.config import TrainConfig
from train.data import UNREADABLE, Batcher, Example, Examples, Source, open_split, parse_names
from train.monitor import HeldOut, Sample, ranking_metrics
from train.objective import Metrics, Objective, Params
from train.step import TrainState, make_eval_step

EvalFn = Callable[[Encoder], dict[str, float]]


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
            of_search, samples = self._search(encoder())
            results |= of_search
        if self._eval_fn is not None:
            results |= {f"eval/{name}": float(x) for name, x in self._eval_fn(encoder()).items()}
        best = self._config.checkpoint.best_metric
        if best is not None and best not in results:
            raise ValueError(f"checkpoint.best_metric '{best}' is none of the evaluation's: {', '.join(results)}")
        return results, samples

    def _loss(self, state: TrainState, frozen: Params) -> dict[str, float]:
        """Mean over the batches of each data set, and over the data sets."""
        sums: dict[str, float] = {}
        index, count = batch_part(self._mesh)
        for source, size in self._splits:
            # The same batches each time, and in each run.
            examples = Examples(source, size, seed=0, epochs=1, process_index=index, process_count=count)
            batches = min(self._config.eval.validation_batches, len(source) // size)
            for _, prepared in zip(range(batches), self._batcher.prepare(examples), strict=False):
                metrics: Metrics = jax.device_get(self._eval_step(state, frozen, prepared.batch))
                for name, x in metrics.items():
                    sums[name] = sums.get(name, 0.0) + float(x) / batches / len(self._splits)
        return {f"validation/{name}": mean for name, mean in sums.items()}

    @cached_property
    def _splits(self) -> list[tuple[Source, int]]:
        """The validation split of every data set, and the size of its batches."""
        data, shards = self._config.data, self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        splits: list[tuple[Source, int]] = []
        for name in parse_names(data.name):
            source = open_split(data.dir, name, data.validation_split)
            size = min(self._config.batch_size, len(source))
            size -= size % shards
            if size < 2:
                raise ValueError(
                    f"split '{data.validation_split}' of {name} has {len(source)} examples, too few for a batch on "
                    f"{shards} devices: convert the data with more, or set config.eval.validation_batches=0"
                )
            splits.append((source, size))
        return splits

    def _search(self, encoder: Encoder) -> tuple[dict[str, float], list[Sample]]:
        """Mean over the data sets, and samples of each."""
        means: dict[str, float] = {}
        samples: list[Sample] = []
        for name, held_out in self._held_out.items():
            ranked = held_out.search(encoder, self._config)
            for kind, scores in ranked.scores.items():
                for metric, value in ranking_metrics(scores, ranked.positives).items():
                    key = f"validation/{kind}_{metric}"
                    means[key] = means.get(key, 0.0) + value / len(self._held_out)
            prefix = "samples" if len(self._held_out) == 1 else f"samples/{name}"
            count, objective = self._config.eval.samples, self._config.loss.objective
            samples += held_out.samples(ranked, objective, count, encoder, prefix)
        return means, samples

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
            for item in (example.query, example.document):
                self._batcher.preprocessor.tokenize(item, name=f"example '{example.id}'")
        except UNREADABLE as error:
            print(f"\nleft out of the validation: {error}")
            return False
        return True
