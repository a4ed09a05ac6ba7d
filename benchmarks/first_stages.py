"""First stages of the index on real weights: which of them a manual's outline certifies, and LIMIT's queries refuse.

    python -m benchmarks.first_stages --pdf manual.pdf
    python -m benchmarks.first_stages --limit 24 --others 976

all-MiniLM-L6-v2 reads the text of the PDF's pages, in windows, and the people of LIMIT, as eval.benchmarks makes it.
The outline's entries are the queries of the manual. `Index.certify` measures recall@K of the exact best 10 of the
hybrid score, and of late interaction alone, and prints its table; so it does with spans of the documents in the
queries' place.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import smart_jax
from eval.benchmarks import limit
from eval.benchmarks.pdf import pdf_benchmark

WEIGHTS = {"hybrid": (1.0, 1.0), "late": (0.0, 1.0)}


def datasets(args: argparse.Namespace) -> Iterator[tuple[str, Any, list[Any]]]:
    """Yields names, what an index is given to add, and queries."""
    if args.pdf:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headings that are not found, which matter to nothing here
            made = [pdf_benchmark(pdf, white_out=False, instruction=None) for pdf in args.pdf]
        yield "manuals", [str(pdf) for pdf in args.pdf], [query for each in made for query in each.queries]
    if args.limit:
        surnames, letters = limit.SURNAMES, ascii_uppercase
        names = [f"{first} {letter}. {last}" for first in limit.NAMES for letter in letters for last in surnames]
        limits = limit.make(args.limit, others=args.others, names=names)
        yield limits.name, list(limits.corpus), list(limits.queries)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pdf", type=Path, nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=0, help="documents of LIMIT that are asked for; 0 = none")
    parser.add_argument("--others", type=int, default=976, help="documents beside them")
    parser.add_argument("--folder", type=Path, help="where indexes are kept for another run; default: nowhere")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, documents, queries in datasets(args):
            index = smart_jax.Index((args.folder or Path(folder)) / name, model="minilm")
            index.add(documents, progress=False)
            info = index.info()
            print(f"## {name}: {info.items} items, {info.tokens:,} tokens x {info.vectors['token_width']}\n")
            asked = index.model.encode_query(queries, progress=False)
            began = time.process_time()
            index.keep_stages(["centroids", "binary"])  # so that they are made once
            print(f"centroids and signs: {time.process_time() - began:.0f} s of CPU\n")
            for label, (pooled, late) in WEIGHTS.items():
                how = {"pooled_weight": pooled, "late_weight": late}
                print(f"{label}:\n\n{index.certify(asked, **how)}\n", flush=True)
            print(f"words of the documents as queries, hybrid:\n\n{index.certify()}\n", flush=True)
            index.close()


if __name__ == "__main__":
    main()
