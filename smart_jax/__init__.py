"""SMART: late interaction over the frozen hidden states of single-vector multimodal embedding models (JAX / Flax).

Names are imported when they are first used: a program that only prints its options does not wait for JAX.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smart_jax.checkpoint_encoder import load
    from smart_jax.encoder import Encoder
    from smart_jax.encoding import Pipeline
    from smart_jax.evidence import Evidence, explain
    from smart_jax.index import Index
    from smart_jax.integrations import mteb_model
    from smart_jax.maxsim import maxsim_pairs
    from smart_jax.retrieval import (
        Adapter,
        AdapterConfig,
        Embeddings,
        Resident,
        Retriever,
        States,
        maxsim,
        reductions,
        score,
        search,
        to_device,
    )
    from smart_jax.runtime import make_mesh

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Embeddings",
    "Encoder",
    "Evidence",
    "Index",
    "Pipeline",
    "Resident",
    "Retriever",
    "States",
    "explain",
    "load",
    "make_mesh",
    "maxsim",
    "maxsim_pairs",
    "mteb_model",
    "reductions",
    "score",
    "search",
    "to_device",
]

_HOMES = {
    "checkpoint_encoder": ("load",),
    "encoder": ("Encoder",),
    "encoding": ("Pipeline",),
    "evidence": ("Evidence", "explain"),
    "index": ("Index",),
    "integrations": ("mteb_model",),
    "maxsim": ("maxsim_pairs",),
    "runtime": ("make_mesh",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in __all__:
        value = getattr(importlib.import_module(f"smart_jax.{_HOME.get(name, 'retrieval')}"), name)
    else:  # smart_jax.evidence and the other parts, without an import of their own
        try:
            value = None if name.startswith("_") else importlib.import_module(f"smart_jax.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"smart_jax.{name}":
                raise
            value = None
        if value is None:
            raise AttributeError(f"module 'smart_jax' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Library(types.ModuleType):
    """The package, of which `maxsim` is the function, not the part of that name, whichever is imported first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "maxsim" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Library
