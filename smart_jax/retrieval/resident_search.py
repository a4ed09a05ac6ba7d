"""Scores and search of documents that are on devices: one program for all their groups.

Each device takes the best of its documents, a group at a time, and merges them; one gather of these ends a search. The
host gets no more than the result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Num

from smart_jax.maxsim import exact_products, packed_maxsim
from smart_jax.retrieval.block import Block, Parts, Run
from smart_jax.retrieval.block_plan import Limits, Plan, eighths, make_plan, power_of_two_within
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.streamed_search import AXIS, replicate
from smart_jax.retrieval.top_k import ordered
from smart_jax.runtime import bounded, compiler_options, in_one_trace, to_host
from smart_jax.typing import HostOrDevice, register_arrays

QUERIES, QUERY_TOKENS = 64, 2048  # of a call at most, unless one query has more tokens
LEAST_TOKENS, MAXIMA = 32, 2**24  # on a TPU maxima of query tokens with rows are written: 64 MiB of them
LEAST_RESULTS = 128  # results that a program keeps, however few are asked for
NO_ITEM = np.iinfo(np.int32).max  # in a place without a document
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


@register_arrays
@dataclasses.dataclass(frozen=True)
class Group:
    """Documents of like length on the devices, of which each holds equally many rows; the last may be empty.

    Attributes:
      tokens: zeros after each document's; None = this part is not scored.
      scales: of int8 tokens, else None.
      lengths: number of tokens of each document; 0 = an empty row.
      items: numbers of the documents, rising on each device.
    """

    tokens: Num[HostOrDevice, "N L D"] | None
    scales: Float[HostOrDevice, "N L"] | None
    lengths: Int[HostOrDevice, " N"]
    items: Int[HostOrDevice, " N"]


@register_arrays
@dataclasses.dataclass(frozen=True)
class Documents:
    """All that is on the devices.

    Attributes:
      pooled: pooled vectors of all groups, on each device those of its rows, one group after another: equal vectors are
        multiplied in one product, so that their scores are equal. None = this part is not scored.
      groups: the rest, by length.
    """

    pooled: Float[HostOrDevice, "rows H"] | None
    groups: tuple[Group, ...]


Best = tuple[Float[Array, "B _"], Int[Array, "B _"]]  # scores and numbers of the best documents
Numbers = tuple[Int[np.ndarray, " _"], ...]  # of each group's documents, on the host
Weights = Float[Array, " 2"]


@runtime_checkable
class Search(Protocol):
    """The compiled search: the best documents of all groups and devices, on every device."""

    def __call__(self, q: Block, d: Documents, weights: Weights, *, kept: int) -> Best:
        """Returns the `kept` best, or all that there are."""


@runtime_checkable
class Score(Protocol):
    """The compiled scores."""

    def __call__(self, q: Block, d: Documents, weights: Weights) -> tuple[Float[Array, "B _"], ...]:
        """Returns the scores of each group's rows."""


