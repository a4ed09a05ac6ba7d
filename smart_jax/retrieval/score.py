"""Hybrid scores of every query with every document."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Bool, Float

from smart_jax.option_names import known_options
from smart_jax.retrieval.block import Parts
from smart_jax.retrieval.block_plan import document_plan, query_plan
from smart_jax.retrieval.block_scores import score_block
from smart_jax.retrieval.candidate_scores import candidate_scores
from smart_jax.retrieval.candidates import CandidateLists, Candidates
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.gathered import Gathered
from smart_jax.retrieval.host_scores import small_scores
from smart_jax.retrieval.operands import Items, check_scores, operands
from smart_jax.retrieval.resident import Resident, resident_operands
from smart_jax.retrieval.resident_search import score_resident
from smart_jax.typing import HostOrDevice


@known_options
def score(
    q: Items,
    d: Items | Resident,
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    candidates: Candidates | None = None,
    q_mask: Bool[HostOrDevice, "Nq P"] | None = None,
    d_mask: Bool[HostOrDevice, "Nd L"] | None = None,
    force: bool = False,
) -> Float[np.ndarray, "Nq Nd"]:
    """Returns the hybrid score of every query with every document, or with its candidates (arXiv:2605.24938).

        score = pooled_weight * <a_q, a_d> + late_weight * (1 / P) * sum_i max_j <q_i, d_j>

    a is the pooled vector and q_i, d_j are the token vectors. Vectors are used as they are: L2-normalise them for
    cosines (embeddings of this library are). Where pooled vectors have width 0, as those of multi-vector models, the
    pooled part is absent, whatever its weight. Sums are float32 whatever dtype is stored. Small work is done on the
    host, in NumPy, without a compilation; all other in blocks of a few shapes on the default device.

    Args:
      q, d: both `Embeddings` (both parts), or both plain arrays of float32, float16 or bfloat16: pooled vectors
        [N, H] (pooled part only), tokens [N, L, D] or a list of tokens [L_i, D] (late part only). d may also be
        documents that are on devices, as `to_device` gives them, in the place of their `Embeddings`.
      pooled_weight, late_weight: a weight of 0 leaves the part out.
      candidates: numbers of the documents to score, for reranking; of Embeddings no others are read. One list for
        all queries, an array [Nq, n], or a list for each query, of any lengths. -1 in an array or a query's list is
        no document, as where `search` pads; one that is listed twice is scored twice.
      q_mask, d_mask: True = kept, for tokens [N, L, D] only.
      force: whether embeddings are scored that another model, adapter or PCA has made, or where documents stand in the
        queries' place. Embeddings of no known provenance always are.

    Returns:
      float32 [Nq, Nd]; with candidates [Nq, n], in their order, n = the longest list, -inf where there is none.

    Raises:
      TypeError: a dtype or a type of input that is not one of these.
      IndexError: a candidate that d does not have.
      ValueError: the sides differ in kind or width or do not belong together (see `force`), an array holds NaN or
        infinity, a mask has the wrong shape, an item has no token, both weights are 0, candidates have the wrong
        shape, or a score is beyond float32. The message names the side and the item.

    Example:
      A query with tokens (1, 0) and (0, 1), a document with tokens (0.8, -0.6) and (-0.8, 0.6): the pooled part is 0.6
      and the late part (0.8 + 0.6) / 2.

      >>> import numpy as np
      >>> from smart_jax import Embeddings, score
      >>> q = Embeddings(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1]]), [0, 2])
      >>> d = Embeddings(np.float32([[0.6, 0.8]]), np.float32([[0.8, -0.6], [-0.8, 0.6]]), [0, 2])
      >>> score(q, d).round(4)
      array([[1.3]], dtype=float32)
      >>> score(q, d, pooled_weight=0).round(4)
      array([[0.7]], dtype=float32)
      >>> score(np.float32([[1, 0]]), np.float32([[0, 1], [1, 0], [0.6, 0.8]]), candidates=[2, 0])
      array([[0.6, 0. ]], dtype=float32)
    """
    if isinstance(d, Resident):
        queries, of_parts = resident_operands(q, d, pooled_weight, late_weight, q_mask, d_mask, candidates, force)
        return check_scores(score_resident(queries, d.documents, d.items, of_parts, d.mesh))
    queries, documents, weights = operands(q, d, pooled_weight, late_weight, q_mask, d_mask, force=force)
    if candidates is None:
        return check_scores(score_all(queries, documents, weights))
    lists = CandidateLists.of(candidates, len(queries), len(documents))
    scores = candidate_scores(queries, documents, weights, lists, score_all)
    numbers = lists.numbers(len(queries))
    return check_scores(scores, numbers < 0, numbers)


def score_all(q: Embeddings, d: Embeddings | Gathered, weights: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "Nq Nd"]:
    """Returns the score of every query with every document, from operands."""
    scores = small_scores(q, d, weights)
    return _score_blocks(q, d, weights) if scores is None else scores


def _score_blocks(
    q: Embeddings, d: Embeddings | Gathered, weights: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "Nq Nd"]:
    scores = np.empty((len(q), len(d)), np.float32)
    parts = Parts.of(weights)
    query_blocks, documents = query_plan(q, parts), document_plan(d, parts, jax.default_backend())
    queries = [(first, last, jax.device_put(query_blocks.block((first, last)))) for first, last in query_blocks.runs[0]]
    on_device = jax.device_put(weights)
    for d_first, d_last in documents.runs[0]:
        block = jax.device_put(documents.block((d_first, d_last)))
        for first, last, query_block in queries:
            values = jax.device_get(score_block(query_block, block, on_device))
            scores[first:last, d_first:d_last] = values[: last - first, : d_last - d_first]
    return scores
