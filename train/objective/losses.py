"""Contrastive losses over a bank of documents, distillation, and the two regularisers of adapter post-training.

Pure functions of arrays. Letters: B queries, N documents of the bank, K documents of one query, L positions, H width.
Everything is computed in float32. Sources: SMART (arXiv:2605.24938) and its PyTorch implementation; InfoNCE: van den
Oord et al. 2018 (arXiv:1807.03748); symmetric loss with a learned temperature: CLIP (arXiv:2103.00020); others are
named where they are used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

DIVERSITY_TOKENS = 128
EXCLUDED = -1e30  # a logit that takes no part; finite, so that a fully excluded row gives no NaN gradient


def info_nce(
    logits: Float[Array, "B N"], positives: Int[Array, " B"], excluded: Bool[Array, "B N"] | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy of each query's positive among the documents of the bank.

        loss = -(1/B) sum_i log( exp(s[i, p_i]) / sum_{j not excluded for i} exp(s[i, j]) )

    Args:
      logits: scores already divided by the temperature.
      positives: column of each query's positive.
      excluded: True where a document takes no part for a query; a positive must not be excluded.

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
    """Mean of the query-to-document and the document-to-query loss (CLIP, arXiv:2103.00020, figure 3).

    The second direction ranks the B queries for each positive document; explicit negatives have no query of their own
    and take part in the first direction only.

        loss = ( info_nce(s) + info_nce(s[:, p].T) ) / 2
    """
    square = logits[:, positives]  # [B, B]
    excluded_square = None if excluded is None else excluded[:, positives].T
    labels = jnp.arange(logits.shape[0])
    return (info_nce(logits, positives, excluded) + info_nce(square.T, labels, excluded_square)) / 2


def false_negatives(document_ids: UInt[Array, "N W"], positives: Int[Array, " B"]) -> Bool[Array, "B N"]:
    """True where a document is the query's own positive again, under another column.

    Two questions about one page meet in a batch; without this mask each pushes its own page away as a negative of the
    other. (The reference implementation does not mask them.)

    Args:
      document_ids: each document's identity in W words, equal for equal documents.
      positives: column of each query's positive.
    """
    same = jnp.all(document_ids[positives][:, None] == document_ids[None], axis=-1)  # [B, N]
    own = positives[:, None] == jnp.arange(document_ids.shape[0])[None]
    return same & ~own


def above_positive(scores: Float[Array, "B N"], positives: Int[Array, " B"], margin: float) -> Bool[Array, "B N"]:
    """True where a document scores above the query's positive by more than `margin`: it may well answer the query, too.

        above[i, j] = s[i, j] > s[i, p_i] + margin    for j != p_i

    Margin 0 is the rule of GISTEmbed (Solatorio 2024, arXiv:2402.16829) without its guide: the scores are those of the
    model itself, as it trains. A negative margin of -m is TopK-MarginPos of NV-Retriever (Moreira et al. 2024,
    arXiv:2407.15831), which applies it to mined negatives. There is no gradient.

    Args:
      scores: not divided by a temperature; the margin is in their unit.
      positives: column of each query's positive.
      margin: any number.
    """
    own = positives[:, None] == jnp.arange(scores.shape[1])[None]
    return (scores > jnp.take_along_axis(scores, positives[:, None], axis=1) + margin) & ~own


def own_documents(scores: Float[Array, "B N"], positives: Int[Array, " B"], count: int) -> Float[Array, "B K"]:
    """The scores of each query's own `count` documents, which follow one another in the bank, its positive first."""
    return jnp.take_along_axis(scores, positives[:, None] + jnp.arange(count)[None], axis=1)


def kl_distillation(
    student: Float[Array, "B K"], teacher: Float[Array, "B K"], scored: Bool[Array, "B K"] | None = None
) -> Float[Array, ""]:
    """Mean divergence of the student's from the teacher's distribution over each query's own documents.

        loss = (1/B) sum_i sum_k p[i, k] * log( p[i, k] / q[i, k] )    p = softmax_k(teacher), q = softmax_k(student)

    Hinton et al. 2015 (arXiv:1503.02531) on the scores of a few documents, as in ColBERTv2 (arXiv:2112.01488). Hinton's
    factor of the squared temperature is left out: the contrastive loss beside it has none either. 0 where both agree up
    to a constant for each query. The gradient reaches the student only.

    Args:
      student, teacher: scores already divided by their temperatures.
      scored: the documents that the teacher has scored, at least one for each query; what `teacher` holds for others,
        NaN for example, does not matter. None = all.
    """
    if scored is not None:
        student, teacher = (jnp.where(scored, x, EXCLUDED) for x in (student, teacher))
    log_q = jax.nn.log_softmax(student.astype(jnp.float32), axis=1)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher).astype(jnp.float32), axis=1)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1))


