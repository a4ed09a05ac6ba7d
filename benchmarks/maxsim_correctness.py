"""Right answers and precision: `python -m benchmarks.maxsim --correctness` and `--precision`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.maxsim_peers import IMPLEMENTATIONS, Call, Data, K
from benchmarks.maxsim_workloads import oracle, unit
from benchmarks.processes import in_process_or_note

TOLERANCE = 1e-5  # of the error, relative to the largest score if that is above 1


# Cases


def ragged(lengths: list[int], width: int = 128, queries: int = 3, query_tokens: int = 5) -> Data:
    """Draws queries and documents of these lengths."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Data(unit(rng, queries, query_tokens, width), unit(rng, int(offsets[-1]), width), offsets)


def negative(lengths: list[int]) -> Data:
    """Draws tokens all of whose products are negative."""
    data = ragged(lengths)
    return replace(data, queries=np.abs(data.queries), tokens=-np.abs(data.tokens))


def with_nan() -> Data:
    """Draws documents one of which holds a NaN."""
    data = ragged([4, 9, 6])
    data.tokens[5, 3] = np.nan  # of document 1
    return data


def half() -> Data:
    """Draws wide tokens in float16."""
    data = ragged([300, 700, 40], 2048, query_tokens=32)
    return replace(data, queries=data.queries.astype(np.float16), tokens=data.tokens.astype(np.float16))


def long_vectors() -> Data:
    """Draws vectors that are not of unit length."""
    data = ragged([4, 9, 6])
    return replace(data, queries=100 * data.queries, tokens=100 * data.tokens)


def strided() -> Data:
    """Draws documents' tokens that are not contiguous."""
    data = ragged([4, 9, 6])
    return replace(data, tokens=np.asfortranarray(data.tokens))


CASES: dict[str, Callable[[], Data]] = {
    "ragged documents": lambda: ragged([50, 300, 7, 64]),
    "all similarities negative": lambda: negative([4, 9, 6]),
    "one token each": lambda: ragged([1, 1, 1], query_tokens=1),
    "an empty document": lambda: negative([4, 0, 6]),
    "a NaN": with_nan,
    "width 7": lambda: ragged([40, 90, 60], 7),
    "width 100": lambda: ragged([40, 90, 60], 100),
    "width 768": lambda: ragged([40, 90, 60], 768),
    "width 2,048": lambda: ragged([300, 700, 40], 2048),
    "query of 1,030 tokens": lambda: ragged([300, 700, 40], queries=1, query_tokens=1030),
    "columns in memory order": strided,
    "norm 100": long_vectors,
    "float16, width 2,048": half,
}


def score_lists(data: Data) -> Call:
    """Prepares `smart_jax.score` of lists of arrays."""
    from smart_jax import score

    return lambda: score(list(data.queries), data.documents)


def maxsim_masked(data: Data) -> Call:
    """Prepares `smart_jax.maxsim` of padded documents and their mask."""
    from smart_jax import maxsim

    documents, mask = data.padded
    return lambda: np.asarray(maxsim(data.queries, documents, d_mask=mask))


SCORERS = {
    "smart_jax.score": score_lists,
    "smart_jax.maxsim": maxsim_masked,
    "maxsim-cpu": IMPLEMENTATIONS["maxsim-cpu"].score[""],
    "pylate": IMPLEMENTATIONS["pylate"].score["8 at a time"],
    "late-interaction-kernels": IMPLEMENTATIONS["lik"].score["8 at a time"],
    "colpali-engine": IMPLEMENTATIONS["colpali"].score["batch 8"],
}


def verdict(request: dict[str, Any]) -> str:
    """Says in words what a scorer makes of a case."""
    case = request["case"]
    data = CASES[case]()
    scores = np.asarray(SCORERS[request["scorer"]](data)(), np.float64)
    if case == "a NaN":
        return "finite score" if np.isfinite(scores[:, 1]).all() else "ok: not finite"
    if case == "an empty document":
        others = scores[:, [0, 2]]
        return "ok: last" if (scores[:, 1] < others.min(axis=1)).all() else f"scores {scores[0, 1]:.2g}: first"
    expected = oracle(data)
    error = float(np.abs(scores - expected).max() / max(1, np.abs(expected).max()))
    if error <= TOLERANCE:
        return f"ok ({error:.0e})"
    return f"wrong ({error:.1e})"


