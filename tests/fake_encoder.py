"""An encoder without a model: every word is a token of its own fixed direction, the pooled vector is their mean."""

from __future__ import annotations

import dataclasses
import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np

from smart_jax.inputs.item import parse_item
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.states import States


@dataclasses.dataclass
class FakeEncoder:
    """A `smart_jax.Retriever` that records its calls."""

    width: int = 16
    noise: float = 0.0  # on each item's pooled vector
    adapter: Any = None
    calls: list[tuple[str, int, str | None]] = dataclasses.field(default_factory=list)

    def with_adapter(self, adapter: Any, **config: Any) -> FakeEncoder:
        return dataclasses.replace(
            self, adapter=SimpleNamespace(name=adapter, config=SimpleNamespace(**{"pooled_dim": None} | config))
        )

    def encode_query(self, items: Any, *, instruction: str | None = None, **options: Any) -> Embeddings:
        self.calls.append(("query", len(items), instruction))
        return self._encode(items, **{"dtype": np.float32, **options})

    def encode_document(self, items: Any, *, instruction: str | None = None, **options: Any) -> Embeddings:
        self.calls.append(("document", len(items), instruction))
        return self._encode(items, **{"dtype": np.float32, **options})

    @property
    def depth(self) -> int:
        return 1

    @property
    def token_dim(self) -> int | None:
        return None

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(text=SimpleNamespace(hidden_size=self.width, num_hidden_layers=1))

    @property
    def max_tokens(self) -> int:
        return 64

    def fingerprint(self) -> str:
        return f"fake-{self.width}-{self.noise}"

    def states(
        self,
        items: Any,
        *,
        instruction: str | None = None,
        query: bool | None = None,
        layers: Any = None,
        **options: Any,
    ) -> States:
        assert layers is None and self.adapter is None
        self.calls.append(("states of queries" if query else "states of documents", len(items), instruction))
        found = self._encode(items, **{"dtype": np.float16, **options})
        count = len(found.tokens)
        return States(
            pooled=found.pooled,
            states=found.tokens[:, None],
            norms=np.ones((count, 1), np.float32),
            ids=np.zeros(count, np.int32),
            offsets=found.offsets,
            grids=np.zeros((0, 4), np.int32),
            visual_ids=(),
            layers=(-1,),
            depth=1,
        )

    def states_by_part(self, items: Any, parts: Any, **options: Any) -> Any:
        for part in parts:
            states = self.states(items[part], **options)
            yield lambda states=states: states

    def _encode(self, items: Any, *, dtype: Any, batch_size: Any = None, progress: Any = None) -> Embeddings:
        tokens = [self.tokens(item) for item in items]
        pooled = np.stack([self.pooled(item) for item in items])
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
        return Embeddings(pooled=pooled.astype(dtype), tokens=np.concatenate(tokens).astype(dtype), offsets=offsets)

    def tokens(self, item: Any) -> np.ndarray:
        """Unit vectors [words, width], float64; an adapter turns every direction."""
        salt = self.adapter.name if self.adapter else ""
        words = " ".join(parse_item(item).texts).split()
        return _unit(np.stack([_direction(salt + word, self.width) for word in words]))

    def pooled(self, item: Any) -> np.ndarray:
        """Unit vector [width], float64."""
        text = " ".join(parse_item(item).texts)
        mean = np.stack([_direction(word, self.width) for word in text.split()]).mean(axis=0)
        return _unit(mean + self.noise * _direction("item " + text, self.width))


def _direction(text: str, width: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(width)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
