"""Cost of Qdrant's cap on a point's values.

    python -m benchmarks.qdrant_cap --pdf manual.pdf

all-MiniLM-L6-v2 reads the text of the PDFs' pages, in windows; the outlines' entries are the queries. The pages' tokens
become fewer and narrower, as an index in Qdrant has them, for a cap that falls below what the largest page holds.
Printed is how many of the best 10, and how often the best one, are those of the whole vectors, by the hybrid score and
by late interaction alone.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import smart_jax
from eval.benchmarks.pdf import pdf_benchmark
from smart_jax import Embeddings, Index
from smart_jax.index.value_cap import Narrowing, choose_factor, choose_width, pool_long

WEIGHTS = {"hybrid": 1.0, "late": 0.0}  # of the pooled part
K = 10


def pages_of(pdfs: Sequence[Path], folder: Path) -> Embeddings:
    """Returns the embeddings of all pages, float32."""
    with Index(folder, model="minilm", dtype="float32") as index:
        index.add([str(pdf) for pdf in pdfs], progress=False)
        engine = index._engine
        items = [item for source in engine.sources() for item in engine.list_items(source.number)]
        return engine.read([item.known.key for item in items])[0]


def below(pages: Embeddings, queries: Embeddings, cap: int) -> tuple[Embeddings, Embeddings, int]:
    """Returns pages and queries as an index of this cap has them, and how many pages are pooled."""
    width = choose_width(int(pages.lengths.max()), pages.tokens.shape[1], cap)
    if width < pages.tokens.shape[1]:
        narrowing = Narrowing.fit(pages, width)
        pages, queries = narrowing(pages), narrowing(queries)
    factors = [choose_factor(length, width, cap) for length in pages.lengths.tolist()]
    parts = [pool_long(pages[i], n)[0] if n > 1 else pages[i] for i, n in enumerate(factors)]
    parts = [part.with_provenance(pages.provenance) for part in parts]
    return Embeddings.concatenate(parts), queries, sum(n > 1 for n in factors)


def best(pages: Embeddings, queries: Embeddings) -> dict[str, np.ndarray]:
    """Returns the numbers of the best pages of each query."""
    return {name: smart_jax.search(queries, pages, K, pooled_weight=weight)[1] for name, weight in WEIGHTS.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pdf", type=Path, nargs="+", required=True)
    pdfs = parser.parse_args().pdf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headings that are not found, which matter to nothing here
        asked = [query for pdf in pdfs for query in pdf_benchmark(pdf, white_out=False, instruction=None).queries]
    with tempfile.TemporaryDirectory() as folder:
        pages = pages_of(pdfs, Path(folder) / "index").with_provenance(None)
    queries = smart_jax.load("minilm").encode_query(asked, progress=False).with_provenance(None)
    largest = int(pages.lengths.max()) * pages.tokens.shape[1]
    print(f"{len(pages)} pages, the largest of {largest:,} values; {len(asked)} queries\n")
    print("| cap | width | pages pooled | values kept | best 10, hybrid | late | best, hybrid | late |")
    print("|---|---|---|---|---|---|---|---|")
    whole = best(pages, queries)
    for share in (2, 4, 8, 16):
        cap = largest // share + pages.tokens.shape[1]
        small, narrow, pooled = below(pages, queries, cap)
        found = best(small, narrow)
        tens = [np.mean([len({*a} & {*b}) / K for a, b in zip(whole[n], found[n], strict=True)]) for n in WEIGHTS]
        firsts = [np.mean(whole[n][:, 0] == found[n][:, 0]) for n in WEIGHTS]
        figures = " | ".join(f"{value:.3f}" for value in (*tens, *firsts))
        kept = small.tokens.size / pages.tokens.size
        print(f"| {cap:,} | {small.tokens.shape[1]} | {pooled} | {kept:.2f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
