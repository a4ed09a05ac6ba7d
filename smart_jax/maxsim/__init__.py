"""MaxSim on arrays: the differentiable operation, its implementations and their oracle."""

from smart_jax.maxsim.api import IMPLEMENTATIONS, Implementation, maxsim, maxsim_pairs
from smart_jax.maxsim.arrays import inner_products
from smart_jax.maxsim.projected import projected_maxsim
from smart_jax.maxsim.reference import NO_TOKENS

__all__ = [
    "IMPLEMENTATIONS",
    "NO_TOKENS",
    "Implementation",
    "inner_products",
    "maxsim",
    "maxsim_pairs",
    "projected_maxsim",
]
