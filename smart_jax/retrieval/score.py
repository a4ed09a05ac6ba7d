"""Hybrid scores of queries and documents, exact top-k search, and the hash that breaks ties in rankings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from smart_jax.retrieval.blocks import Packed
from smart_jax.retrieval.embeddings import DTYPES, Embeddings, check_finite, token_name
from smart_jax.retrieval.packed import packed_scores
from smart_jax.retrieval.sharded import search_packed
from smart_jax.typing import Array

Items = Embeddings | Array | Sequence[Array]

SHORTLIST = 4  # times k documents are scored again


def score(
    q: Items,
    d: Items,
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    q_mask: Bool[Array, "Nq P"] | None = None,
    d_mask: Bool[Array, "Nd L"] | None = None,
) -> Float[np.ndarray, "Nq Nd"]:
    """Scores of every query with every document (arXiv:2605.24938).

        score = pooled_weight * <a_q, a_d> + late_weight * (1 / P) * sum_i max_j <q_i, d_j>

    a is the pooled vector and q_i, d_j are the token vectors. Vectors are used as they are: L2-normalise them for
    cosines (embeddings of this library are). float32 accumulation whatever is stored.

    Args:
      q, d: both `Embeddings` (both parts), or both plain arrays of float32, float16 or bfloat16: pooled vectors
        [N, H] (pooled part only), tokens [N, L, D] or a list of tokens [L_i, D] (late part only).
      pooled_weight, late_weight: a weight of 0 leaves the part out.
      q_mask, d_mask: True = kept, for tokens [N, L, D] only.

    Returns:
      float32 [Nq, Nd].

    Raises:
      TypeError: a dtype or a type of input that is not one of these.
      ValueError: the sides differ in kind or width, an array holds NaN or infinity, a mask has the wrong shape, an
        item has no token, or both weights are 0. The message names the side and the item.
    """
    queries, documents, weights = _sides(q, d, pooled_weight, late_weight, q_mask, d_mask)
    return packed_scores(queries, documents, weights)


def search(
    q: Items,
    d: Items,
    k: int = 10,
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    q_mask: Bool[Array, "Nq P"] | None = None,
    d_mask: Bool[Array, "Nd L"] | None = None,
    rescore: Embeddings | None = None,
    mesh: Mesh | None = None,
    device_bytes: int | None = None,
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """The k best documents of each query, exactly, in one pass over the documents; [Nq, Nd] never exists.

    The documents stay on the host, or in the file that they are mapped from, and are streamed to the devices: a block
    is on its way while the one before is scored.

    Args, errors: as in `score`, and:
      k: at least 1; more than there are documents gives them all.
      rescore: the same documents in full precision, where `d` holds them in less: the best 4 * k are scored again with
        them. They are read for these only, and may be mapped from a file.
      mesh: devices to share the work, each with a run of documents of nearly equal bytes; None = the default device.
        With several processes all pass the same arguments, and each reads its own devices' documents.
      device_bytes: of memory on each device that the search keeps to (ValueError if a document needs more); None =
        256 MiB, or what the longest document needs.

    Returns:
      scores, float32 [Nq, min(k, Nd)], falling; and the documents' indices, int64. Equal scores: lowest index first.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}: it must be an integer of at least 1")
    if rescore is not None:
        return _rescored(q, d, int(k), rescore, pooled_weight, late_weight, mesh=mesh, device_bytes=device_bytes)
    queries, documents, weights = _sides(q, d, pooled_weight, late_weight, q_mask, d_mask)
    k = min(int(k), len(documents))
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    return search_packed(queries, documents, weights, k, mesh, device_bytes)


