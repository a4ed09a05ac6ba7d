"""MaxSim on arrays: the differentiable operation, its implementations and their oracle."""

from smart_jax.maxsim.api import IMPLEMENTATIONS, Implementation, maxsim, maxsim_pairs
from smart_jax.maxsim.arrays import inner_products
from smart_jax.maxsim.eager import Shapes
from smart_jax.maxsim.host import Packed, host_inner_products, packed_scores
from smart_jax.maxsim.packed import exact_products, packed_maxsim
from smart_jax.maxsim.projected import projected_maxsim
from smart_jax.maxsim.reference import NO_TOKENS

__all__ = [
    "IMPLEMENTATIONS",
    "NO_TOKENS",
    "Implementation",
    "Packed",
    "Shapes",
    "exact_products",
    "host_inner_products",
    "inner_products",
    "maxsim",
    "maxsim_pairs",
    "packed_maxsim",
    "packed_scores",
    "projected_maxsim",
]
