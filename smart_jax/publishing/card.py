"""Model cards: README.md of a folder that is published, with the figures of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub

from smart_jax.files import named_folder
from smart_jax.publishing.contents import Contents, hub_name, read_contents
from smart_jax.publishing.figures import ADAPTER, BenchmarkFigures, Figures, read_figures
from smart_jax.publishing.usage import usage

CARD = "README.md"
# Of a card that may be written again; who edits one takes the line out, and the text stays.
MARK = "<!-- This card is written by smart_jax. Remove this line to keep your changes to the text. -->"
TASK = ("information-retrieval", "Information Retrieval")
NOT_OF_A_MODEL = ("chance", "bm25")
_WHAT = {
    "adapter": "A token projection for late interaction over the frozen hidden states of {base}, post-trained as in "
    "SMART ([arXiv:2605.24938](https://arxiv.org/abs/2605.24938)).",
    "lora": "A low-rank adapter (PEFT) of {base} for retrieval by its pooled vector, by late interaction over its "
    "hidden states (SMART, [arXiv:2605.24938](https://arxiv.org/abs/2605.24938)), or by both.",
    "model": "A retriever by its pooled vector, by late interaction over its hidden states (SMART, "
    "[arXiv:2605.24938](https://arxiv.org/abs/2605.24938)), or by both.",
}


def write_card(
    folder: str | Path,
    *,
    results: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    repo_id: str | None = None,
) -> Path:
    """Writes the model card of a folder, its README.md, beside what it holds.

    The hub shows the figures from the card's `model-index`; the text has them with their intervals. A card that was
    written by hand keeps its text, and only its metadata are brought up to date.

    Args:
      folder: of an adapter, a PEFT adapter or a model: what `Adapter.save`, `Encoder.save` or a training run wrote.
      results: the results.json of `python -m eval.run`, or its folder; None = a card without figures.
      base_model: hub id of the model that it was made from; None = as the folder or the results tell.
      license: as the hub names it, such as "apache-2.0"; None = the card names none.
      datasets: hub ids of the training data.
      repo_id: hub id under which it is published, for the examples; None = the folder's name stands in for it.

    Returns:
      The file.

    Raises:
      FileNotFoundError: the folder holds none of these, or there are no such results.
      ValueError: the results are corrupt, or have no figures of what the folder holds.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> from smart_jax import Adapter, AdapterConfig
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Adapter(AdapterConfig(hidden_size=8, dim=4), rngs=nnx.Rngs(0)).save(folder)
      ...     card = write_card(folder, base_model="Qwen/Qwen3-VL-Embedding-2B", license="apache-2.0")
      ...     print("\\n".join(card.read_text().splitlines()[1:4]))
      base_model: Qwen/Qwen3-VL-Embedding-2B
      library_name: smart_jax
      license: apache-2.0
    """
    folder = Path(folder)
    contents = read_contents(folder)
    figures = None if results is None else read_figures(results)
    base = base_model or hub_name(contents.base) or hub_name(figures.model if figures else None)
    if contents.kind == "model" and base == repo_id:
        base = None
    name = repo_id or folder.resolve().name
    facts = _metadata(contents, figures, base, name)
    facts |= {"license": license, "datasets": list(datasets) or None}
    data = huggingface_hub.ModelCardData(**{key: value for key, value in facts.items() if value is not None})
    opened = base or (figures.model if figures is not None and named_folder(figures.model or "") else None)
    text = _text(contents, figures, base, usage(contents, name, opened), name)
    card, path = f"---\n{data.to_yaml()}\n---\n\n{text}", folder / CARD
    path.write_text(merge_cards(path.read_text(encoding="utf-8"), card) if path.is_file() else card, encoding="utf-8")
    return path


def merge_cards(there: str, new: str) -> str:
    """Returns a new card, or one that is there, edited by hand, with the new one's metadata."""
    if MARK in there:
        return new
    card: Any = huggingface_hub.ModelCard(there, ignore_metadata_errors=True)
    other: Any = huggingface_hub.ModelCard(new)
    for key, value in other.data.to_dict().items():
        if key == "model-index":
            card.data.eval_results, card.data.model_name = other.data.eval_results, other.data.model_name
        else:
            setattr(card.data, key, value)
    return str(card)


