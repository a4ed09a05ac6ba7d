"""The model of an index: loaded when it is needed, and checked to be the one that the index was made with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from smart_jax.checkpoint_encoder import load
from smart_jax.retrieval import Adapter, Retriever

CHECKED = ("model", "adapter")  # facts that must agree


@dataclasses.dataclass
class IndexModel:
    """A model by its name or as an object, and what the index knows of it.

    Attributes:
      given: name or folder for `smart_jax.load`, or a `Retriever`; None = as the index was made with.
      adapter: as `smart_jax.load` takes it, where a name is given.
      known: facts that the index keeps of its model; empty = it has none yet.
      force: whether another model is taken all the same.
    """

    given: str | Path | Retriever | None
    adapter: str | Path | Adapter | None
    known: Mapping[str, Any]
    force: bool = False
    _loaded: Retriever | None = None
    _facts: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.given is not None and not isinstance(self.given, str | Path) and self.adapter is not None:
            raise ValueError("adapter is for a model that is named: give the encoder its own, by with_adapter")

    def load(self) -> Retriever:
        """Returns the model.

        Raises:
          ValueError: it is not the one that the index was made with.
        """
        if self._loaded is None:
            model = self._open()
            self._facts = self._facts_of(model)
            self.check(self.known)
            self._loaded = model
        return self._loaded

    def check_given(self) -> None:
        """Raises ValueError where another model or adapter is given than the index was made with.

        What goes by the names that the index knows is not loaded for it, nor is anything that is taken by force.
        """
        if self.force or not self.known.get("model") or (self.given is None and self.adapter is None):
            return
        names = self.names | ({"name": self.known.get("name")} if self.given is None else {})
        named = not isinstance(self.adapter, Adapter) and (self.given is None or isinstance(self.given, str | Path))
        if not named or any(self.known.get(key) != name for key, name in names.items()):
            self.load()

    def check(self, known: Mapping[str, Any]) -> None:
        """Raises ValueError where the model is not the one of which the index knows these facts."""
        facts = self._facts or {}
        if other := [key for key in CHECKED if key in known and known[key] != facts[key]]:
            said = ", ".join(f"{key} {known[key]}, not {facts[key]}" for key in other)
            if not self.force:
                raise ValueError(
                    f"the index was made with another model or adapter ({said}): open it with that one, make a new "
                    "index, or pass force=True to mix them all the same"
                )

    def _open(self) -> Retriever:
        if self.given is not None and not isinstance(self.given, str | Path):
            return self.given
        name = self.given or self.known.get("name")
        if name is None:
            raise ValueError("the index does not know where its model is from: pass the encoder as model=")
        adapter = self.adapter if self.adapter is not None else self.known.get("adapter_name")
        dtype = self.known.get("dtype")  # as the documents were encoded, on whatever device
        return load(name, adapter=adapter, dtype=None if dtype is None else jax.numpy.dtype(dtype))

    @property
    def names(self) -> dict[str, Any]:
        """Names by which the model and its adapter can be loaded again, as far as they are known."""
        folder = self.given if isinstance(self.given, str | Path) else getattr(self.given, "folder", None)
        adapter = self.adapter if isinstance(self.adapter, str | Path) else None
        return {
            "name": None if folder is None else str(folder),
            "adapter_name": None if adapter is None else str(adapter),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Facts of the model that the index is to keep, which is loaded for it."""
        self.load()
        assert self._facts is not None
        return self._facts

    def _facts_of(self, model: Retriever) -> dict[str, Any]:
        adapter, params = model.adapter, getattr(model, "params", None)
        preprocessor = getattr(model, "preprocessor", None)
        return {
            **self.names,
            "model": getattr(model, "quick_fingerprint", model.fingerprint)(),
            "dtype": None if params is None else str(jax.tree.leaves(params)[0].dtype),
            "modalities": list(getattr(preprocessor, "modalities", ("text",))),
            "adapter": adapter.fingerprint()
            if isinstance(adapter, Adapter)
            else None
            if adapter is None
            else repr(adapter),
        }
