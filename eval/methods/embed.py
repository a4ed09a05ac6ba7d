"""Embeddings of a benchmark's queries and corpus by one encoder, in memory or from a cache of states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.benchmarks import Benchmark
from eval.states import Cache, EmbeddingSource, InMemory, OnDisk
from smart_jax.retrieval import LAST, Embeddings, Retriever, States


def embed(model: Retriever, benchmark: Benchmark, encoding: dict[str, Any]) -> tuple[EmbeddingSource, EmbeddingSource]:
    """Returns the embeddings of queries and corpus, in memory.

    Args:
      model: with its adapter, if it has one.
      benchmark: whose items are encoded.
      encoding: keyword arguments of `Encoder.encode`.
    """
    queries = model.encode_query(benchmark.queries, instruction=benchmark.instruction, **encoding)
    corpus = model.encode_document(benchmark.corpus, instruction=benchmark.document_instruction, **encoding)
    return InMemory(queries), InMemory(corpus)


def embed_from_cache(
    cache: Cache, model: Retriever, models: Sequence[Retriever], benchmark: Benchmark, encoding: dict[str, Any]
) -> tuple[EmbeddingSource, EmbeddingSource]:
    """Returns the embeddings of queries and corpus, made of cached states that all of the models share.

    Args:
      cache: where the states are, or are put.
      model: with its adapter, if it has one.
      models: the models of this evaluation, equal except for their adapters.
      benchmark: whose items are encoded.
      encoding: keyword arguments of `Encoder.encode`.
    """
    layers = shared_layers(model, models, cache.layers)

    def make(states: States) -> Embeddings:
        return states.embeddings() if model.adapter is None else states.adapted(model.adapter)

    queries, corpus = (cache.encode(model, side, layers=layers, **encoding) for side in benchmark.sides())
    return OnDisk(queries, make), OnDisk(corpus, make)


def shared_layers(model: Retriever, models: Sequence[Retriever], more: Sequence[int]) -> tuple[int, ...] | None:
    """Returns the layers to encode such that all of the models can share the states; None = the last.

    A model with a head of its own scores with the head's tokens; an adapter on it needs the states instead.

    Args:
      model: the one that encodes.
      models: those that share.
      more: further layers to keep.
    """
    has_head = model.token_dim is not None
    if has_head and model.adapter is None:
        return None
    count = model.depth + 1
    adapters = [each.adapter for each in models if each.adapter is not None]
    asked = {*more, *(layer for adapter in adapters for layer in adapter.config.layers)}
    layers = {layer % count - count for layer in asked} | (set() if has_head else {LAST})
    return None if layers == {LAST} and not has_head else tuple(sorted(layers))