def _metadata(contents: Contents, figures: Figures | None, base: str | None, name: str) -> dict[str, Any]:
    """Returns the facts of the card's head, without those that only the user knows."""
    texts_only = contents.model.get("model_type") == "bert"
    return {
        "base_model": base,
        "library_name": "peft" if contents.kind == "lora" else "smart_jax",
        "pipeline_tag": "sentence-similarity" if texts_only else "visual-document-retrieval",
        "tags": ["smart_jax", "late-interaction", "multi-vector"],
        "model_name": name if figures else None,
        "eval_results": None if figures is None else _model_index(contents, figures),
    }


def _model_index(contents: Contents, figures: Figures) -> list[huggingface_hub.EvalResult]:
    """Returns the figures of the methods that the repository makes possible, of each benchmark."""
    of_adapter = [method for method in figures.methods if method.startswith(ADAPTER)]
    of_model = [method for method in figures.methods if method not in (*NOT_OF_A_MODEL, *of_adapter)]
    methods = {"adapter": of_adapter, "lora": of_model, "model": of_model + (of_adapter if contents.adapter else [])}
    if not (chosen := methods[contents.kind]):
        raise ValueError(
            f"the results have no figures of this {contents.kind}, only of {', '.join(figures.methods)}: evaluate with "
            f"{'--config.adapter=FOLDER' if contents.kind == 'adapter' else '--config.model=FOLDER'}"
        )
    return [
        huggingface_hub.EvalResult(
            task_type=TASK[0],
            task_name=TASK[1],
            dataset_type=re.sub(r"[^\w.-]+", "-", benchmark.name).lower(),
            dataset_name=benchmark.name,
            metric_type=metric.replace("@", "_at_"),
            metric_name=f"{_written(metric)}, {method}",
            metric_value=round(figure.mean, 5),
            metric_args={"level": figures.level, "interval": [round(figure.low, 5), round(figure.high, 5)]},
        )
        for benchmark in figures.benchmarks
        if not benchmark.average
        for method in chosen
        for metric, figure in benchmark.methods.get(method, {}).items()
    ]


def _written(metric: str) -> str:
    return metric.replace("ndcg", "nDCG").replace("mrr", "MRR")


def _text(contents: Contents, figures: Figures | None, base: str | None, use: str, name: str) -> str:
    linked = f"[{base}](https://huggingface.co/{base})" if base else "its base model"
    parts = [MARK, "", f"# {name.rpartition('/')[2]}", "", _WHAT[contents.kind].format(base=linked), ""]
    if contents.kind == "model" and base:
        parts += [f"Made from {linked}.", ""]
    if contents.adapter:
        parts += [_sizes(contents), ""]
    parts += [use]
    if figures is not None:
        parts += ["## Results", "", f"Means over queries, with {figures.level:.0%} intervals.", ""]
        parts += [line for benchmark in figures.benchmarks for line in _tables(benchmark, figures.metrics)]
    return "\n".join(parts).rstrip() + "\n"


def _sizes(contents: Contents) -> str:
    settings = contents.adapter
    layers = ", ".join(map(str, settings["layers"]))
    dim = settings["dim"] or settings["hidden_size"]
    cut = f", and the pooled vector's first {settings['pooled_dim']}" if settings["pooled_dim"] else ""
    return (
        f"The token projection, of kind `{settings.get('kind', 'linear')}`, reads layer {layers} of transformers' "
        f"`hidden_states` (width {settings['hidden_size']}) and gives {dim} components for each token{cut}."
    )


def _tables(benchmark: BenchmarkFigures, metrics: Sequence[str]) -> list[str]:
    """Returns the lines of a benchmark's heading and table."""
    lines = [f"### {benchmark.name}", "", f"{benchmark.queries} queries, {benchmark.documents} documents.", ""]
    lines += ["| | " + " | ".join(map(_written, metrics)) + " |", "|---|" + "---|" * len(metrics)]
    rows = dict(benchmark.methods)
    rows |= {f"{gain.method} − {gain.minus}": gain.metrics for gain in benchmark.differences}
    for row, figures in rows.items():
        lines.append(f"| {row} | " + " | ".join(str(figures.get(metric, "")) for metric in metrics) + " |")
    return [*lines, ""]
