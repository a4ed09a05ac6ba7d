"""Products with a low-rank branch, x W + x A B, whose gradients are written out."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def low_rank(
    x: Float[Array, "*B inputs"], a: Float[Array, "inputs rank"], b: Float[Array, "rank outputs"]
) -> Float[Array, "*B outputs"]:
    """Returns x A B. Its gradient is written out, so that the products transpose arrays of r columns, not wide ones."""
    return x @ a @ b


def _low_rank_forward(x: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    inner = x @ a
    return inner @ b, (x, a, b, inner)


def _low_rank_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    x, a, b, inner = saved
    inner_gradient = gradient @ b.T
    # Together: XLA's scheduler would leave the factors' gradients for the end, and keep what they need of every layer.
    gradients: tuple[Array, Array, Array] = jax.lax.optimization_barrier(
        (inner_gradient @ a.T, *_factor_gradients(x, inner, gradient, inner_gradient))
    )
    return gradients


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


@jax.custom_vjp
def merged_product(
    x: Float[Array, "*B inputs"],
    kernel: Float[Array, "inputs outputs"],
    a: Float[Array, "inputs rank"],
    b: Float[Array, "rank outputs"],
) -> Float[Array, "*B outputs"]:
    """Returns x (W + A B), with the gradient of x W + x A B, in which a factor's needs no product of W's size."""
    return x @ (kernel + a @ b)


def _merged_forward(x: Array, kernel: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    merged = kernel + a @ b
    return x @ merged, (x, merged, a, b)


def _merged_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    x, merged, a, b = saved
    factors = _factor_gradients(x, x @ a, gradient, gradient @ b.T)
    return gradient @ merged.T, _outer_products(x, gradient), *factors


merged_product.defvjp(_merged_forward, _merged_backward)


def _factor_gradients(x: Array, inner: Array, gradient: Array, inner_gradient: Array) -> tuple[Array, Array]:
    """Returns the gradients of A and B, where inner = x A and inner_gradient is its gradient."""
    return _outer_products(x, inner_gradient), _outer_products(inner, gradient)


def _outer_products(a: Float[Array, "*B inputs"], b: Float[Array, "*B outputs"]) -> Float[Array, "inputs outputs"]:
    """Returns the sum over all positions of the outer products of a and b."""
    return jax.lax.dot_general(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), (((0,), (0,)), ((), ())))
