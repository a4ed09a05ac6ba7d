"""MaxSim, the late-interaction score: for each query token its best document token, averaged over the query."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from smart_jax.maxsim import pallas_gpu
from smart_jax.maxsim.argmax import Forward, argmax_maxsim
from smart_jax.maxsim.arrays import compute_dtype, like
from smart_jax.maxsim.pallas_tpu import tpu_forward
from smart_jax.maxsim.reference import dense_maxsim
from smart_jax.maxsim.xla import tiled_forward
from smart_jax.typing import HostOrDevice

Implementation = Literal["reference", "xla", "pallas_tpu", "pallas_gpu"]
IMPLEMENTATIONS = get_args(Implementation)
_FORWARD: dict[str, Forward] = {"xla": tiled_forward, "pallas_tpu": tpu_forward, "pallas_gpu": pallas_gpu.gpu_forward}


def maxsim(
    q: Float[HostOrDevice, "B P D"],
    d: Float[HostOrDevice, "N L D"],
    q_mask: Bool[HostOrDevice, "B P"] | None = None,
    d_mask: Bool[HostOrDevice, "N L"] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    implementation: Implementation | None = None,
) -> Float[Array, "B N"]:
    """Returns the late-interaction score of every query with every document, differentiable in q and d.

        score[b, n] = (1 / P_b) * sum over kept p of  max over kept l of <q[b, p], d[n, l]>

    This is what `smart_jax.maxsim`, where the whole contract is written, does with arrays.

    Args:
      q, d: query and document tokens, of a floating-point dtype.
      q_mask, d_mask: True = kept; None keeps all.
      reduction: "mean" or "sum" over the query's kept tokens.
      implementation: one of `IMPLEMENTATIONS`; None = the device's best.

    Returns:
      float32 (float64 for float64 inputs). A document without kept tokens scores `NO_TOKENS`, a query without kept
      tokens 0 with every other document.

    Raises:
      ValueError: ranks, widths or shapes of masks do not fit; an axis is empty; an option is unknown.
      TypeError: tokens are not floating point, or masks are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> q = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> d = jnp.array([[[0.5, 0.25], [-1.0, 0.0]]])
      >>> maxsim(q, d, reduction="sum")  # 0.5 + 0.25
      Array([[0.75]], dtype=float32)
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r}: choose 'mean' or 'sum'")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation {implementation!r}: choose None or one of {IMPLEMENTATIONS}")
    queries, documents = _tokens("q", q), _tokens("d", d)
    if queries.shape[2] != documents.shape[2]:
        raise ValueError(
            f"q has width {queries.shape[2]} and d has width {documents.shape[2]}: use the same model for both"
        )
    kept, d_kept = _mask("q_mask", q_mask, queries), _mask("d_mask", d_mask, documents)
    if implementation == "reference":
        kept, d_kept = _all_where_none(kept, queries), _all_where_none(d_kept, documents)
        return dense_maxsim(queries, documents, kept, d_kept, reduction == "mean")
    # In shard_map all inputs must vary over the same mesh axes; doing it outside the custom VJP lets its transpose,
    # a sum over devices, complete the gradient of a replicated input.
    arrays = queries, documents, kept, d_kept
    forward = _FORWARD[_for_device(implementation, compute_dtype(queries, documents))]
    return argmax_maxsim(*like(arrays, *arrays), reduction == "mean", forward)


def maxsim_pairs(
    q: Float[HostOrDevice, "B P D"],
    d: Float[HostOrDevice, "B K L D"],
    q_mask: Bool[HostOrDevice, "B P"] | None = None,
    d_mask: Bool[HostOrDevice, "B K L"] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    implementation: Implementation | None = None,
) -> Float[Array, "B K"]:
    """Returns the late-interaction score of each query with its own K documents, differentiable in q and d.

        score[b, k] = (1 / P_b) * sum over kept p of  max over kept l of <q[b, p], d[b, k, l]>

    It serves reranking, mined negatives and distillation. Queries are scored one after another.

    Args:
      q: query tokens, usually L2-normalised, of a floating-point dtype.
      d: tokens of each query's documents.
      q_mask, d_mask: True = kept; None keeps all.
      reduction: "mean" or "sum" over the query's kept tokens.
      implementation: as in `smart_jax.maxsim`.

    Returns:
      float32 (float64 for float64 inputs). A document without kept tokens scores -1e30 with a zero gradient, a query
      without kept tokens 0 with every other document. A NaN in a kept token makes its own item's scores NaN, and no
      others.

    Raises:
      ValueError: as `smart_jax.maxsim`, or q and d differ in B.
      TypeError: tokens are not floating point, or masks are not boolean.

    Example:
      >>> import jax.numpy as jnp
      >>> from smart_jax import maxsim_pairs
      >>> q = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # two queries of one token
      >>> d = jnp.array([[[[0.5, 0.0]], [[0.25, 0.0]]], [[[0.0, 0.75]], [[0.0, 1.0]]]])  # with two documents each
      >>> maxsim_pairs(q, d)
      Array([[0.5 , 0.25],
             [0.75, 1.  ]], dtype=float32)
    """
    q, d = jnp.asarray(q), jnp.asarray(d)
    if d.ndim != 4 or d.shape[:1] != q.shape[:1]:
        raise ValueError(
            f"d has shape {d.shape} for q of shape {q.shape}: it must be [queries, documents of each, tokens, width]"
        )
    score = partial(maxsim, reduction=reduction, implementation=implementation)

    def of_query(pair: tuple[Array, Array, Array | None, Array | None]) -> Float[Array, " K"]:
        q, d, q_mask, d_mask = pair
        return score(q[None], d, None if q_mask is None else q_mask[None], d_mask)[0]

    scores: Array = lax.map(of_query, (q, d, q_mask, d_mask))  # one at a time: its documents are work enough
    return scores


def _for_device(implementation: Implementation | None, dtype: jnp.dtype) -> Implementation:
    """Returns what was chosen, or the best for the default device."""
    if implementation is None and dtype == jnp.float64:
        return "xla"
    if implementation is None:
        return "pallas_tpu" if jax.default_backend() == "tpu" else "pallas_gpu" if pallas_gpu.available() else "xla"
    if implementation == "pallas_gpu" and jax.default_backend() == "gpu" and not pallas_gpu.available():
        warnings.warn("'pallas_gpu' is for Hopper GPUs (H100, H200): 'xla' takes its place here", stacklevel=3)
        return "xla"
    return implementation


def _tokens(name: str, tokens: HostOrDevice) -> Float[Array, "N L D"]:
    x = jnp.asarray(tokens)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {x.dtype}: tokens must be floating point (use .astype)")
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"{name} has shape {x.shape}: tokens are [items, tokens, width], no axis empty")
    return x


def _mask(name: str, mask: HostOrDevice | None, x: Float[Array, "N L D"]) -> Bool[Array, "N L"] | None:
    if mask is None:
        return None
    kept = jnp.asarray(mask)
    if kept.dtype != bool:
        raise TypeError(f"{name} has dtype {kept.dtype}: a mask is boolean, True = kept (use .astype(bool))")
    if kept.shape != x.shape[:2]:
        raise ValueError(f"{name} has shape {kept.shape} for tokens of shape {x.shape}: it must be {x.shape[:2]}")
    return kept


def _all_where_none(mask: Bool[Array, "N L"] | None, x: Float[Array, "N L D"]) -> Bool[Array, "N L"]:
    return jnp.ones(x.shape[:2], bool) if mask is None else mask