def _rescored(
    q: Items, d: Items, k: int, exact: Embeddings, pooled_weight: float, late_weight: float, **options: Any
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """The best k by `exact` among the best SHORTLIST * k by `d`."""
    if not (isinstance(q, Embeddings) and isinstance(d, Embeddings) and isinstance(exact, Embeddings)):
        raise TypeError("rescore is for Embeddings: pass q, d and rescore as such")
    if len(exact) != len(d):
        raise ValueError(f"rescore has {len(exact)} items, d has {len(d)}: they must be the same documents")
    weights: dict[str, Any] = {"pooled_weight": pooled_weight, "late_weight": late_weight}
    _, shortlists = search(q, d, SHORTLIST * k, **weights, **options)
    k = min(k, len(d))
    scores, indices = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
    for i, shortlist in enumerate(shortlists):
        if k:
            values = score(q[i : i + 1], exact[shortlist], **weights)[0]
            best = np.lexsort((shortlist, -values))[:k]  # by score, then by index
            scores[i], indices[i] = values[best], shortlist[best]
    return scores, indices


def _sides(q, d, pooled_weight, late_weight, q_mask, d_mask) -> tuple[Packed, Packed, np.ndarray]:
    weights = (pooled_weight, late_weight)
    for name, weight in zip(("pooled_weight", "late_weight"), weights, strict=True):
        if not math.isfinite(weight):
            raise ValueError(f"{name} is {weight}: it must be finite")
    if weights == (0, 0):
        raise ValueError("pooled_weight and late_weight are both 0: nothing is left to score")
    queries = _side("q", q, q_mask, pooled_weight != 0, late_weight != 0)
    documents = _side("d", d, d_mask, pooled_weight != 0, late_weight != 0)
    ours, theirs = queries.widths(), documents.widths()
    if ours.keys() != theirs.keys():
        raise ValueError(
            f"q has {' and '.join(ours)}, d has {' and '.join(theirs)}: pass the same kind on both sides, or weight 0 "
            "for the part that one lacks"
        )
    for name, width in ours.items():
        if theirs[name] != width:
            raise ValueError(f"{name} of q have width {width}, of d {theirs[name]}: encode both with the same model")
    return queries, documents, np.asarray(weights, np.float32)


def _side(side: str, x: Items, mask: Array | None, use_pooled: bool, use_late: bool) -> Packed:
    if mask is not None and (isinstance(x, Embeddings | list | tuple) or np.ndim(x) != 3):
        raise ValueError(f"{side}_mask is for tokens [N, L, D]: {side} is not such an array")
    if isinstance(x, Embeddings):
        found = Packed(x.pooled, x.tokens, x.offsets, x.scales)
    elif isinstance(x, list | tuple):
        found = _ragged(side, [_array(f"{side}[{i}]", item, 2) for i, item in enumerate(x)])
    elif np.ndim(x) == 3:
        found = _padded_tokens(side, _array(side, x, 3), mask)
    else:
        pooled = _array(side, x, 2)
        check_finite("the pooled vector", pooled, lambda row: f"{side}, item {row}")
        found = Packed(pooled, None, np.arange(len(pooled) + 1))
    if not use_late:
        found = Packed(found.pooled, None, np.arange(len(found) + 1))
    elif not use_pooled:
        found = Packed(None, found.tokens, found.offsets, found.scales)
    if not found.widths():
        part = "tokens: late_weight" if use_pooled else "pooled vectors: pooled_weight"
        raise ValueError(f"{side} holds only {part} must not be 0")
    return found


def _padded_tokens(side: str, x: np.ndarray, mask: Array | None) -> Packed:
    keep = np.ones(x.shape[:2], bool) if mask is None else np.asarray(mask)
    if keep.dtype != bool:
        raise TypeError(f"{side}_mask has dtype {keep.dtype}: a mask is boolean, True = kept (use .astype(bool))")
    if keep.shape != x.shape[:2]:
        raise ValueError(f"{side}_mask has shape {keep.shape} for tokens of shape {x.shape}: it must be {x.shape[:2]}")
    return _packed(side, x[keep], keep.sum(axis=1))


def _ragged(side: str, items: list[np.ndarray]) -> Packed:
    if not items:
        raise ValueError(f"{side} is an empty list: its width is unknown; pass an array of shape (0, L, D)")
    for i, item in enumerate(items):
        if (item.shape[1], item.dtype) != (items[0].shape[1], items[0].dtype):
            raise ValueError(
                f"{side}[{i}] has width {item.shape[1]} and dtype {item.dtype}, {side}[0] has {items[0].shape[1]} and "
                f"{items[0].dtype}: they must be equal"
            )
    return _packed(side, np.concatenate(items), np.asarray([len(item) for item in items]))


def _packed(side: str, tokens: np.ndarray, lengths: np.ndarray) -> Packed:
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        raise ValueError(f"{side}, item {int(empty[0])} has no token: keep at least one, or pass Embeddings")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    check_finite("it", tokens, lambda row: f"{side}, {token_name(offsets, row)}")
    return Packed(None, tokens, offsets)


def _array(name: str, x: Any, ndim: int) -> np.ndarray:
    array = np.asarray(x)
    if array.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}: use .astype(np.float32) (float16 and bfloat16 also work)")
    if array.ndim != ndim or array.shape[-1] == 0:
        raise ValueError(
            f"{name} has shape {array.shape}: pass Embeddings, pooled vectors [N, H], tokens [N, L, D], or a list of "
            "tokens [L, D]"
        )
    return array
