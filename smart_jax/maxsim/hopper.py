"""The kernel for Hopper GPUs as a way of computing MaxSim, imported when it is used: Pallas takes 0.1 s of CPU time."""

from __future__ import annotations

import jax
from jaxtyping import Array, Bool, Float, Int

from smart_jax.maxsim.argmax import Way, scattered_gradients


def available() -> bool:
    """Returns whether the default device is a Hopper GPU, the one that the kernel is for."""
    return jax.default_backend() == "gpu" and getattr(jax.devices()[0], "compute_capability", None) == "9.0"


def _forward(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    from smart_jax.maxsim.pallas_gpu import gpu_forward

    return gpu_forward(q, d, d_mask, weight, with_index)


HOPPER = Way(_forward, scattered_gradients)
