"""Implementations for `benchmarks.maxsim`: ours, plain BLAS, and other libraries, each in the form that it asks for.

Each implementation offers ways (API, batch size) to do a kind of work; a way is a function that takes the data, puts
them into the form in which a user of that library would store them, and returns the call to measure. Scores are means
over a query's tokens, as ours; a library that sums is divided. Importing a peer is left to its way.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

K = 10  # documents that a search returns
TEMPERATURE = 0.03


@dataclass(frozen=True)
class Data:
    """Queries of equal length and ragged documents, float32 if not for a test of another."""

    queries: np.ndarray  # [Nq, P, D]
    tokens: np.ndarray  # [T, D]
    offsets: np.ndarray  # [N + 1]

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each document."""
        return np.diff(self.offsets)

    @cached_property
    def documents(self) -> list[np.ndarray]:
        """Each document's tokens."""
        return [self.tokens[a:b] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    @cached_property
    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Documents [N, L, D] with zeros behind their tokens, and the mask."""
        mask = np.arange(self.lengths.max(initial=1)) < self.lengths[:, None]
        documents = np.zeros((*mask.shape, self.tokens.shape[1]), self.tokens.dtype)
        documents[mask] = self.tokens
        return documents, mask

    @property
    def batch(self) -> np.ndarray:
        """Documents of equal lengths, [N, L, D], as a view."""
        return self.tokens.reshape(len(self.lengths), -1, self.tokens.shape[1])


Call = Callable[[], Any]  # scores [Nq, N]; (scores, indices) of the K best; or (loss, gradients of q and d)
Ways = dict[str, Callable[[Data], Call]]


@dataclass(frozen=True)
class Implementation:
    """One row of a table: what it is called, and its ways to do each kind of work."""

    title: str
    score: Ways = field(default_factory=dict)
    search: Ways = field(default_factory=dict)
    train: Ways = field(default_factory=dict)
    default: str | None = None  # the way of a call with default arguments, if it is one of several
    tolerance: float = 1e-4  # of the error; beyond it the result is wrong


def best(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The K best of one query's scores."""
    k = min(K, len(scores))
    top = np.argpartition(-scores, k - 1)[:k]
    top = top[np.argsort(-scores[top], kind="stable")]
    return scores[top], top


def then_best(ways: Ways) -> Ways:
    """Ways to search with scores of all documents."""

    def prepare(way, data: Data) -> Call:
        run = way(data)
        return lambda: best(np.asarray(run())[0])

    return {name: partial(prepare, way) for name, way in ways.items()}


def bare_import(module: str, *packages: str) -> Any:
    """The module without its packages' `__init__`, which would import training stacks that scoring does not need."""
    for name in packages:
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}")
            package = types.ModuleType(name)
            package.__path__ = spec.submodule_search_locations
            sys.modules[name] = package
    return importlib.import_module(module)


# Ours


def embeddings(tokens: np.ndarray, offsets: np.ndarray, dtype: str = "float32") -> Any:
    """Returns packed documents as `smart_jax.Embeddings`."""
    from smart_jax import Embeddings

    return Embeddings(tokens[offsets[:-1]], tokens, offsets).astype(np.dtype(dtype))  # pooled vectors: not used


def embedded_queries(data: Data) -> Any:
    """Returns the queries as `smart_jax.Embeddings`."""
    count, length, width = data.queries.shape
    return embeddings(data.queries.reshape(-1, width), np.arange(count + 1) * length)


def ours_score(data: Data) -> Call:
    """Prepares `smart_jax.score`, late interaction alone."""
    from smart_jax import score

    q, d = embedded_queries(data), embeddings(data.tokens, data.offsets)
    return lambda: score(q, d, pooled_weight=0)


def ours_search(dtype: str) -> Ways:
    """Returns `smart_jax.search` over documents of this dtype."""

    def prepare(data: Data) -> Call:
        from smart_jax import search

        q, d = embedded_queries(data), embeddings(data.tokens, data.offsets, dtype)

        def run():
            scores, indices = search(q, d, K, pooled_weight=0)
            return scores[0], indices[0]

        return run

    return {"": prepare}


