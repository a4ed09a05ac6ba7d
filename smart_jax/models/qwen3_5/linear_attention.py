"""Linear attention layer of Qwen3.5: projections, a causal convolution, the gated delta rule and a gated norm.

A layer's state of a row is a matrix for each head, which forgets a share at each token and stores the token's value
under its key (arXiv:2412.06464). What a token reads follows from the tokens before it alone, so that padding on the
right reaches no token; padding on the left, or another item before it, would.
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smart_jax.models import layers as L
from smart_jax.models.qwen3_5.config import Qwen35TextConfig
from smart_jax.models.qwen3_5.gated_delta import gated_delta

NORM_EPS = 1e-6  # of the lengths of queries and keys


class CausalConv(nnx.Module):
    """Convolution of each channel with its own weights, over a position and those before it."""

    def __init__(self, channels: int, width: int, std: float, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (width, channels)))

    def __call__(self, x: Float[Array, "B L channels"]) -> Float[Array, "B L channels"]:
        """Returns the sums, of which the last weight is a position's own; before the row there are zeros."""
        kernel, length = self.kernel[...], x.shape[1]
        padded = jnp.pad(x, ((0, 0), (len(kernel) - 1, 0), (0, 0)))
        # Shifted sums, since a convolution of one channel each has no product that a device would be quick at.
        shifted = [padded[:, i : i + length] * weights for i, weights in enumerate(kernel[:, None, None])]
        total: Array = reduce(jnp.add, shifted)
        return total


class GatedRMSNorm(nnx.Module):
    """Root mean square norm, multiplied by SiLU of a gate; its scale is around 1, unlike the decoder's other norms'."""

    def __init__(self, width: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(
        self, x: Float[Array, "*batch width"], gate: Float[Array, "*batch width"]
    ) -> Float[Array, "*batch width"]:
        """Returns the gated norm of x over its last axis."""
        normalised = L.rms_normalized(x, self.scale[...], self.eps)
        return (normalised * jax.nn.silu(gate.astype(jnp.float32))).astype(x.dtype)


class GatedDeltaNet(nnx.Module):
    """Linear attention by the gated delta rule; neighbouring heads of values share one of queries and keys."""

    def __init__(self, c: Qwen35TextConfig, *, rngs: nnx.Rngs) -> None:
        self.keys, self.values = c.linear_num_key_heads, c.linear_num_value_heads
        self.key_dim, self.value_dim = c.linear_key_head_dim, c.linear_value_head_dim
        key_width, value_width = self.keys * self.key_dim, self.values * self.value_dim
        self.splits = (key_width, 2 * key_width)
        linear = partial(L.linear, bias=False, std=c.initializer_range, rngs=rngs)
        self.in_proj_qkv = linear(c.hidden_size, 2 * key_width + value_width)
        self.in_proj_z = linear(c.hidden_size, value_width)
        self.in_proj_b = linear(c.hidden_size, self.values)
        self.in_proj_a = linear(c.hidden_size, self.values)
        self.conv1d = CausalConv(2 * key_width + value_width, c.linear_conv_kernel_dim, c.initializer_range, rngs=rngs)
        self.act = L.ACTIVATIONS[c.hidden_act]
        self.A_log = nnx.Param(jnp.log(jax.random.uniform(rngs.params(), (self.values,), minval=0.01, maxval=16.0)))
        self.dt_bias = nnx.Param(jnp.ones(self.values))
        self.norm = GatedRMSNorm(self.value_dim, c.rms_norm_eps)
        self.out_proj = linear(value_width, c.hidden_size)

    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L H"]:
        """Returns what each position reads of the state that it and those before it have left."""
        heads = (*x.shape[:2], -1)
        q, k, v = jnp.split(self.act(self.conv1d(self.in_proj_qkv(x))), self.splits, axis=-1)
        q, k = (_unit(part.reshape(*heads, self.key_dim)) for part in (q, k))
        v = v.reshape(*heads, self.value_dim)
        beta = jax.nn.sigmoid(self.in_proj_b(x).astype(jnp.float32))
        read = gated_delta(q * self.key_dim**-0.5, k, v, self._log_decay(x), beta).astype(x.dtype)
        gated = self.norm(read, self.in_proj_z(x).reshape(*heads, self.value_dim))
        return self.out_proj(gated.reshape(heads))

    def _log_decay(self, x: Float[Array, "B L H"]) -> Float[Array, "B L values"]:
        """Returns the logarithm of the share of a head's state that stays at each position; negative, float32."""
        rate, bias = (jnp.exp(self.A_log[...].astype(jnp.float32)), self.dt_bias[...].astype(jnp.float32))
        steps = jax.nn.softplus(self.in_proj_a(x).astype(jnp.float32) + bias[None, None])
        return -rate[None, None] * steps


def _unit(x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Returns x at unit length over its last axis, in float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + NORM_EPS)