def margin_mse(
    student: Float[Array, "B K"], teacher: Float[Array, "B K"], scored: Bool[Array, "B K"] | None = None
) -> Float[Array, ""]:
    """Mean squared difference of the student's and the teacher's margins between positive and negative.

        loss = mean over i and k > 0 of ( (student[i, 0] - student[i, k]) - (teacher[i, 0] - teacher[i, k]) )^2

    Hofstaetter et al. 2020 (arXiv:2010.02666). 0 where both agree up to a constant for each query. The gradient reaches
    the student only.

    Args:
      student, teacher: scores already divided by their temperatures, the positive's first.
      scored: as in `kl_distillation`; pairs without the teacher's scores for both take no part.
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
    """w_pooled * pooled / t_pooled + w_late * late / t_late (arXiv:2605.24938, hybrid objective).

    With one temperature this is the hybrid score over the temperature.
    """
    return pooled_weight * pooled / pooled_temperature + late_weight * late / late_temperature


def linear_ramp(step: Int[Array, ""] | int, total: int, start: float, end: float) -> Float[Array, ""]:
    """Weight of step 1 .. total going linearly from `start` (at step 1) to `end` (at step `total`)."""
    progress = (jnp.asarray(step, jnp.float32) - 1) / max(1, total - 1)
    progress = jnp.where(total > 1, jnp.clip(progress, 0.0, 1.0), 1.0)
    return start + (end - start) * progress


def hit_rate(logits: Float[Array, "B N"], positives: Int[Array, " B"], excluded: Bool[Array, "B N"] | None = None):
    """Share of queries whose positive beats every other document; a tie is a miss."""
    if excluded is not None:
        logits = jnp.where(excluded, EXCLUDED, logits)
    chosen = jnp.take_along_axis(logits, positives[:, None], axis=1)
    own = positives[:, None] == jnp.arange(logits.shape[1])[None]
    best_other = jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)
    return jnp.mean((chosen[:, 0] > best_other).astype(jnp.float32))


def diversity(
    states: Float[Array, "B L H"], mask: Bool[Array, "B L"], *, max_tokens: int = DIVERSITY_TOKENS
) -> Float[Array, ""]:
    """Mean squared cosine between different tokens of the same item.

        mean over items b and pairs i != j of kept tokens:  cos(h[b, i], h[b, j])^2

    At most `max_tokens` evenly spaced kept tokens of an item take part. (The reference spaces them over the padded
    length, so that its value depends on the padding; without padding both agree.) 0 if no item has two kept tokens.

    Args:
      states: fused states before the projection.
      mask: kept tokens.
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
    x = unit(jnp.take_along_axis(states.astype(jnp.float32), chosen[..., None], axis=1))  # [B, S, H]
    squares = jnp.einsum("bih,bjh->bij", x, x) ** 2
    pairs = valid[:, :, None] & valid[:, None, :] & ~jnp.eye(size, dtype=bool)[None]
    return jnp.sum(squares * pairs) / jnp.maximum(jnp.sum(pairs), 1)


def overlap(pooled: Float[Array, "B H"], states: Float[Array, "B L H"], mask: Bool[Array, "B L"]) -> Float[Array, ""]:
    """Mean squared cosine between an item's pooled state and its kept tokens' fused states.

        mean over items b and kept tokens i:  cos(a[b], h[b, i])^2

    Args:
      pooled: pooled states, not truncated.
      states: fused states before the projection.
      mask: kept tokens.
    """
    cosine = jnp.einsum("bh,blh->bl", unit(pooled.astype(jnp.float32)), unit(states.astype(jnp.float32)))
    return jnp.sum(cosine**2 * mask) / jnp.maximum(jnp.sum(mask), 1)


def unit(x: Float[Array, "*S H"]) -> Float[Array, "*S H"]:
    """L2-normalised along the last axis; a zero vector stays zero and has a zero gradient, not NaN."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