def info_nce_gradient(score: Callable) -> Callable:
    """Compiled loss and gradients of InfoNCE in a batch, with scores by `score`."""
    import jax
    import jax.numpy as jnp

    def loss(q, d):
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(score(q, d) / TEMPERATURE, axis=1)))

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def dense_maxsim(q, d):
    """Returns scores by way of all similarities at once."""
    import jax.numpy as jnp

    return jnp.einsum("bpd,nld->bpnl", q, d, precision="highest").max(axis=-1).mean(axis=1)


def jax_train(score: Callable, data: Data) -> Call:
    """Prepares the gradient of InfoNCE over scores that jax computes."""
    import jax

    q, d = jax.device_put((data.queries, data.batch))
    step = info_nce_gradient(score)

    def run():
        loss, (dq, dd) = jax.block_until_ready(step(q, d))
        return loss, dq, dd

    return run


def ours_train(data: Data) -> Call:
    """Prepares the gradient through `smart_jax.maxsim`."""
    from smart_jax import maxsim

    return jax_train(maxsim, data)


# NumPy, and the products alone


def blas_score(data: Data) -> Call:
    """Prepares a loop over queries and documents around NumPy's matrix product."""

    def run():
        scores = np.empty((len(data.queries), len(data.documents)), np.float32)
        for b, query in enumerate(data.queries):
            for n, document in enumerate(data.documents):
                scores[b, n] = (query @ document.T).max(axis=1).mean()
        return scores

    return run


def blas_stacked(data: Data) -> Call:
    """All queries with one document at a time: a larger product."""
    count, length, width = data.queries.shape
    q = data.queries.reshape(-1, width)

    def run():
        scores = np.empty((len(data.documents), count), np.float32)
        for n, document in enumerate(data.documents):
            scores[n] = (q @ document.T).max(axis=1).reshape(count, length).mean(axis=1)
        return scores.T

    return run


def gemm_numpy(data: Data, rows: int) -> Call:
    """The products of all pairs of tokens, `rows` document tokens at a time; the output stays in the cache."""
    q = data.queries.reshape(-1, data.queries.shape[2])
    out = np.empty((len(q), rows), np.float32)
    turned, q_turned = np.empty((rows, len(q)), np.float32), np.ascontiguousarray(q.T)

    def run():
        for i in range(0, len(data.tokens), rows):
            part = data.tokens[i : i + rows]
            if len(q) >= rows:
                np.matmul(q, part.T, out=out[:, : len(part)])
            else:
                np.matmul(part, q_turned, out=turned[: len(part)])

    return run


def gemm_torch(data: Data, rows: int) -> Call:
    """Prepares torch's matrix products alone, without maxima: a bound on the time."""
    import torch

    q, tokens = torch.from_numpy(data.queries.reshape(-1, data.queries.shape[2])), torch.from_numpy(data.tokens)
    out, turned, q_turned = torch.empty((len(q), rows)), torch.empty((rows, len(q))), q.T.contiguous()

    def run():
        for i in range(0, len(tokens), rows):
            part = tokens[i : i + rows]
            if len(q) >= rows:
                torch.mm(q, part.T, out=out[:, : len(part)])
            else:
                torch.mm(part, q_turned, out=turned[: len(part)])

    return run


# Peers


def maxsim_cpu_score(data: Data) -> Call:
    """Prepares maxsim-cpu's scores."""
    import maxsim_cpu

    length = data.queries.shape[1]
    if len(set(data.lengths)) == 1:  # the function for documents of one length, as its README says
        function, documents = maxsim_cpu.maxsim_scores, data.batch
    else:
        function, documents = maxsim_cpu.maxsim_scores_variable, data.documents
    return lambda: np.stack([function(query, documents) for query in data.queries]) / length


def torch_queries(data: Data) -> Any:
    """Returns the queries as a torch tensor that shares their memory."""
    import torch

    return torch.from_numpy(data.queries)


def colpali_score(batch: int) -> Callable[[Data], Call]:
    """Returns colpali-engine's scores in batches of this size."""

    def prepare(data: Data) -> Call:
        import torch

        processor = bare_import("colpali_engine.utils.processing_utils", "colpali_engine").BaseVisualRetrieverProcessor
        queries, documents = list(torch_queries(data)), [torch.from_numpy(x) for x in data.documents]
        length = data.queries.shape[1]
        score = processor.score_multi_vector
        return lambda: score(queries, documents, batch_size=batch, device="cpu").numpy() / length

    return prepare


def pylate_scores() -> Callable:
    """Imports PyLate's scores without the rest of the package."""
    return bare_import("pylate.scores.colbert", "pylate.scores", "pylate.utils").colbert_scores


