"""Exact search for the best documents of each query, with or without a second look in full precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from smart_jax.option_names import known_options
from smart_jax.retrieval.candidate_search import candidate_search
from smart_jax.retrieval.candidates import CandidateLists, Candidates
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.host_scores import small_scores
from smart_jax.retrieval.operands import Items, check_scores, operands
from smart_jax.retrieval.resident import Resident, resident_operands
from smart_jax.retrieval.resident_search import search_resident
from smart_jax.retrieval.streamed_search import streamed_search
from smart_jax.retrieval.top_k import TopK
from smart_jax.typing import HostOrDevice

SHORTLIST = 4  # times k documents are scored again


@known_options
def search(
    q: Items,
    d: Items | Resident,
    k: int = 10,
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    candidates: Candidates | None = None,
    q_mask: Bool[HostOrDevice, "Nq P"] | None = None,
    d_mask: Bool[HostOrDevice, "Nd L"] | None = None,
    rescore: Embeddings | None = None,
    allow: Bool[np.ndarray, " Nd"] | None = None,
    mesh: Mesh | None = None,
    device_bytes: int | None = None,
    force: bool = False,
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns the k best documents of each query, exactly, in one pass over the documents; [Nq, Nd] never exists.

    The documents stay on the host, or in the file that they are mapped from, and are streamed to the devices: a block
    is on its way while the one before is scored. Those that `to_device` has put on devices are scored there, by one
    program. Small work is done on the host, as in `score`, unless `mesh` or `device_bytes` is given. Another k compiles
    nothing (streamed to several devices: up to 128, and then for each power of two).

    Args:
      q, d: as in `score`; d also documents that are on devices (`Resident`).
      k: at least 1; more than there are documents gives them all.
      pooled_weight, late_weight, q_mask, d_mask: as in `score`.
      candidates: as in `score`: the documents that each query is searched in. One that is listed twice counts once.
      rescore: the same documents in full precision, where `d` holds them in less: the best 4 * k are scored again with
        them. They are read for these only, and may be mapped from a file.
      allow: which documents may be found, such as those that a filter lets through; None = all.
      mesh: devices that share the work, each with consecutive documents of nearly equal bytes; None = the default
        device. With several processes all pass the same arguments, and each reads its own devices' documents. A
        `Resident` has its own, and needs no `device_bytes` either.
      device_bytes: bytes of memory on each device that the search keeps to; None = 256 MiB, or what the longest
        document needs.
      force: as in `score`.

    Returns:
      The scores, float32 [Nq, min(k, Nd)] (k at most the number that are allowed), falling, and the documents' indices
      in d, int64. Among equal scores the lowest index comes first. With candidates [Nq, min(k, n)], n = the longest
      list; behind a shorter list's documents scores are -inf and indices -1.

    Raises:
      TypeError: as `score`, or `rescore` is given with arrays.
      IndexError: a candidate that d does not have.
      ValueError: as `score`; k is not an integer of at least 1, `allow` is no mask of the documents, `rescore`
        has another number of items than d, a document needs more than `device_bytes`, a score is beyond
        float32, `mesh` is given with a list of candidates for each query, or `mesh`, `device_bytes` or
        `candidates` with a `Resident`.

    Example:
      >>> import numpy as np
      >>> from smart_jax import search
      >>> documents = np.float32([[0, 1], [1, 0], [0.6, 0.8]])  # pooled vectors
      >>> scores, indices = search(np.float32([[1, 0]]), documents, k=2)
      >>> indices
      array([[1, 2]])
      >>> scores
      array([[1. , 0.6]], dtype=float32)
      >>> search(np.float32([[1, 0]]), documents, k=2, candidates=[0, 2])[1]
      array([[2, 0]])
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}: it must be an integer of at least 1")
    options: dict[str, Any] = {"mesh": mesh, "device_bytes": device_bytes}
    if rescore is not None:
        options |= {"candidates": candidates, "allow": allow, "force": force}
        found = _rescored(q, d, int(k), rescore, pooled_weight, late_weight, **options)
    else:
        options |= {"q_mask": q_mask, "d_mask": d_mask}
        found = _best(q, d, int(k), pooled_weight, late_weight, candidates, allow, force, **options)
    scores, indices = found
    check_scores(scores, None if candidates is None else indices < 0, indices)
    return scores, indices


def _best(
    q: Items,
    d: Items | Resident,
    k: int,
    pooled_weight: float,
    late_weight: float,
    candidates: Candidates | None,
    allow: Bool[np.ndarray, " Nd"] | None,
    force: bool,
    *,
    mesh: Mesh | None,
    device_bytes: int | None,
    q_mask: Bool[HostOrDevice, "Nq P"] | None,
    d_mask: Bool[HostOrDevice, "Nd L"] | None,
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns what `search` does, without a second look; an index is -1 where scores are beyond float32."""
    if isinstance(d, Resident):
        if mesh is not None or device_bytes is not None:
            raise ValueError("mesh or device_bytes is given with a Resident: pass the mesh to to_device")
        queries, weights = resident_operands(q, d, pooled_weight, late_weight, q_mask, d_mask, candidates, force)
        k = min(k, _allowed(allow, len(d)))
        return search_resident(queries, d.allowed(allow), weights, k, d.mesh)
    queries, documents, weights = operands(q, d, pooled_weight, late_weight, q_mask, d_mask, force=force)
    k = min(k, _allowed(allow, len(documents)))
    if candidates is not None:
        lists = CandidateLists.of(candidates, len(queries), len(documents)).to_search(allow)
        return candidate_search(queries, documents, weights, lists, k, mesh=mesh, device_bytes=device_bytes)
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    small = small_scores(queries, documents, weights) if mesh is None and device_bytes is None else None
    if small is None:
        return streamed_search(queries, documents, weights, k, allow=allow, mesh=mesh, device_bytes=device_bytes)
    found = TopK(len(queries), k)
    found.add(small, 0, allow)
    return found.result()


def _allowed(allow: Bool[np.ndarray, " Nd"] | None, documents: int) -> int:
    """Returns the number of documents that may be found."""
    if allow is None:
        return documents
    if allow.dtype != bool or allow.shape != (documents,):
        raise ValueError(
            f"allow is {allow.dtype} {allow.shape}: it must be bool, one for each of {documents} documents"
        )
    return int(np.count_nonzero(allow))


def _rescored(
    q: Items, d: Items | Resident, k: int, exact: Embeddings, pooled_weight: float, late_weight: float, **options: Any
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns the best k by `exact` among the best SHORTLIST * k by `d`."""
    if not (isinstance(q, Embeddings) and isinstance(d, Embeddings | Resident) and isinstance(exact, Embeddings)):
        raise TypeError("rescore is for Embeddings: pass q, d and rescore as such")
    if len(exact) != len(d):
        raise ValueError(f"rescore has {len(exact)} items, d has {len(d)}: they must be the same documents")
    weights: dict[str, Any] = {"pooled_weight": pooled_weight, "late_weight": late_weight}
    _, shortlists = search(q, d, SHORTLIST * k, **weights, **options)
    lists = CandidateLists.of(shortlists, len(q), len(exact))
    queries, documents, parts = operands(q, exact, **weights, force=options["force"])
    scores, indices = candidate_search(queries, documents, parts, lists.to_search(), k)
    return scores, indices