def search_resident(
    q: Embeddings, d: Documents, weights: Float[np.ndarray, " 2"], k: int, mesh: Mesh
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns scores and numbers of the k best documents of each query, k at most their number.

    Args:
      q: of the documents' widths.
      d: on the mesh, with both parts.
      weights: of the pooled and the late part; one of 0 leaves the part out.
      k: number of results.
      mesh: a `document_mesh`.
    """
    scores, items = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
    if k == 0:
        return scores, items
    d, on_devices, run = with_parts(d, Parts.of(weights)), replicate(weights, mesh), search_program(mesh)
    calls = []
    for call, block in query_blocks(q, Parts.of(weights), d, mesh):
        calls.append((call, run(block, d, on_devices, kept=kept_results(k))))
        if mesh.devices[0].platform == "cpu":
            jax.block_until_ready(calls)  # devices that share threads must not wait for one another in two programs
    for (first, last), best in calls:
        values, numbers = jax.device_get(best)
        scores[first:last], items[first:last] = values[: last - first, :k], numbers[: last - first, :k]
    return scores, items


def score_resident(
    q: Embeddings,
    d: Documents,
    items: Numbers,
    weights: Float[np.ndarray, " 2"],
    mesh: Mesh,
) -> Float[np.ndarray, "Nq Nd"]:
    """Returns the scores of every query with every document.

    Args:
      q, d, weights, mesh: as in `search_resident`.
      items: those of the groups, on the host.
    """
    rows = [np.flatnonzero(numbers != NO_ITEM) for numbers in items]
    scores = np.empty((len(q), sum(map(len, rows))), np.float32)
    d, on_devices, run = with_parts(d, Parts.of(weights)), replicate(weights, mesh), score_program(mesh)
    for (first, last), block in query_blocks(q, Parts.of(weights), d, mesh):
        for numbers, own, values in zip(items, rows, run(block, d, on_devices), strict=True):
            scores[first:last, numbers[own]] = fetched(values)[: last - first, own]
    return scores


def fetched(x: HostOrDevice) -> np.ndarray:
    """Returns the whole array on the host; every process calls this."""
    array: np.ndarray = to_host(x) if isinstance(x, jax.Array) and not x.is_fully_addressable else jax.device_get(x)
    return array


def query_blocks(q: Embeddings, parts: Parts, d: Documents, mesh: Mesh) -> Iterator[tuple[Run, Block]]:
    """Yields the queries of each call, on every device."""
    plan = query_calls(q, parts, d, mesh)
    for call in plan.runs[0]:
        yield call, replicate(plan.block(call), mesh)


def query_calls(q: Embeddings, parts: Parts, d: Documents, mesh: Mesh) -> Plan:
    """Returns the queries of each call, in blocks of few shapes: each shape is a compilation."""
    tokens, on_cpu = QUERY_TOKENS, mesh.devices[0].platform == "cpu"
    if mesh.devices[0].platform == "tpu":
        rows = max((group.items.shape[0] // mesh.size for group in d.groups), default=1)
        tokens = min(tokens, max(LEAST_TOKENS, power_of_two_within(MAXIMA // rows)))
    plan = make_plan(q, parts, Limits(tokens, QUERIES), window=eighths if on_cpu else halves)
    return dataclasses.replace(plan, slots=_rounded(plan.slots, least=1))


def halves(n: int) -> int:
    """Returns the next of two sizes between powers of two."""
    power = 1 << max(0, n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power


def kept_results(k: int) -> int:
    """Returns how many results a program keeps of which k are asked for: few numbers, so that programs are few."""
    return _rounded(k, least=LEAST_RESULTS)


def _rounded(n: int, *, least: int) -> int:
    while least < n:
        least *= 4
    return least


def with_parts(d: Documents, parts: Parts) -> Documents:
    """Returns the documents without what is not scored."""
    if parts.late:
        return d if parts.pooled else Documents(None, d.groups)
    return Documents(d.pooled, tuple(dataclasses.replace(group, tokens=None, scales=None) for group in d.groups))


@functools.cache
def search_program(mesh: Mesh) -> Search:
    """Returns the search, compiled for the devices of a `document_mesh`, which may be descriptions of some."""
    device = mesh.devices[0]

    def on_device(q: Block, d: Documents, weights: Weights, kept: int) -> Best:
        scores = _scores(q, d, weights, device.platform)
        found = [_first(values, group.items, kept) for values, group in zip(scores, d.groups, strict=True)]
        best = found[0] if len(found) == 1 else _merged(found, kept)
        if mesh.size > 1:
            best = _merged([jax.tree.map(lambda x: lax.all_gather(x, AXIS, axis=1, tiled=True), best)], kept)
        return best

    def resident_search(q: Block, d: Documents, weights: Weights, *, kept: int) -> Best:
        best: Best = _mapped(functools.partial(on_device, kept=kept), mesh, WHOLE)(q, d, weights)
        return best

    options = compiler_options(device)
    program: Search = bounded(jax.jit(in_one_trace(resident_search), static_argnames="kept", compiler_options=options))
    return program


@functools.cache
def score_program(mesh: Mesh) -> Score:
    """Returns the scores' program, compiled for the devices of a `document_mesh`."""
    device = mesh.devices[0]

    def on_device(q: Block, d: Documents, weights: Weights) -> tuple[Float[Array, "B _"], ...]:
        return tuple(_scores(q, d, weights, device.platform))

    run = in_one_trace(_mapped(on_device, mesh, PartitionSpec(None, AXIS)))
    program: Score = bounded(jax.jit(run, compiler_options=compiler_options(device)))
    return program


def _mapped(on_device: Callable[..., Any], mesh: Mesh, out: PartitionSpec) -> Callable[..., Any]:
    """Returns the function of queries, documents and weights as it runs on all devices.

    One device has no axis to map over: its shapes are traced, and remembered by jax, without places.
    """
    if mesh.size == 1:
        return on_device
    mapped: Callable[..., Any] = jax.shard_map(
        on_device, mesh=mesh, in_specs=(WHOLE, SPLIT, WHOLE), out_specs=out, check_vma=False
    )
    return mapped


def _scores(q: Block, d: Documents, weights: Weights, platform: str) -> Iterator[Float[Array, "B _"]]:
    """Yields the scores of each group's rows on one device; -inf for an empty one."""
    pooled, first = None, 0
    if q.pooled is not None and d.pooled is not None:
        pooled = weights[0] * exact_products(q.pooled, d.pooled, platform)
    for group in d.groups:
        last = first + len(group.lengths)
        total = jnp.zeros((len(q.lengths), last - first), jnp.float32) if pooled is None else pooled[:, first:last]
        some = (group.lengths > 0)[None]
        if q.window is not None and group.tokens is not None:
            queries, scales = (q.window.tokens, q.window.owner, q.lengths), (q.window.scales, group.scales)
            late = packed_maxsim(*queries, group.tokens, group.lengths, *scales, platform=platform)
            total += weights[1] * jnp.where(some, late, 0)
        yield jnp.where(some, total, -jnp.inf)
        first = last


def _first(scores: Float[Array, "B N"], items: Int[HostOrDevice, " N"], kept: int) -> Best:
    # top_k puts the first of equal values first, and items rise.
    values, at = lax.top_k(ordered(scores), min(kept, len(items)))
    return values, jnp.asarray(items)[at]


def _merged(found: list[Best], kept: int) -> Best:
    """Returns the best by score, and by number where scores are equal."""
    scores, items = (jnp.concatenate(x, axis=1) for x in zip(*found, strict=True))
    negative, items = lax.sort((-scores, items), dimension=1, num_keys=2)
    return -negative[:, :kept], items[:, :kept]