def pylate_score(chunk: int | None) -> Callable[[Data], Call]:
    """Returns PyLate's scores in chunks of this many documents."""
    return in_chunks(pylate_scores, chunk)


def lik_scorer() -> Callable:
    """Makes the scorer of late-interaction-kernels."""
    from late_interaction_kernels import MaxSimScorer

    scorer = MaxSimScorer(normalize=False)
    return lambda q, d, q_mask, d_mask: scorer.score(q, d, q_mask=q_mask, d_mask=d_mask)


def in_chunks(scorer: Callable[[], Callable], chunk: int | None) -> Callable[[Data], Call]:
    """Calls functions that hold all similarities of what they get part by part; documents are stored padded."""

    def prepare(data: Data) -> Call:
        import torch

        score, length = scorer(), data.queries.shape[1]
        queries, (documents, mask) = torch_queries(data), (torch.from_numpy(x) for x in data.padded)
        if bool(mask.all()):
            mask = None

        @torch.inference_mode()
        def run():
            step = chunk or len(documents)
            parts = [slice(i, i + step) for i in range(0, len(documents), step)]
            scores = [score(queries, documents[p], None, None if mask is None else mask[p]) for p in parts]
            return torch.cat(scores, dim=1).numpy() / length

        return run

    return prepare


def lik_pairs(data: Data) -> Call:
    """Prepares late-interaction-kernels' scores of padded pairs."""
    import torch
    from late_interaction_kernels import maxsim_padded

    count, length, _ = data.queries.shape
    queries, documents = torch_queries(data), torch.from_numpy(data.padded[0])[None].expand(count, -1, -1, -1)
    lengths = torch.from_numpy(data.lengths)[None].expand(count, -1), torch.full((count,), length)

    @torch.inference_mode()
    def run():
        return maxsim_padded(queries, documents, lengths[1], lengths[0]).numpy() / length

    return run


def lik_search(chunk: int | None) -> Callable[[Data], Call]:
    """Returns late-interaction-kernels' search in chunks of this many documents."""

    def prepare(data: Data) -> Call:
        import torch
        from late_interaction_kernels import retrieve

        queries, (documents, mask) = torch_queries(data), (torch.from_numpy(x) for x in data.padded)
        length = data.queries.shape[1]

        def run():
            scores, indices = retrieve(queries, documents, K, d_mask=mask, normalize=False, chunk=chunk)
            return scores[0].numpy() / length, indices[0].numpy()

        return run

    return prepare


def torch_train(loss_of: Callable[[], Callable]) -> Ways:
    """Returns the gradient of a loss that torch computes."""

    def prepare(data: Data) -> Call:
        import torch

        loss = loss_of()
        q, d = (torch.from_numpy(x).requires_grad_() for x in (data.queries, data.batch))

        def run():
            value = loss(q, d)
            return value.detach(), *torch.autograd.grad(value, (q, d))

        return run

    return {"": prepare}


def cross_entropy_of(scores: Callable[[], Callable]) -> Callable[[], Callable]:
    """InfoNCE from a function that sums over a query's tokens."""

    def make() -> Callable:
        import torch

        score = scores()

        def loss(q, d):
            logits = score(q, d) / (q.shape[1] * TEMPERATURE)
            return torch.nn.functional.cross_entropy(logits, torch.arange(len(q)))

        return loss

    return make


def colpali_loss() -> Callable:
    """Makes colpali-engine's contrastive loss."""
    losses = bare_import("colpali_engine.loss.late_interaction_losses", "colpali_engine", "colpali_engine.loss")
    return losses.ColbertLoss(temperature=TEMPERATURE)


def lik_trainer() -> Callable:
    """Makes late-interaction-kernels' differentiable scorer."""
    from late_interaction_kernels import MaxSimScorer

    return MaxSimScorer(normalize=False)


