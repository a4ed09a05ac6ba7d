"""Evaluation for a trainer: an encoder in, means of metrics by name out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from eval.benchmarks import Benchmark, Deferred
from eval.methods.evaluate import Options, run_benchmark
from eval.methods.names import adapter_methods, model_methods
from eval.states import Cache
from smart_jax.retrieval import Retriever, parse_metric


@dataclasses.dataclass(frozen=True)
class EvalFn:
    """Function of an encoder to the means of metrics, {"<benchmark>/<method>/<metric>": mean}.

    An encoder with an adapter gives the adapter's methods, one without gives pooled, late and hybrid; chance and BM25
    are left out.

    Attributes:
      benchmarks: to evaluate, each time; deferred ones are opened each time.
      metrics, cache, options: as in `run_benchmark`.

    Example:
      >>> import smart_jax
      >>> evaluate = EvalFn([Deferred("pages", lambda: Benchmark.load("pages"))], metrics=("mrr",))
      >>> evaluate.metric_names(smart_jax.load("tiny"))  # nothing is opened or computed
      ['pages/pooled/mrr', 'pages/late/mrr', 'pages/hybrid/mrr']
    """

    benchmarks: Sequence[Benchmark | Deferred]
    metrics: Sequence[str] = ("ndcg@5", "hit@1")
    cache: Cache | None = None
    options: Options = dataclasses.field(default_factory=Options)

    def __call__(self, encoder: Retriever) -> dict[str, float]:
        """Evaluates an encoder on every benchmark."""
        adapted, methods = encoder.adapter is not None, _methods(encoder)
        means: dict[str, float] = {}
        for benchmark in self.benchmarks:
            result = run_benchmark(
                None if adapted else encoder,
                benchmark.load() if isinstance(benchmark, Deferred) else benchmark,
                methods=methods,
                adapter_encoder=encoder if adapted else None,
                metrics=self.metrics,
                cache=self.cache,
                options=self.options,
            )
            means |= {
                _name(benchmark.name, m, metric): result.mean(m, metric) for m in methods for metric in self.metrics
            }
        return means

    def metric_names(self, encoder: Retriever) -> list[str]:
        """Returns the names of what a call with this encoder gives."""
        methods = _methods(encoder)
        return [_name(each.name, m, metric) for each in self.benchmarks for m in methods for metric in self.metrics]


def make_eval_fn(
    benchmarks: Sequence[Benchmark | Deferred],
    *,
    metrics: Sequence[str] = ("ndcg@5", "hit@1"),
    cache: Cache | None = None,
    options: Options | None = None,
) -> EvalFn:
    """Returns what a trainer calls with its encoder.

    Args:
      benchmarks, metrics, cache, options: see `EvalFn`; None = the default options.

    Raises:
      ValueError: an unknown metric.

    Example:
      >>> import smart_jax
      >>> evaluate = make_eval_fn([])
      >>> evaluate(smart_jax.load("tiny"))  # without a benchmark there is no figure
      {}
    """
    for metric in metrics:
        parse_metric(metric)
    return EvalFn(benchmarks, metrics, cache, options or Options())


def _methods(encoder: Retriever) -> Sequence[str]:
    return model_methods(encoder) if encoder.adapter is None else adapter_methods(encoder)


def _name(benchmark: str, method: str, metric: str) -> str:
    return f"{benchmark}/{method}/{metric}"
