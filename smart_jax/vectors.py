"""The L2 norm of vectors, on devices and on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

SHORTEST = 1e-12  # what a shorter vector is divided by, so that zeros stay zeros


def l2_normalise(x: Float[np.ndarray | jax.Array, "*N D"]) -> Float[jax.Array, "*N D"]:
    """Returns vectors divided by their lengths, in float32 at least.

        x / max(|x|, 1e-12)

    A zero vector stays zero, and its gradient is finite.

    Args:
      x: vectors along the last axis.

    Example:
      >>> import jax.numpy as jnp
      >>> l2_normalise(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
      Array([[0.6, 0.8],
             [0. , 0. ]], dtype=float32)
    """
    x = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
    # The maximum before the root: the gradient of a root at 0 is infinite.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), SHORTEST**2))


def l2_normalise_on_host(x: Float[np.ndarray, "*N D"]) -> Float[np.ndarray, "*N D"]:
    """Returns vectors divided by their lengths, float32 on the host; zeros stay zeros.

    Args:
      x: vectors along the last axis, of any floating-point type.

    Example:
      >>> import numpy as np
      >>> l2_normalise_on_host(np.array([[3, 4], [0, 0]], np.float16))
      array([[0.6, 0.8],
             [0. , 0. ]], dtype=float32)
    """
    x = x.astype(np.float32)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), SHORTEST))
