"""Protocol of a model for training, evaluation and integrations: items in, embeddings or states out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike

from smart_jax.retrieval.adapter import Adapter
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.states import States


@runtime_checkable
class Retriever(Protocol):
    """A model that embeds queries and documents; `smart_jax.Encoder` is one, and so is anything with these members.

    Items are what `smart_jax.inputs.parse_item` takes: texts, images, dicts. See `smart_jax.Encoder` for the arguments.

    Example:
      >>> import smart_jax
      >>> def token_count(model: smart_jax.Retriever, texts: list[str]) -> int:
      ...     return len(model.encode_document(texts).tokens)
    """

    @property
    def adapter(self) -> Adapter | None:
        """Trained projection of the token vectors; None = the model's own."""

    @property
    def width(self) -> int:
        """Width H of the backbone's states, and of pooled vectors without an adapter."""

    @property
    def depth(self) -> int:
        """Number of the backbone's blocks; there are depth + 1 layers of states."""

    @property
    def token_dim(self) -> int | None:
        """Width of the token vectors that the model's own head makes; None = it has no head, and they are states."""

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of one item."""

    def fingerprint(self) -> str:
        """Returns a text that is equal for models that give equal states; the adapter is left out."""

    def with_adapter(self, adapter: str | Path | Adapter | None) -> Retriever:
        """Returns the same model with another adapter, or without one."""

    def encode_query(
        self,
        items: Sequence[Any],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float32,
        progress: bool | None = None,
    ) -> Embeddings:
        """Embeds queries."""

    def encode_document(
        self,
        items: Sequence[Any],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float32,
        progress: bool | None = None,
    ) -> Embeddings:
        """Embeds documents."""

    def states(
        self,
        items: Sequence[Any],
        *,
        instruction: str | None = None,
        query: bool | None = None,
        layers: Sequence[int] | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float16,
        progress: bool | None = None,
    ) -> States:
        """Returns the backbone's states of items, from which embeddings of any kind follow."""

    def states_by_part(
        self,
        items: Sequence[Any],
        parts: Sequence[slice],
        *,
        instruction: str | None = None,
        query: bool | None = None,
        layers: Sequence[int] | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float16,
        progress: bool | None = None,
    ) -> Iterator[Callable[[], States]]:
        """Yields what makes the states of one part of the items after another; the next is encoded meanwhile."""
