"""Models and indexes for other libraries: mteb, Haystack and LangChain, each imported when it is used."""

import importlib
from typing import TYPE_CHECKING, Any

from smart_jax.integrations.mteb import mteb_model

if TYPE_CHECKING:
    from smart_jax.integrations.haystack import HaystackRanker, HaystackRetriever
    from smart_jax.integrations.langchain import LangChainEmbeddings, LangChainRetriever

__all__ = [
    "HaystackRanker",
    "HaystackRetriever",
    "LangChainEmbeddings",
    "LangChainRetriever",
    "mteb_model",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    home = "haystack" if name.startswith("Haystack") else "langchain"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
