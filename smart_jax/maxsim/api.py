"""MaxSim, the late-interaction score: for each query token its best document token, averaged over the query."""

from __future__ import annotations

import warnings
from functools import cache, partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from smart_jax.maxsim import hopper
from smart_jax.maxsim.argmax import Forward, Way, argmax_maxsim, way_of_pairs
from smart_jax.maxsim.arrays import compute_dtype, like
from smart_jax.maxsim.eager import HOST_DTYPES, is_hosts_turn
from smart_jax.maxsim.fused import FUSED
from smart_jax.maxsim.host import host_maxsim, host_maxsim_pairs
from smart_jax.maxsim.reference import dense_maxsim
from smart_jax.maxsim.xla import CHUNKED, NARROW, TILED
from smart_jax.typing import HostOrDevice

Implementation = Literal["reference", "xla", "xla_gpu", "xla_tpu", "pallas_gpu"]
IMPLEMENTATIONS = get_args(Implementation)
_WAYS = {
    "xla": TILED,
    "xla_gpu": CHUNKED,
    "xla_tpu": FUSED,
    "pallas_gpu": hopper.HOPPER,
}


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
    _check_options(reduction, implementation)
    queries, documents = _tokens("q", q), _tokens("d", d)
    _check_widths(queries, documents)
    kept, d_kept = _mask("q_mask", q_mask, queries), _mask("d_mask", d_mask, documents)
    mean = reduction == "mean"
    arrays = queries, documents, kept, d_kept
    products = queries.size * documents.size // queries.shape[2]
    if implementation is None and is_hosts_turn(("maxsim", mean), arrays, products):
        of_host: Array = jax.device_put(host_maxsim(*jax.device_get(arrays), mean=mean))
        return of_host
    if implementation == "reference":
        queries, documents = jnp.asarray(queries), jnp.asarray(documents)
        kept, d_kept = _all_where_none(kept, queries), _all_where_none(d_kept, documents)
        return dense_maxsim(queries, documents, kept, d_kept, mean)
    scores: Array = _compiled(*_alike(arrays), mean, way_of(implementation, queries, documents))
    return scores


# Called outside of a trace, it is compiled once for each shape; inside of one, it is as if it were not there.
_compiled = jax.jit(argmax_maxsim, static_argnums=(4, 5), inline=True)


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

    It serves reranking, mined negatives and distillation. Queries are scored one after another, on a CPU together
    where they have few tokens.

    Args:
      q: query tokens, usually L2-normalised, of a floating-point dtype.
      d: tokens of each query's documents.
      q_mask, d_mask: True = kept; None keeps all.
      reduction: "mean" or "sum" over the query's kept tokens.
      implementation: as in `smart_jax.maxsim`.

    Returns:
      float32 (float64 for float64 inputs). A document without kept tokens scores -1e18 with a zero gradient, a query
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
    q, d = _array(q), _array(d)
    if d.ndim != 4 or d.shape[:1] != q.shape[:1]:
        raise ValueError(
            f"d has shape {d.shape} for q of shape {q.shape}: it must be [queries, documents of each, tokens, width]"
        )
    _check_options(reduction, implementation)
    queries = _tokens("q", q)
    _check_tokens("d", d)
    _check_widths(queries, d)
    arrays, mean = (queries, d, _mask("q_mask", q_mask, queries), _mask("d_mask", d_mask, d)), reduction == "mean"
    if implementation is None and is_hosts_turn(("maxsim_pairs", mean), arrays, queries.shape[1] * d.size):
        of_host: Array = jax.device_put(host_maxsim_pairs(*jax.device_get(arrays), mean=mean))
        return of_host
    if implementation == "reference":
        of_reference: Array = _reference_pairs(*arrays, mean)
        return of_reference
    scores: Array = _compiled(*_alike(arrays), mean, way_of_pairs(way_of(implementation, queries, d)))
    return scores


