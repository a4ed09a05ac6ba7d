"""Contrastive losses over a bank of documents, distillation, and the two regularisers of adapter post-training.

These are pure functions of arrays, computed in float32. Letters: B queries, N documents of the bank, K documents of one
query, L positions, H width. The losses are those of SMART (arXiv:2605.24938) and its PyTorch implementation; other
sources are named where they are used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from smart_jax.vectors import l2_normalise

DIVERSITY_TOKENS = 128
EXCLUDED = -1e30  # logit that takes no part; finite, so that a query without any other has no NaN in its gradient


def info_nce(
    logits: Float[Array, "B N"], positives: Int[Array, " B"], excluded: Bool[Array, "B N"] | None = None
) -> Float[Array, ""]:
    """Computes the mean cross-entropy of each query's positive among the documents of the bank.

        loss = -(1/B) sum_i log( exp(s[i, p_i]) / sum_{j not excluded for i} exp(s[i, j]) )

    InfoNCE of van den Oord et al. 2018 (arXiv:1807.03748).

    Args:
      logits: scores already divided by the temperature, [B, N].
      positives: column of each query's positive, [B].
      excluded: True where a document takes no part for a query, [B, N]; a positive must not be excluded. None = all
        documents take part.

    Returns:
      Scalar, float32.

    Example:
      >>> info_nce(jnp.zeros((2, 4)), jnp.array([0, 2]))  # log(4)
      Array(1.3862944, dtype=float32)
    """
    logits = logits.astype(jnp.float32)
    if excluded is not None:
        logits = jnp.where(excluded, EXCLUDED, logits)
    chosen = jnp.take_along_axis(logits, positives[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)


def symmetric_info_nce(
    logits: Float[Array, "B N"], positives: Int[Array, " B"], excluded: Bool[Array, "B N"] | None = None
) -> Float[Array, ""]:
    """Computes the mean of the query-to-document and the document-to-query loss.

        loss = ( info_nce(s) + info_nce(s[:, p].T) ) / 2

    The second direction ranks the B queries for each positive document. Explicit negatives have no query of their own
    and take part in the first direction only. Radford et al. 2021 (CLIP, arXiv:2103.00020, figure 3).

    Args:
      logits: scores already divided by the temperature, [B, N].
      positives: column of each query's positive, [B].
      excluded: as in `info_nce`, for both directions.

    Returns:
      Scalar, float32.

    Example:
      >>> symmetric_info_nce(jnp.zeros((2, 4)), jnp.array([0, 2]))  # (log(4) + log(2)) / 2
      Array(1.0397208, dtype=float32)
    """
    square = logits[:, positives]  # [B, B]
    excluded_square = None if excluded is None else excluded[:, positives].T
    labels = jnp.arange(logits.shape[0])
    return (info_nce(logits, positives, excluded) + info_nce(square.T, labels, excluded_square)) / 2


def false_negatives(document_ids: UInt[Array, "N words"], positives: Int[Array, " B"]) -> Bool[Array, "B N"]:
    """Finds the documents that are a query's positive again, under another column.

    Two questions about one page may meet in a batch. Without this mask each pushes its own page away as a negative of
    the other. (The reference implementation does not mask them.)

    Args:
      document_ids: identity of each document in a few words, equal for equal documents, [N, words].
      positives: column of each query's positive, [B].

    Returns:
      True where a document is such a false negative, [B, N].

    Example:
      >>> ids = jnp.array([[7], [8], [7]], jnp.uint32)  # two queries about document 7, one about document 8
      >>> false_negatives(ids, jnp.array([0, 1, 2])).astype(int)
      Array([[0, 0, 1],
             [0, 0, 0],
             [1, 0, 0]], dtype=int32)
    """
    same = jnp.all(document_ids[positives][:, None] == document_ids[None], axis=-1)  # [B, N]
    return same & ~_is_positive(positives, document_ids.shape[0])


def above_positive(scores: Float[Array, "B N"], positives: Int[Array, " B"], margin: float) -> Bool[Array, "B N"]:
    """Finds the documents that score above a query's positive by more than `margin`: they may well answer it, too.

        above[i, j] = s[i, j] > s[i, p_i] + margin    for j != p_i

    Margin 0 is the rule of GISTEmbed (Solatorio 2024, arXiv:2402.16829) without its guide: the scores are those of the
    model itself, as it trains. A negative margin of -m is TopK-MarginPos of NV-Retriever (Moreira et al. 2024,
    arXiv:2407.15831), which applies it to mined negatives. There is no gradient.

    Args:
      scores: not divided by a temperature, [B, N]; the margin is in their unit.
      positives: column of each query's positive, [B].
      margin: any number.

    Returns:
      True where a document is above, [B, N].

    Example:
      >>> above_positive(jnp.array([[0.5, 0.75, 0.25]]), jnp.array([0]), margin=0.125)
      Array([[False,  True, False]], dtype=bool)
    """
    above = scores > jnp.take_along_axis(scores, positives[:, None], axis=1) + margin
    return above & ~_is_positive(positives, scores.shape[1])


def own_documents(scores: Float[Array, "B N"], positives: Int[Array, " B"], count: int) -> Float[Array, "B K"]:
    """Takes the scores of each query's own documents, which follow one another in the bank, its positive first.

    Args:
      scores: of all queries and documents, [B, N].
      positives: column of each query's positive, [B].
      count: documents of a query, K.

    Returns:
      Scores [B, K].

    Example:
      >>> own_documents(jnp.arange(8.0).reshape(2, 4), jnp.array([0, 2]), 2)
      Array([[0., 1.],
             [6., 7.]], dtype=float32)
    """
    return jnp.take_along_axis(scores, positives[:, None] + jnp.arange(count)[None], axis=1)


def kl_distillation(
    student: Float[Array, "B K"], teacher: Float[Array, "B K"], scored: Bool[Array, "B K"] | None = None
) -> Float[Array, ""]:
    """Computes the mean divergence of the student's from the teacher's distribution over the documents of each query.

        loss = (1/B) sum_i sum_k p[i, k] * log( p[i, k] / q[i, k] )    p = softmax_k(teacher), q = softmax_k(student)

    This is Hinton et al. 2015 (arXiv:1503.02531) on the scores of a few documents, as in ColBERTv2 (arXiv:2112.01488).
    Hinton's factor of the squared temperature is left out: the contrastive loss beside it has none either. The loss is
    0 where both agree up to a constant for each query. The gradient reaches the student only.

    Args:
      student: scores already divided by their temperature, [B, K].
      teacher: likewise, [B, K].
      scored: True for the documents that the teacher has scored, at least one of each query, [B, K]; what `teacher`
        holds for the others, NaN for example, does not matter. None = all.

    Returns:
      Scalar, float32.

    Example:
      >>> teacher = jnp.log(jnp.array([[3.0, 1.0]]))  # the distribution 3/4, 1/4
      >>> print(f"{kl_distillation(jnp.zeros((1, 2)), teacher):.4f}")  # 3/4 log(3/2) + 1/4 log(1/2)
      0.1308
    """
    if scored is not None:
        student, teacher = (jnp.where(scored, x, EXCLUDED) for x in (student, teacher))
    log_q = jax.nn.log_softmax(student.astype(jnp.float32), axis=1)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32), axis=1)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1))


def margin_mse(
    student: Float[Array, "B K"], teacher: Float[Array, "B K"], scored: Bool[Array, "B K"] | None = None
) -> Float[Array, ""]:
    """Computes the mean squared difference of the student's and the teacher's margins between positive and negative.

        loss = mean over i and k > 0 of ( (student[i, 0] - student[i, k]) - (teacher[i, 0] - teacher[i, k]) )^2

    Hofstaetter et al. 2020 (arXiv:2010.02666). The loss is 0 where both agree up to a constant for each query. The
    gradient reaches the student only.

    Args:
      student: scores already divided by their temperature, the positive's first, [B, K].
      teacher: likewise, [B, K].
      scored: as in `kl_distillation`; pairs of which the teacher has not scored both take no part.

    Returns:
      Scalar, float32.

    Example:
      >>> margin_mse(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[2.0, 0.0, 0.0]]))  # margins 1, 2 and 2, 2
      Array(0.5, dtype=float32)
    """
    if scored is not None:
        student, teacher = (jnp.where(scored, x, 0) for x in (student, teacher))
    difference = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    squares = jnp.square(difference[:, :1] - difference[:, 1:])
    pairs = jnp.ones(squares.shape, bool) if scored is None else scored[:, :1] & scored[:, 1:]
    return jnp.sum(squares * pairs) / jnp.maximum(jnp.sum(pairs), 1)


def hybrid_logits(
    pooled: Float[Array, "B N"],
    late: Float[Array, "B N"],
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    pooled_temperature: float | Float[Array, ""] = 0.03,
    late_temperature: float | Float[Array, ""] = 0.03,
) -> Float[Array, "B N"]:
    """Computes the logits of the hybrid objective (arXiv:2605.24938).

        logits = w_pooled * pooled / t_pooled + w_late * late / t_late

    With one temperature these are the hybrid scores over the temperature.

    Args:
      pooled: pooled scores [B, N].
      late: late-interaction scores [B, N].
      pooled_weight: w_pooled.
      late_weight: w_late.
      pooled_temperature: t_pooled, possibly learned.
      late_temperature: t_late, possibly learned.

    Returns:
      Logits [B, N].

    Example:
      >>> hybrid_logits(jnp.array([[0.5]]), jnp.array([[0.25]]), pooled_temperature=0.5, late_temperature=0.25)
      Array([[2.]], dtype=float32)
    """
    return pooled_weight * pooled / pooled_temperature + late_weight * late / late_temperature


def linear_ramp(step: Int[Array, ""] | int, total: int, start: float, end: float) -> Float[Array, ""]:
    """Computes a weight that goes linearly from `start`, at step 1, to `end`, at step `total`.

    Args:
      step: from 1; it may be traced.
      total: number of steps.
      start: weight of the first step.
      end: weight of the last step, and of the only one.

    Returns:
      Scalar, float32.

    Example:
      >>> linear_ramp(3, 5, start=0.0, end=1.0)
      Array(0.5, dtype=float32)
    """
    progress = (jnp.asarray(step, jnp.float32) - 1) / max(1, total - 1)
    progress = jnp.where(total > 1, jnp.clip(progress, 0.0, 1.0), 1.0)
    return start + (end - start) * progress


def hit_rate(
    logits: Float[Array, "B N"], positives: Int[Array, " B"], excluded: Bool[Array, "B N"] | None = None
) -> Float[Array, ""]:
    """Computes the share of queries whose positive beats every other document; a tie is a miss.

    Args:
      logits: or scores, [B, N].
      positives: column of each query's positive, [B].
      excluded: as in `info_nce`.

    Returns:
      Scalar in [0, 1], float32.

    Example:
      >>> hit_rate(jnp.array([[2.0, 1.0], [1.0, 1.0]]), jnp.array([0, 1]))
      Array(0.5, dtype=float32)
    """
    if excluded is not None:
        logits = jnp.where(excluded, EXCLUDED, logits)
    chosen = jnp.take_along_axis(logits, positives[:, None], axis=1)
    best_other = jnp.max(jnp.where(_is_positive(positives, logits.shape[1]), -jnp.inf, logits), axis=1)
    return jnp.mean((chosen[:, 0] > best_other).astype(jnp.float32))


def diversity(
    states: Float[Array, "B L H"], mask: Bool[Array, "B L"], *, max_tokens: int = DIVERSITY_TOKENS
) -> Float[Array, ""]:
    """Computes the mean squared cosine between different tokens of the same item.

        loss = mean over items b and pairs i != j of kept tokens of  cos(h[b, i], h[b, j])^2

    At most `max_tokens` evenly spaced kept tokens of an item take part. (The reference implementation spaces them over
    the padded length, so that its value depends on the padding; without padding both agree.) The loss is 0 if no item
    has two kept tokens. Diversity regulariser of SMART (arXiv:2605.24938).

    Args:
      states: fused states before the projection, [B, L, H].
      mask: True for kept tokens, [B, L].
      max_tokens: tokens of an item that take part.

    Returns:
      Scalar in [0, 1], float32.

    Example:
      >>> states = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
      >>> print(f"{diversity(states, jnp.ones((1, 3), bool)):.3f}")  # one of three pairs is parallel
      0.333
    """
    count = mask.sum(axis=1)  # [B]
    size = min(max_tokens, states.shape[1])
    taken = jnp.minimum(count, size)
    slots = jnp.arange(size)[None]
    steps = (count - 1).astype(jnp.float32) / jnp.maximum(taken - 1, 1).astype(jnp.float32)
    nth = jnp.clip(jnp.round(slots * steps[:, None]), 0, states.shape[1] - 1).astype(jnp.int32)  # [B, S] of the kept
    kept_first = jnp.argsort(~mask, axis=1, stable=True)
    chosen = jnp.take_along_axis(kept_first, nth, axis=1)
    valid = slots < taken[:, None]
    x = l2_normalise(jnp.take_along_axis(states.astype(jnp.float32), chosen[..., None], axis=1))  # [B, S, H]
    squares = jnp.einsum("bih,bjh->bij", x, x) ** 2
    pairs = valid[:, :, None] & valid[:, None, :] & ~jnp.eye(size, dtype=bool)[None]
    return jnp.sum(squares * pairs) / jnp.maximum(jnp.sum(pairs), 1)


def overlap(pooled: Float[Array, "B H"], states: Float[Array, "B L H"], mask: Bool[Array, "B L"]) -> Float[Array, ""]:
    """Computes the mean squared cosine between an item's pooled state and the fused states of its kept tokens.

        loss = mean over items b and kept tokens i of  cos(a[b], h[b, i])^2

    Overlap regulariser of SMART (arXiv:2605.24938).

    Args:
      pooled: pooled states, not truncated, [B, H].
      states: fused states before the projection, [B, L, H].
      mask: True for kept tokens, [B, L].

    Returns:
      Scalar in [0, 1], float32.

    Example:
      >>> states = jnp.array([[[2.0, 0.0], [0.0, 2.0]]])
      >>> overlap(jnp.array([[1.0, 0.0]]), states, jnp.ones((1, 2), bool))  # one of two tokens is parallel
      Array(0.5, dtype=float32)
    """
    cosine = jnp.einsum("bh,blh->bl", l2_normalise(pooled), l2_normalise(states))
    return jnp.sum(cosine**2 * mask) / jnp.maximum(jnp.sum(mask), 1)


def _is_positive(positives: Int[Array, " B"], count: int) -> Bool[Array, "B N"]:
    """True where a column is the query's positive."""
    return positives[:, None] == jnp.arange(count)[None]
