"""Linear maps of EmbeddingGemma 2's towers, whose weights stand one name deeper, perhaps between two clamps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smart_jax.models import layers as L


class ClippableLinear(nnx.Module):
    """Linear map without a bias that may clamp what it reads and what it gives by four numbers of the checkpoint.

    The numbers are no weights: no gradient reaches them.
    """

    def __init__(self, inputs: int, outputs: int, *, clipped: bool, std: float, rngs: nnx.Rngs) -> None:
        self.linear = L.linear(inputs, outputs, bias=False, std=std, rngs=rngs)
        self.clipped = clipped
        if clipped:
            self.input_min, self.output_min = nnx.Param(jnp.array(-jnp.inf)), nnx.Param(jnp.array(-jnp.inf))
            self.input_max, self.output_max = nnx.Param(jnp.array(jnp.inf)), nnx.Param(jnp.array(jnp.inf))

    def __call__(self, x: Float[Array, "B L inputs"]) -> Float[Array, "B L outputs"]:
        """Returns the map's result."""
        if not self.clipped:
            return self.linear(x)
        y = self.linear(_clamped(x, self.input_min, self.input_max))
        return _clamped(y, self.output_min, self.output_max)


def _clamped(
    x: Float[Array, "B L width"], least: nnx.Param[Array], most: nnx.Param[Array]
) -> Float[Array, "B L width"]:
    return jnp.clip(x, *(jax.lax.stop_gradient(bound[...]).astype(x.dtype) for bound in (least, most)))


class SoftTokenEmbedder(nnx.Module):
    """Map of a tower's results to the text encoder's embeddings, after a norm without weights."""

    def __init__(self, inputs: int, outputs: int, *, eps: float, std: float, rngs: nnx.Rngs) -> None:
        self.embedding_projection = L.linear(inputs, outputs, bias=False, std=std, rngs=rngs)
        self.eps = eps

    def __call__(self, x: Float[Array, "B L inputs"]) -> Float[Array, "B L outputs"]:
        """Returns the soft tokens that take their places among a text's embeddings."""
        tokens: Array = self.embedding_projection(L.unit_rms(x, self.eps))
        return tokens
