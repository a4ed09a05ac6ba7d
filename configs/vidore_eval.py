"""ViDoRe V1, V2 and V3: retrieval of document pages, set by set.

    python -m eval.run --config configs/vidore_eval.py --config.model=Qwen/Qwen3-VL-Embedding-2B
    python -m eval.run --config configs/vidore_eval.py --config.path=FOLDER --config.model=MODEL
    python -m eval.run --config configs/vidore_eval.py --config.version=v1 --config.sets=docvqa,infovqa

Sets come from the hub, downloaded once, or with path from FOLDER, in which each is a folder named as its repository
(`hf download --repo-type dataset vidore/tatdqa_test_beir --local-dir FOLDER/tatdqa_test_beir`); sets that FOLDER lacks
are reported as missing. `eval/benchmarks/vidore/table.py` lists them.

Prints and writes to results/vidore a table of each version, in its primary metric (nDCG@5, V3 nDCG@10), with the
average over the sets that were run and the published figures of the model, if `eval/reports/published.toml` has some;
then that of every set. Methods: pooled, late and hybrid, with --config.adapter the adapter's, and BM25 where a set has
its pages' text.
"""

from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from eval.benchmarks import Benchmark, Deferred, vidore
from eval.config import default_config
from eval.reports import Group, published


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is `path`."""
    config = default_config()
    config.path = arg  # a local folder of sets; "" = the hub
    config.version = ""  # some of v1, v2, v2-english, v3, separated by commas; "" = v1,v2,v3, or those of `sets`
    config.sets = ""  # names, separated by commas; "" = all of the version
    config.published = ""  # models whose figures to print: names separated by commas, or all; "" = the one evaluated
    config.output = "results/vidore"
    return config


def get_benchmarks(config: ConfigDict) -> list[Deferred]:
    """Returns the sets that are there, each opened (and from the hub fetched) when its turn comes.

    Raises:
      FileNotFoundError: the local folder lacks a set that is asked for by name, or all sets.
    """
    chosen = vidore.select(parts(config.sets), parts(config.version))
    if not config.path:
        return [Deferred(entry.name, partial(_fetched, entry)) for entry in chosen]
    folders = {entry: vidore.find(entry, config.path) for entry in chosen}
    lacking = [entry for entry, folder in folders.items() if folder is None]
    if lacking and (config.sets or len(lacking) == len(chosen)):
        commands = "\n".join(vidore.how_to_get(entry, Path(config.path) / vidore.stem(entry)) for entry in lacking)
        names = ", ".join(entry.name for entry in lacking)
        raise FileNotFoundError(f"'{config.path}' has no folder of {names}. To get them:\n{commands}")
    there = {entry: folder for entry, folder in folders.items() if folder is not None}
    return [Deferred(entry.name, partial(vidore.load, entry, folder)) for entry, folder in there.items()]


def _fetched(entry: vidore.VidoreSet) -> Benchmark:
    return vidore.load(entry, vidore.fetch(entry))


def get_groups(config: ConfigDict) -> list[Group]:
    """Returns a group of each version; what is published is left out where only a sample is evaluated."""
    versions = list(dict.fromkeys(parts(config.version)))
    if not versions:
        named = vidore.select(parts(config.sets)) if config.sets else []
        versions = [v for v in vidore.VERSIONS if any(v in s.versions for s in named)] or list(vidore.DEFAULT_VERSIONS)
    sampled = config.max_queries or config.max_corpus
    figures = [] if sampled else published.choose(published.load(), config.published, config.model)
    return [
        Group(
            vidore.VERSIONS[version],
            {entry.name: entry.metric for entry in vidore.select(versions=[version])},
            figures,
        )
        for version in versions
    ]


def parts(text: str) -> list[str]:
    """Returns what is between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
