"""States of both sides of a benchmark, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from eval.benchmarks import Benchmark, Side
from eval.states.cache import Cache
from smart_jax.retrieval import Retriever, States


def encode_sides(
    encoder: Retriever,
    benchmark: Benchmark,
    *,
    layers: Sequence[int] | None = None,
    dtype: DTypeLike = np.float16,
    batch_size: int | None = None,
    cache: Cache | None = None,
) -> tuple[States, States]:
    """Returns the states of a benchmark's queries and corpus.

    Args:
      encoder: the model.
      benchmark: whose items are encoded.
      layers, dtype, batch_size: as in `Encoder.states`.
      cache: where the states are kept too; None = nowhere.

    Example:
      >>> import smart_jax
      >>> benchmark = Benchmark("one", ["a query"], ["q0"], ["a text"], ["d0"], {"q0": {"d0": 1}})
      >>> queries, corpus = encode_sides(smart_jax.load("tiny"), benchmark)
      >>> len(queries), queries.states.dtype
      (1, dtype('float16'))
    """

    def states(side: Side) -> States:
        if cache is not None:
            shards = cache.encode(encoder, side, layers=layers, dtype=dtype, batch_size=batch_size)
            return shards.take(np.arange(len(shards)))
        how: dict[str, Any] = {"layers": layers, "batch_size": batch_size, "dtype": dtype}
        return encoder.states(side.items, query=side.query, instruction=side.instruction, **how)

    queries, corpus = benchmark.sides()
    return states(queries), states(corpus)
