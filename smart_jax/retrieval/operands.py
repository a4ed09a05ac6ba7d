"""Operands of `score` and `search`, checked: embeddings of both sides, and the weights of the parts that they hold.

Arrays hold one part only. Pooled vectors become embeddings in which each is its item's single token, as in items
without tokens; tokens become embeddings with pooled vectors of width 0. What stands in for the other part is never
scored: its weight is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from PIL import Image

from smart_jax.retrieval.block import Parts
from smart_jax.retrieval.block_plan import COPIED_BYTES
from smart_jax.retrieval.embeddings import DTYPES, Embeddings, check_finite, token_name
from smart_jax.retrieval.gathered import Gathered
from smart_jax.retrieval.provenance import check_sides
from smart_jax.retrieval.reductions import BinaryEmbeddings
from smart_jax.retrieval.states import States
from smart_jax.typing import HostOrDevice

_ITEMS = (str, bytes, Path, Mapping, Image.Image)  # what `Encoder.encode_query` takes
LARGEST = float(np.finfo(np.float32).max)
Items = Embeddings | HostOrDevice | Sequence[HostOrDevice]


def operands(
    q: Items,
    d: Items,
    pooled_weight: float,
    late_weight: float,
    q_mask: Bool[HostOrDevice, "Nq P"] | None = None,
    d_mask: Bool[HostOrDevice, "Nd L"] | None = None,
    *,
    force: bool = False,
) -> tuple[Embeddings, Embeddings | Gathered, Float[np.ndarray, " 2"]]:
    """Returns queries, documents and the weights, of which one is 0 where the sides are arrays without that part.

    Documents in a list stay where they are, if they are large.

    Raises:
      TypeError, ValueError: as `smart_jax.score` says.
    """
    for name, weight in (("pooled_weight", pooled_weight), ("late_weight", late_weight)):
        if not math.isfinite(weight) or abs(weight) > LARGEST:
            raise ValueError(f"{name} is {weight}: it must be finite, and fit float32")
    asked = Parts(pooled_weight != 0, late_weight != 0)
    if not any(asked):
        raise ValueError("pooled_weight and late_weight are both 0: nothing is left to score")
    queries, parts = _side("q", q, q_mask, asked)
    assert isinstance(queries, Embeddings)
    documents, d_parts = _side("d", d, d_mask, asked)
    if parts != d_parts:
        raise ValueError(
            f"q has {_names(parts)}, d has {_names(d_parts)}: pass the same kind on both sides, or weight 0 for the "
            "part that one lacks"
        )
    if isinstance(q, Embeddings) and isinstance(d, Embeddings) and not force:
        check_sides(q.provenance, d.provenance, late=parts.late)
    if parts.pooled:
        _check_widths("pooled vectors", queries.pooled, documents.pooled)
    if parts.late:
        _check_widths("tokens", queries.tokens, documents.tokens)
    weights = np.asarray([pooled_weight * parts.pooled, late_weight * parts.late], np.float32)
    return queries, documents, weights


def check_scores(
    scores: Float[np.ndarray, "Nq n"],
    missing: Bool[np.ndarray, "Nq n"] | None = None,
    documents: Int[np.ndarray, "Nq n"] | None = None,
) -> Float[np.ndarray, "Nq n"]:
    """Returns scores, or raises ValueError where one is NaN, or beyond float32, as of vectors of 1e20.

    Args:
      scores: of queries, which are finite, with documents, which are finite unless they are mapped.
      missing: where there is no document: the score is -inf there.
      documents: numbers of the documents; None = in order.
    """
    wrong = ~np.isfinite(scores)
    if missing is not None:
        wrong &= ~missing
    if wrong.any():
        query, place = (int(at[0]) for at in np.nonzero(wrong))
        if np.isnan(scores[query, place]):
            raise ValueError(
                f"document {place if documents is None else documents[query, place]}: its score with query {query} is "
                "NaN. Its vectors hold NaN, for which mapped files are not searched: drop it or encode it again; or "
                "its products are beyond float32: L2-normalise the vectors"
            )
        raise ValueError(
            f"a score of query {query} is {scores[query, place]}: beyond float32. L2-normalise the vectors, or choose "
            "smaller weights"
        )
    return scores


def _side(
    side: str, x: Items, mask: Bool[HostOrDevice, "N L"] | None, asked: Parts
) -> tuple[Embeddings | Gathered, Parts]:
    """Returns the embeddings and which of the parts that are asked for they hold."""
    _check_kind(side, x)
    if mask is not None and (isinstance(x, Embeddings | list | tuple) or np.ndim(x) != 3):
        raise ValueError(f"{side}_mask is for tokens [N, L, D]: {side} is not such an array")
    holds = Parts(pooled=False, late=True)
    items: Embeddings | Gathered
    if isinstance(x, Embeddings):
        items, holds = x, Parts(pooled=x.pooled.shape[1] > 0, late=True)  # multi-vector models have no pooled ones
    elif isinstance(x, list | tuple):
        items = _of_ragged(side, [_array(f"{side}[{i}]", item, 2) for i, item in enumerate(x)])
    elif np.ndim(x) == 3:
        items = _of_padded(side, _array(side, x, 3), mask)
    else:
        items, holds = _of_pooled(side, _array(side, x, 2)), Parts(pooled=True, late=False)
    parts = Parts(holds.pooled and asked.pooled, holds.late and asked.late)
    if not any(parts):
        lacking = "tokens: late_weight" if holds.late else "pooled vectors: pooled_weight"
        raise ValueError(f"{side} holds only {lacking} must not be 0")
    return items, parts


def _check_kind(side: str, x: object) -> None:
    """Refuses, with what to do, items that are not encoded, and vectors in a form that is not scored."""
    first = x[0] if isinstance(x, list | tuple) and x else x
    if isinstance(first, _ITEMS):
        call = {"q": "model.encode_query", "d": "model.encode_document"}[side]
        raise TypeError(f"{side} holds a {type(first).__name__}: encode items first, {call}(...)")
    if isinstance(first, BinaryEmbeddings | States):
        raise TypeError(f"{side} is {type(first).__name__}: pass its embeddings(), of which scores are taken")


def _names(parts: Parts) -> str:
    return " and ".join(["pooled vectors"] * parts.pooled + ["tokens"] * parts.late)


def _check_widths(name: str, q: np.ndarray, d: np.ndarray) -> None:
    if q.shape[1] != d.shape[1]:
        raise ValueError(f"{name} of q have width {q.shape[1]}, of d {d.shape[1]}: encode both with the same model")


def _of_pooled(side: str, pooled: Float[np.ndarray, "N H"]) -> Embeddings:
    check_finite("the pooled vector", pooled, lambda item: f"{side}, item {item}")
    return Embeddings.from_checked(pooled, pooled, np.arange(len(pooled) + 1))


def _of_padded(side: str, x: Float[np.ndarray, "N L D"], mask: Bool[HostOrDevice, "N L"] | None) -> Embeddings:
    if mask is None:
        return _of_tokens(side, x.reshape(-1, x.shape[2]), np.full(len(x), x.shape[1]))
    keep = np.asarray(mask)
    if keep.dtype != bool:
        raise TypeError(f"{side}_mask has dtype {keep.dtype}: a mask is boolean, True = kept (use .astype(bool))")
    if keep.shape != x.shape[:2]:
        raise ValueError(f"{side}_mask has shape {keep.shape} for tokens of shape {x.shape}: it must be {x.shape[:2]}")
    return _of_tokens(side, x[keep], keep.sum(axis=1))


def _of_ragged(side: str, items: list[Float[np.ndarray, "_ _"]]) -> Embeddings | Gathered:
    if not items:
        raise ValueError(f"{side} is an empty list: its width is unknown; pass an array of shape (0, L, D)")
    for i, item in enumerate(items):
        if (item.shape[1], item.dtype) != (items[0].shape[1], items[0].dtype):
            raise ValueError(
                f"{side}[{i}] has width {item.shape[1]} and dtype {item.dtype}, {side}[0] has {items[0].shape[1]} and "
                f"{items[0].dtype}: they must be equal"
            )
    lengths = np.asarray([len(item) for item in items])
    if side == "q" or sum(item.nbytes for item in items) <= COPIED_BYTES:
        return _of_tokens(side, np.concatenate(items), lengths)
    _check_lengths(side, lengths)
    for i, item in enumerate(items):
        _check_item(f"{side}, item {i}", item)
    return Gathered.of(items, np.arange(len(items)))


def _of_tokens(side: str, tokens: Float[np.ndarray, "T D"], lengths: Int[np.ndarray, " N"]) -> Embeddings:
    _check_lengths(side, lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    check_finite("it", tokens, lambda token: f"{side}, {token_name(offsets, token)}")
    return Embeddings.from_checked(np.empty((len(lengths), 0), tokens.dtype), tokens, offsets)


def _check_item(name: str, tokens: Float[np.ndarray, "_ _"]) -> None:
    check_finite("it", tokens, lambda token: f"{name}, token {token}")


def _check_lengths(side: str, lengths: Int[np.ndarray, " N"]) -> None:
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise ValueError(f"{side}, item {int(empty[0])} has no token: keep at least one, or pass Embeddings")


def _array(name: str, x: ArrayLike, ndim: int) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}: use .astype(np.float32) (float16 and bfloat16 also work)")
    if array.ndim != ndim or array.shape[-1] == 0:
        raise ValueError(
            f"{name} has shape {array.shape}: pass Embeddings, pooled vectors [N, H], tokens [N, L, D], or a list of "
            "tokens [L, D]"
        )
    return array
