"""The workloads of `benchmarks.maxsim` and their right answers, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def unit(rng: Any, *shape: int) -> Any:
    """Draws unit vectors in float32."""
    import numpy as np

    x = rng.standard_normal(shape, dtype=np.float32)
    for rows in np.array_split(x.reshape(-1, shape[-1]), max(1, x.size >> 22)):  # without a copy of all
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return x


@dataclass(frozen=True)
class Workload:
    """Queries and documents to score: how many, and of which lengths and width."""

    kind: str  # score, search or train
    queries: int
    query_tokens: int
    documents: int
    lengths: tuple[int, int]
    width: int

    def scaled(self, scale: float) -> Workload:
        """Returns the workload with so many times the documents."""
        documents = max(2, round(self.documents * scale))
        queries = documents if self.kind == "train" else self.queries
        return Workload(self.kind, queries, self.query_tokens, documents, self.lengths, self.width)

    def make(self, seed: int = 0) -> Any:
        """Random unit vectors."""
        import numpy as np

        from benchmarks.maxsim_peers import Data

        rng = np.random.default_rng(seed)
        lengths = rng.integers(self.lengths[0], self.lengths[1] + 1, self.documents)
        queries = unit(rng, self.queries, self.query_tokens, self.width)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Data(queries, unit(rng, int(offsets[-1]), self.width), offsets)

    def __str__(self) -> str:
        low, high = self.lengths
        queries = f"{self.queries} quer{'y' if self.queries == 1 else 'ies'} of {self.query_tokens} tokens"
        tokens = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        what = {"score": "", "search": ", top 10", "train": ", value and gradient of InfoNCE"}[self.kind]
        return f"{queries}, {self.documents:,} documents of {tokens} tokens, width {self.width:,}{what}"


WORKLOADS = {
    "W1": Workload("score", 32, 32, 1000, (50, 300), 128),
    "W2": Workload("score", 16, 20, 500, (1030, 1030), 128),
    "W3": Workload("score", 8, 24, 100, (300, 1300), 2048),
    "W4": Workload("search", 1, 32, 2000, (100, 800), 128),
    "W5": Workload("train", 32, 32, 32, (256, 256), 2048),
    "W6": Workload("train", 128, 32, 128, (256, 256), 2048),
    "W7": Workload("search", 1, 32, 20000, (1030, 1030), 128),
    "W8": Workload("search", 1, 32, 1000, (225, 225), 128),
    "W9": Workload("search", 1, 32, 60, (1000, 1000), 2048),
}


def oracle(data: Any) -> Any:
    """Scores [Nq, N] in float64."""
    import numpy as np

    queries = data.queries.astype(np.float64)
    count, length, width = queries.shape
    stacked = queries.reshape(-1, width).T
    scores = np.empty((count, len(data.documents)))
    for n, document in enumerate(data.documents):
        scores[:, n] = (document.astype(np.float64) @ stacked).max(axis=0).reshape(count, length).mean(axis=1)
    return scores


def oracle_train(data: Any) -> tuple[Any, ...]:
    """Loss and gradients of InfoNCE in float64."""
    import numpy as np

    from benchmarks.maxsim_peers import TEMPERATURE

    q, d = data.queries.astype(np.float64), data.batch.astype(np.float64)
    batch, length, width = q.shape
    stacked = q.reshape(-1, width)
    products = [stacked @ document.T for document in d]  # [B * P, L] each
    logits = np.stack([x.max(axis=1).reshape(batch, length).mean(axis=1) for x in products], axis=1) / TEMPERATURE
    top = logits.max(axis=1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    weights = (np.exp(logits - lse[:, None]) - np.eye(batch)) / (batch * TEMPERATURE * length)
    dq, dd = np.zeros_like(stacked), np.zeros_like(d)
    for n, x in enumerate(products):
        winners, weight = x.argmax(axis=1), np.repeat(weights[:, n], length)[:, None]
        dq += weight * d[n][winners]
        np.add.at(dd[n], winners, weight * stacked)
    return np.mean(lse - np.diagonal(logits)), dq.reshape(q.shape), dd


def judge(kind: str, result: Any, expected: tuple[Any, ...]) -> tuple[float, int]:
    """The largest error, relative for gradients, and how many of the documents found are not among the best."""
    import numpy as np

    if kind == "train":
        pairs = [(np.asarray(a, np.float64), b) for a, b in zip(result, expected, strict=True)]
        return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs), 0
    if kind == "score":
        return float(np.abs(np.asarray(result, np.float64) - expected[0]).max()), 0
    scores, indices = (np.asarray(x) for x in result)
    order = np.argsort(-expected[0][0])[: len(indices)]
    error = float(np.abs(scores - expected[0][0][indices]).max())
    return error, len(set(order.tolist()) - set(indices.tolist()))
