"""LIMIT: can every pair of documents be the answer to a query? One vector per document against all its states.

    python -m eval.run --config configs/limit.py                            # made here, no download
    python -m eval.run --config configs/limit.py --config.others=500 --config.model=MODEL
    python -m eval.run --config configs/limit.py --config.path=limit/data   # published: git clone google-deepmind/limit
    python -m eval.run --config configs/limit.py --config.path=limit/data --config.variant=full

The published sets are also the hub's orionweller/LIMIT-small and orionweller/LIMIT. bm25, pooled, late and hybrid go to
results/limit; the paper reports recall@2, @10 and @20 of the small set (@100 of the full one), recall@2 first.
Without a model, all-MiniLM-L6-v2 as in configs/minilm_pages.py:

    recall@2 [95 % interval]   LIMIT-small             made: 24 documents      made: 24 among 524
    chance                     0.042 [0.033, 0.051]    0.062 [0.043, 0.082]    0.004 [0.000, 0.009]
    bm25                       0.991 [0.987, 0.995]    1.000 [1.000, 1.000]    1.000 [1.000, 1.000]
    pooled                     0.162 [0.146, 0.179]    0.217 [0.187, 0.250]    0.042 [0.025, 0.058]
    late                       0.975 [0.968, 0.981]    0.991 [0.982, 0.998]    0.984 [0.971, 0.995]
    hybrid                     0.753 [0.735, 0.772]    0.736 [0.699, 0.772]    0.453 [0.408, 0.498]
"""

from ml_collections import ConfigDict

import smart_jax
from configs import minilm_pages
from eval.benchmarks import Benchmark, limit
from eval.config import default_config


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is `path`."""
    config = default_config()
    config.path = arg  # folder of a published set or of both; "" = made
    config.variant = "small"  # of the published: small or full
    config.documents = "24"  # of the made: numbers of documents, separated by commas
    config.others = 0  # documents that no query asks for
    config.liked = 40  # attributes of a document
    config.model = "minilm"  # or what `smart_jax.load` takes
    config.max_length = 512  # tokens of a text, of MiniLM and other BERT encoders
    config.metrics = limit.METRICS
    config.output = "results/limit"
    return config


def get_benchmarks(config: ConfigDict) -> list[Benchmark]:
    """Returns the published set, or one that is made of each size."""
    if config.path:
        return [limit.load(config.path, config.variant)]
    sizes = [int(size) for size in str(config.documents).split(",")]
    made = dict(others=config.others, liked=config.liked, seed=config.seed)
    return [limit.make(size, **made) for size in sizes]


def get_encoder(config: ConfigDict) -> smart_jax.Encoder:
    """Returns the model, by default MiniLM."""
    if config.model == "minilm":
        return minilm_pages.get_encoder(config)
    how = {name: config[name] for name in ("head", "pooling", "prompt", "task")}
    return smart_jax.load(config.model, dtype=config.dtype, **how)
