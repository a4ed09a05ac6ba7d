"""Pointing test: does the evidence lie where the answer is? `python -m benchmarks.pointing`.

Pages are typeset from held-out docstrings on a grid of characters, and a query is some of the words of a run of 5 to 8
on its page (`recipes.tiny`): the answer's box is known, all visual tokens that show a character of the run. For each
query and its own page two figures are taken of a map over the page's visual tokens: the share of its mass that lies
inside the box, and whether its peak does. The maps, all of the same token vectors:

- chance: a map of equal values; its peak is any token.
- colpali-engine's similarity maps: a map for each query token, its cosines with all visual tokens, each scaled from its
  least to its greatest value. The figures are means over the tokens.
- sentence-transformers' heat map: these cosines summed over the query's tokens, scaled from least to greatest.
- shares: each query token's best visual token, all tokens counted alike.
- evidence without others: `Evidence.heat()` of `smart_jax.explain` without a sample of other documents.
- evidence: the same with the lift over a sample of other pages.
- evidence, as drawn: of that, what drawings show.

Only tokens that stand for the query's words take part, in every map. A sample of other pages never holds the page.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

import smart_jax
from recipes.tiny import CELL_HEIGHT, CELL_WIDTH, MIN_FILL, Canvas, grid_places, held_out, wording_run
from smart_jax.evidence import SHOWN, Evidence, TokenSources, Traced, trace, usual_cosines

RESAMPLES = 2000
METHODS = (
    "chance",
    "colpali-engine's similarity maps",
    "sentence-transformers' heat map",
    "shares: best tokens, all alike",
    "evidence without others",
    "evidence",
    "evidence, as drawn",
)


class Case(NamedTuple):
    """A page, a query of its words, and the characters that show these."""

    page: Image.Image
    query: str
    places: np.ndarray  # row and column of each character of the run


def cases(count: int, canvas: Canvas, seed: int) -> Iterator[Case]:
    """Yields pages that are nearly full, each with a query; the same for the same seed."""
    rng = np.random.default_rng(seed)
    texts = [d.text for d in held_out() if len(d.text) >= MIN_FILL * canvas.characters]
    for i in rng.permutation(len(texts))[:count].tolist():
        page, shown = canvas.draw(texts[i], rng)
        query, (start, stop) = wording_run(shown, rng)
        places = grid_places(texts[i], canvas.height // CELL_HEIGHT, canvas.width // CELL_WIDTH)[start:stop]
        yield Case(page, query, places[places[:, 0] >= 0])


def answer_mask(case: Case, rows: int, columns: int) -> Bool[np.ndarray, "rows columns"]:
    """Returns the visual tokens that show a character of the answer."""
    mask = np.zeros((rows, columns), bool)
    height, width = case.page.height / rows, case.page.width / columns
    edges = [(case.places + corner) * [CELL_HEIGHT, CELL_WIDTH] for corner in (0, 1)]
    for (top, left), (bottom, right) in zip(*edges, strict=True):
        cells = slice(int(top / height), -int(-bottom // height)), slice(int(left / width), -int(-right // width))
        mask[cells] = True
    return mask


def similarity_maps(evidence: Evidence) -> Float[np.ndarray, "words rows columns"]:
    """Returns the cosines of the query's words with the page's visual tokens."""
    q, d = evidence.query, evidence.document
    (frame,) = d.sources.frames
    words, cells = q.sources.kinds == 2, d.sources.kinds == 1
    tokens = q.embeddings.tokens[words].astype(np.float64), d.embeddings.tokens[cells].astype(np.float64)
    return (tokens[0] @ tokens[1].T).reshape(-1, frame.rows, frame.columns)


def scaled(maps: Float[np.ndarray, "... rows columns"]) -> Float[np.ndarray, "... rows columns"]:
    """Returns maps from 0, their least value, to 1, their greatest."""
    least, most = maps.min(axis=(-2, -1), keepdims=True), maps.max(axis=(-2, -1), keepdims=True)
    return (maps - least) / np.maximum(most - least, 1e-10)


def inside_and_peak(
    maps: Float[np.ndarray, "maps rows columns"], mask: Bool[np.ndarray, "rows columns"]
) -> tuple[float, float]:
    """Returns the share of mass inside the mask, and whether the peak is there: means over maps, empty ones 0."""
    mass = maps.sum(axis=(1, 2))
    inside = (maps * mask).sum(axis=(1, 2)) / np.maximum(mass, 1e-300)
    peaks = maps == maps.max(axis=(1, 2), keepdims=True)  # where several are as high, any of them
    peak = (peaks & mask).sum(axis=(1, 2)) / peaks.sum(axis=(1, 2)) * (mass > 0)
    return float(inside.mean()), float(peak.mean())


def figures(with_others: Evidence, without: Evidence, case: Case) -> Float[np.ndarray, "methods 2"]:
    """Returns the two figures of every method for one query."""
    maps = similarity_maps(with_others)
    best = (maps == maps.max(axis=(1, 2), keepdims=True)).astype(float)
    mask = answer_mask(case, *maps.shape[1:])
    by_method = [
        np.ones((1, *mask.shape)),
        scaled(maps),
        scaled(maps.sum(axis=0, keepdims=True)),
        best.sum(axis=0, keepdims=True),
        without.heat()[None],
        with_others.heat()[None],
        with_others.heat(least=SHOWN)[None],
    ]
    return np.array([inside_and_peak(each, mask) for each in by_method])


def measure(
    model: smart_jax.Encoder, chosen: Sequence[Case], *, sample: int, seed: int
) -> tuple[Float[np.ndarray, "queries methods 2"], list[Evidence]]:
    """Returns the figures of every query, and its evidence."""
    pages = model.encode_document([case.page for case in chosen])
    rng = np.random.default_rng(seed)
    found, evidence = [], []
    for i, case in enumerate(chosen):
        sources = TokenSources.of(model.preprocessor, case.page)
        page = Traced(pages[i], sources, pictures=(case.page,))
        query = trace(model, {"text": case.query}, query=True)
        others = rng.permutation(np.delete(np.arange(len(chosen)), i))[:sample]
        usual = usual_cosines(query.embeddings, pages[others])
        evidence.append(smart_jax.explain(query, page, others=usual))
        found.append(figures(evidence[-1], smart_jax.explain(query, page), case))
    return np.stack(found), evidence


def table(found: Float[np.ndarray, "queries methods 2"], methods: Sequence[str] = METHODS) -> str:
    """Returns the means over the queries with 95 % intervals of a bootstrap, and what evidence is above others."""
    rng, of_evidence = np.random.default_rng(0), methods.index("evidence")
    above = [m for m in range(len(methods)) if m not in (0, of_evidence)]
    rows = np.concatenate([found, found[:, [of_evidence]] - found[:, above]], axis=1)
    names = [*methods, *(f"evidence − {methods[m]}" for m in above)]
    resampled = np.stack([rows[rng.integers(0, len(rows), len(rows))].mean(axis=0) for _ in range(RESAMPLES)])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    lines = ["| | mass inside | peak inside |", "|---|---|---|"]
    for m, name in enumerate(names):
        sign = "+" if m >= len(methods) else ""
        cells = [f"{rows[:, m, k].mean():{sign}.3f} [{low[m, k]:.3f}, {high[m, k]:.3f}]" for k in range(2)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table and, if asked to, draws one of the queries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--adapter")
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2, help="sets of pages and queries")
    parser.add_argument("--sample", type=int, default=64, help="other pages of which lift is computed")
    parser.add_argument("--picture", type=Path, help="file for the evidence of one query (.png, .html, .svg, .json)")
    parser.add_argument("--number", type=int, default=0, help="of that query")
    options = parser.parse_args(arguments)
    model = smart_jax.load(options.model, adapter=options.adapter)
    begun, parts, evidence = time.process_time(), [], []
    for seed in range(options.seeds):
        chosen = list(cases(options.pages, Canvas(), seed))
        found, of_seed = measure(model, chosen, sample=options.sample, seed=seed)
        parts.append(found)
        evidence += of_seed
    if options.picture is not None:
        evidence[options.number].save(options.picture)
    found = np.concatenate(parts)
    seconds = time.process_time() - begun
    print(
        f"{len(found)} queries, their own pages of {Canvas().height} x {Canvas().width}, {seconds:.0f} s of CPU time\n"
    )
    print(table(found))


if __name__ == "__main__":
    main()