@partial(jax.jit, static_argnums=4)
def _reference_pairs(
    q: Float[Array, "B P D"],
    d: Float[Array, "B K L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "B K L"] | None,
    mean: bool,
) -> Float[Array, "B K"]:
    def of_query(pair: tuple[Array, Array, Array, Array]) -> Float[Array, " K"]:
        q, d, q_mask, d_mask = pair
        return dense_maxsim(q[None], d, q_mask[None], d_mask, mean)[0]

    scores: Array = lax.map(of_query, (q, d, _all_where_none(q_mask, q), _all_where_none(d_mask, d)))
    return scores


Arrays = tuple[HostOrDevice, HostOrDevice, HostOrDevice | None, HostOrDevice | None]


def _alike(arrays: Arrays) -> Arrays:
    """Returns the arrays, varying over the same mesh axes, as shard_map asks of them.

    Done outside the custom VJP it lets its transpose, a sum over devices, complete the gradient of a replicated input.
    """
    return like(arrays, *arrays) if any(isinstance(x, jax.core.Tracer) for x in arrays) else arrays


def way_of(
    implementation: Implementation | None, q: Float[HostOrDevice, "B P D"], d: Float[HostOrDevice, "... L D"]
) -> Way:
    """Returns both passes of an implementation; None = those that suit the device which the program is compiled for."""
    if implementation is None:
        return _on_tpu_fused(_elsewhere(compute_dtype(q, d), d.shape[-1]))
    if implementation == "pallas_gpu" and jax.default_backend() == "gpu" and not hopper.available():
        warnings.warn("'pallas_gpu' is for Hopper GPUs (H100, H200): 'xla_gpu' takes its place here", stacklevel=3)
        return CHUNKED
    return _WAYS[implementation]


def _elsewhere(dtype: jnp.dtype, width: int) -> Implementation:
    """Returns the implementation for what is no TPU: for the default device if it is a GPU, else for CPUs."""
    if hopper.available() and dtype != jnp.float64 and width <= NARROW:
        return "pallas_gpu"
    return "xla_gpu" if jax.default_backend() == "gpu" else "xla"


@cache
def _on_tpu_fused(elsewhere: Implementation) -> Way:
    """Returns passes that are fused in programs for TPUs, which need not be here, and in others are another's."""
    other = _WAYS[elsewhere]

    def chosen(fused: Forward, default: Forward) -> Forward:
        def forward(
            q: Array, d: Array, d_mask: Array | None, weight: Array, with_index: bool
        ) -> tuple[Array, Array | None]:
            ways = {"tpu": partial(_forward, fused, with_index), "default": partial(_forward, default, with_index)}
            result: tuple[Array, Array | None] = lax.platform_dependent(q, d, d_mask, weight, **ways)
            return result

        return forward

    def gradients(*arrays: Array | None) -> tuple[Array, Array]:
        result: tuple[Array, Array] = lax.platform_dependent(*arrays, tpu=FUSED.gradients, default=other.gradients)
        return result

    pairs = chosen(way_of_pairs(FUSED).forward, way_of_pairs(other).forward)
    return Way(chosen(FUSED.forward, other.forward), gradients, pairs)


def _forward(forward: Forward, with_index: bool, *arrays: Array | None) -> tuple[Array, Array | None]:
    return forward(*arrays, with_index)  # type: ignore[arg-type, call-arg]


def _array(x: HostOrDevice) -> HostOrDevice:
    """Returns the array where it is, or on the device if it is of a type that only devices' arrays are scored in."""
    as_it_is = isinstance(x, jax.Array) or (isinstance(x, np.ndarray) and x.dtype in HOST_DTYPES)
    return x if as_it_is else jnp.asarray(x)


def _tokens(name: str, tokens: HostOrDevice) -> Float[HostOrDevice, "N L D"]:
    x = _array(tokens)
    if x.ndim != 3:
        raise ValueError(f"{name} has shape {x.shape}: tokens are [items, tokens, width], no axis empty")
    _check_tokens(name, x)
    return x


def _check_tokens(name: str, x: HostOrDevice) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {x.dtype}: tokens must be floating point (use .astype)")
    if 0 in x.shape:
        raise ValueError(f"{name} has shape {x.shape}: tokens are [items, tokens, width], no axis empty")


def _check_options(reduction: str, implementation: str | None) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r}: choose 'mean' or 'sum'")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation {implementation!r}: choose None or one of {IMPLEMENTATIONS}")


def _check_widths(q: HostOrDevice, d: HostOrDevice) -> None:
    if q.shape[-1] != d.shape[-1]:
        raise ValueError(f"q has width {q.shape[-1]} and d has width {d.shape[-1]}: use the same model for both")


def _mask(name: str, mask: HostOrDevice | None, x: Float[HostOrDevice, "*N L D"]) -> Bool[HostOrDevice, "*N L"] | None:
    if mask is None:
        return None
    kept = _array(mask)
    if kept.dtype != bool:
        raise TypeError(f"{name} has dtype {kept.dtype}: a mask is boolean, True = kept (use .astype(bool))")
    if kept.shape != x.shape[:-1]:
        raise ValueError(f"{name} has shape {kept.shape} for tokens of shape {x.shape}: it must be {x.shape[:-1]}")
    return kept


def _all_where_none(mask: Bool[HostOrDevice, "*N L"] | None, x: Float[HostOrDevice, "*N L D"]) -> Bool[Array, "*N L"]:
    return jnp.ones(x.shape[:-1], bool) if mask is None else jnp.asarray(mask)
