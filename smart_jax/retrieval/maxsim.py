"""`smart_jax.maxsim`: the late-interaction score of arrays, or of embeddings."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from smart_jax.maxsim import Implementation
from smart_jax.maxsim import maxsim as maxsim_of_arrays
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.score import score
from smart_jax.typing import HostOrDevice


def maxsim(
    q: Float[HostOrDevice, "B P D"] | Embeddings,
    d: Float[HostOrDevice, "N L D"] | Embeddings,
    q_mask: Bool[HostOrDevice, "B P"] | None = None,
    d_mask: Bool[HostOrDevice, "N L"] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    implementation: Implementation | None = None,
    force: bool = False,
) -> Float[Array, "B N"]:
    """Returns the late-interaction score of every query with every document.

        score[b, n] = (1 / P_b) * sum over kept p of  max over kept l of <q[b, p], d[n, l]>

    The mean over the query's P_b kept tokens is SMART's (arXiv:2605.24938); reduction="sum" leaves out 1 / P_b
    (ColBERT, arXiv:2004.12832). Products and sums are float32 whatever the inputs, float64 for float64 inputs.

    Scores of arrays are differentiable in q and d (in reverse mode) and work under jit, grad, vmap, jax.checkpoint and
    shard_map. The gradient of bfloat16 tokens is bfloat16; on a TPU so are the weights that it sums. Outside of jit, on
    a CPU, a shape's first call is done in NumPy and later ones by a compiled program, so that changing shapes compile
    nothing; the last bit may differ. `Embeddings`, ragged and on the host, are scored as `score` does it, without
    padding and without gradients.

    Args:
      q: query tokens [B, P, D], usually L2-normalised, of a floating-point dtype; or `Embeddings`, of which the tokens
        are scored.
      d: document tokens [N, L, D], whose dtype may be another; or `Embeddings`, if q is.
      q_mask: which query tokens are kept, True = kept; None keeps all. For arrays only, like `d_mask`.
      d_mask: which document tokens are kept. A dropped token never wins, however low the others are.
      reduction: "mean" or "sum" over the query's kept tokens.
      implementation: how arrays are scored. None = what suits the device that the program is compiled for: "xla", by
        tiles, on a CPU; "xla_gpu", by larger ones, on a GPU; "pallas_gpu", a kernel for Hopper GPUs, on these up to
        width 512 but for float64; and on a TPU "xla_tpu", whose products XLA fuses with the maximum there (a tenth
        faster on v5e and v5p with `smart_jax.runtime.compiler_options` in the outermost `jax.jit`). On its device none
        of them holds [B, P, N, L], but for few query tokens (B * P at most D / 4) on a CPU; the backward pass keeps one
        index per query token and document. On another device the kernel is interpreted, slowly ("xla_gpu" takes its
        place on other GPUs, with a warning), and "xla_tpu" holds everything at once, as "reference", which is for
        tests, does anywhere.
      force: of `Embeddings`, as in `score`.

    Returns:
      Scores [B, N], float32 (float64 for float64 inputs). A document without kept tokens scores -1e18 with a zero
      gradient: finite, last in any ranking and without weight in a softmax. A query without kept tokens scores 0 with
      every other document. A NaN in a kept token makes its own item's scores NaN, and no others.

    Raises:
      ValueError: ranks, widths or shapes of masks do not fit; an axis is empty; an option is unknown; masks or another
        implementation than "xla" are given with `Embeddings`, or these do not belong together.
      TypeError: tokens are not floating point, masks are not boolean, or only one side is `Embeddings`.

    Example:
      >>> import jax.numpy as jnp
      >>> from smart_jax import maxsim
      >>> q = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> d = jnp.array([[[0.5, 0.25], [-1.0, 0.0]]])
      >>> maxsim(q, d)  # (0.5 + 0.25) / 2
      Array([[0.375]], dtype=float32)
      >>> maxsim(q, d, d_mask=jnp.array([[False, True]]))  # (-1 + 0) / 2
      Array([[-0.5]], dtype=float32)
    """
    if isinstance(q, Embeddings) or isinstance(d, Embeddings):
        return _of_embeddings(q, d, q_mask, d_mask, reduction, implementation, force)
    return maxsim_of_arrays(q, d, q_mask, d_mask, reduction=reduction, implementation=implementation)


def _of_embeddings(
    q: object, d: object, q_mask: object, d_mask: object, reduction: str, implementation: str | None, force: bool
) -> Float[Array, "B N"]:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r}: choose 'mean' or 'sum'")
    for name, x in (("q", q), ("d", d)):
        if not isinstance(x, Embeddings):
            raise TypeError(f"{name} is an array and the other side Embeddings: pass both as Embeddings")
    for name, mask in (("q", q_mask), ("d", d_mask)):
        if mask is not None:
            raise ValueError(f"{name}_mask is given with Embeddings, which hold kept tokens only: leave it out")
    if implementation not in (None, "xla"):
        raise ValueError(f"implementation {implementation!r}: Embeddings are scored by 'xla'")
    assert isinstance(q, Embeddings) and isinstance(d, Embeddings)
    if q.tokens.shape[1] != d.tokens.shape[1]:
        raise ValueError(f"tokens of q have width {q.tokens.shape[1]}, of d {d.tokens.shape[1]}: use the same model")
    scores = score(q, d, pooled_weight=0.0, force=force)
    return jnp.asarray(scores * q.lengths.astype(np.float32)[:, None] if reduction == "sum" else scores)