def lance_search(data: Data) -> Call:
    """Prepares LanceDB's exact search of multi-vectors."""
    import lancedb
    import pyarrow as pa

    table = lancedb.connect("memory://").create_table(
        "documents",
        schema=pa.schema(
            [("id", pa.int64()), ("vector", pa.list_(pa.list_(pa.float32(), data.tokens.shape[1])))]  # one per token
        ),
    )
    for i in range(0, len(data.documents), 500):
        part = data.documents[i : i + 500]
        offsets = pa.array(np.concatenate([[0], np.cumsum([len(x) for x in part])]).astype(np.int32))
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(part).ravel()), data.tokens.shape[1])
        vectors = pa.ListArray.from_arrays(offsets, values)
        table.add(pa.table({"id": np.arange(i, i + len(part)), "vector": vectors}))
    query, length = data.queries[0], data.queries.shape[1]

    def run():
        found = table.search(query).distance_type("cosine").select(["id", "_distance"]).limit(K).to_arrow()
        # The distance of two multivectors is the sum of 1 - cosine over the query's tokens.
        return 1 - found["_distance"].to_numpy() / length, found["id"].to_numpy()

    return run


def qdrant_search(data: Data) -> Call:
    """Prepares the exact search of multi-vectors of Qdrant's engine, which `qdrant-edge-py` embeds in the process."""
    from qdrant_edge import (
        Distance,
        EdgeConfig,
        EdgeShard,
        EdgeVectorParams,
        MultiVectorComparator,
        MultiVectorConfig,
        Point,
        Query,
        QueryRequest,
        SearchParams,
        UpdateOperation,
    )

    folder = tempfile.TemporaryDirectory()
    comparator = MultiVectorConfig(MultiVectorComparator.MaxSim)
    vectors = EdgeVectorParams(data.tokens.shape[1], Distance.Dot, multivector_config=comparator)
    shard = EdgeShard.create(folder.name, EdgeConfig(vectors))
    for i, document in enumerate(data.documents):
        shard.update(UpdateOperation.upsert_points([Point(i, document.tolist())]))
    query, length = Query.Nearest(data.queries[0].tolist()), data.queries.shape[1]
    request = QueryRequest(K, query=query, params=SearchParams(exact=True), with_payload=False, with_vector=False)

    def run():
        assert folder.name  # the shard's files live as long as the call does
        points = shard.query(request)
        return np.asarray([p.score for p in points]) / length, np.asarray([p.id for p in points])

    return run


ALL = "all at once"
CHUNKS: dict[str, int | None] = {f"{n} at a time": n for n in (1, 8, 32, 128)} | {ALL: None}
BATCHES = {f"batch {n}": n for n in (4, 8, 32, 128)}

IMPLEMENTATIONS = {
    "ours": Implementation("smart_jax", {"": ours_score}, ours_search("float32"), {"": ours_train}),
    "ours-float16": Implementation("smart_jax, float16 store", search=ours_search("float16"), tolerance=1e-3),
    "ours-int8": Implementation("smart_jax, int8 store", search=ours_search("int8"), tolerance=1e-2),
    "dense": Implementation("jax, autodiff of a dense max", train={"": partial(jax_train, dense_maxsim)}),
    "blas": Implementation(
        "numpy, document by document",
        {"each query": blas_score, "stacked queries": blas_stacked},
        then_best({"": blas_score}),
    ),
    "maxsim-cpu": Implementation("maxsim-cpu", {"": maxsim_cpu_score}, then_best({"": maxsim_cpu_score})),
    "pylate": Implementation(
        "pylate",
        {name: pylate_score(n) for name, n in CHUNKS.items()},
        then_best({name: pylate_score(n) for name, n in CHUNKS.items()}),
        torch_train(cross_entropy_of(pylate_scores)),
        default=ALL,
    ),
    "lik": Implementation(
        "late-interaction-kernels",
        {name: in_chunks(lik_scorer, n) for name, n in CHUNKS.items()} | {"pairs": lik_pairs},
        {name: lik_search(n) for name, n in CHUNKS.items()} | then_best({"pairs": lik_pairs}),
        torch_train(cross_entropy_of(lik_trainer)),
        default=ALL,
    ),
    "colpali": Implementation(
        "colpali-engine",
        {name: colpali_score(n) for name, n in BATCHES.items()},
        then_best({name: colpali_score(n) for name, n in BATCHES.items()}),
        torch_train(colpali_loss),
        default="batch 128",
    ),
    "lancedb": Implementation("LanceDB, flat", search={"": lance_search}),
    "qdrant": Implementation("Qdrant Edge", search={"": qdrant_search}),
}
ROOFLINE = {"GEMM, numpy": gemm_numpy, "GEMM, torch": gemm_torch}
ROWS = (128, 256, 512, 1024)