def print_correctness(core: int) -> None:
    """Prints what each implementation makes of each case."""
    print("| | " + " | ".join(SCORERS) + " |\n| --- |" + " --- |" * len(SCORERS))
    for case in CASES:
        cells = [in_process_or_note("verdict", core, case=case, scorer=scorer) for scorer in SCORERS]
        print(f"| {case} | " + " | ".join(cells) + " |", flush=True)
    print()


# Precision of the stores


def correlated(width: int, lengths: tuple[int, int], queries: int = 40, documents: int = 2000) -> Data:
    """Documents of one of 40 topics; a query's tokens are noisy copies of one document's, so that many are close."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(lengths[0], lengths[1] + 1, documents)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    topics, topic = unit(rng, 40, 12, width), rng.integers(0, 40, documents)
    tokens = unit(rng, int(offsets[-1]), width)
    for n in range(documents):
        part = tokens[offsets[n] : offsets[n + 1]]
        part += topics[topic[n], rng.integers(0, 12, len(part))]  # one of the topic's centres, and as much noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    copied = np.stack([offsets[n] + rng.integers(0, sizes[n], 16) for n in rng.integers(0, documents, queries)])
    q = tokens[copied] + 2 * unit(rng, queries, 16, width)
    return Data(q / np.linalg.norm(q, axis=-1, keepdims=True), tokens, offsets)


def precision(request: dict[str, Any]) -> dict[str, Any]:
    """Errors of scores, and changed top 10s, of each store."""
    from benchmarks.maxsim_peers import embedded_queries, embeddings
    from smart_jax import score, search

    data = correlated(request["width"], tuple(request["lengths"]))
    expected = oracle(data)
    q, exact = embedded_queries(data), embeddings(data.tokens, data.offsets)
    _, reference = search(q, exact, K, pooled_weight=0)
    rows = {}
    for store in ("float32", "float16", "bfloat16", "int8"):
        d = exact.astype(store)
        errors = np.abs(score(q, d, pooled_weight=0) - expected)
        size = data.tokens.shape[1] * d.tokens.itemsize + (0 if d.scales is None else d.scales.itemsize)
        rows[store] = (size, errors, search(q, d, K, pooled_weight=0)[1])
        if store == "int8":
            scores, found = search(q, d, K, pooled_weight=0, rescore=exact)
            rows["int8, rescored"] = (size, np.abs(scores - np.take_along_axis(expected, found, 1)), found)
    ordered = -np.sort(-expected, axis=1)
    return {
        "gap": float(np.median(ordered[:, K - 1] - ordered[:, K])),
        "spread": float(np.median(ordered[:, 0] - ordered[:, K - 1])),
        "rows": {
            name: {
                "bytes": size,
                "max": float(errors.max()),
                "mean": float(errors.mean()),
                "sets": sum(set(a) != set(b) for a, b in zip(found.tolist(), reference.tolist(), strict=True)),
                "orders": int((found != reference).any(axis=1).sum()),
            }
            for name, (size, errors, found) in rows.items()
        },
    }


PRECISION = ((128, (50, 150)), (2048, (20, 60)))  # widths and tokens of documents


def print_precision(core: int) -> None:
    """Prints the errors of each dtype of stored tokens, by width."""
    for width, lengths in PRECISION:
        found = in_process_or_note("precision", core, width=width, lengths=lengths)
        if isinstance(found, str):
            print(f"width {width:,}: {found}\n")
            continue
        print(
            f"40 queries of 16 tokens, 2,000 documents of {lengths[0]} to {lengths[1]} tokens, width {width:,}. "
            "Documents share the centres of 40 topics and queries are noisy copies of document tokens: between the "
            f"1st and the 10th score lie {found['spread']:.1e}, between the 10th and the 11th {found['gap']:.1e} "
            "(medians).\n"
        )
        print("| store | bytes a token | max error | mean error | top-10 sets changed | top-10 orders changed |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, row in found["rows"].items():
            errors = f"{row['max']:.1e} | {row['mean']:.1e}"
            print(f"| {name} | {row['bytes']:,} | {errors} | {row['sets']} of 40 | {row['orders']} of 40 |")
        print(flush=True)
