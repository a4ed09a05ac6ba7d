"""Encoding against torch (sdpa) on the same weights and batches: `python -m benchmarks.encode [--threads 1|2]`.

Needs the test extra (torch). Both run interleaved, A B A B, in one process that is pinned to so many cores; the figure
is the process's CPU seconds divided by the cores, median of 9, with the spread. Ratio above 1 = ours is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

WORKLOADS = {  # rows of (text tokens, image grid, text tokens), and the bins that `Preprocessor.collate` gives them
    "text 8 x 128": ([[128]] * 8, 8),
    "4 images of 256 patches": ([[12, (1, 16, 16), 12]] * 4, 4),
    "4 images of 1,024 patches": ([[12, (1, 32, 32), 12]] * 4, 4),
    "mixed sizes": ([[12, (1, 8, 8), 12], [12, (1, 16, 8), 20], [12, (1, 16, 16), 4], [60]], 1),
}
MODELS = {  # (text, vision, mrope sections): the embedded default's shape is read from its config.json
    "12 layers": (
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
        },
        {
            "depth": 12,
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_heads": 6,
            "out_hidden_size": 512,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [2, 5, 8],
        },
        [12, 10, 10],
    ),
}


def cpu_seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def compare(ours: Callable, theirs: Callable, repeats: int) -> tuple[list[float], list[float]]:
    for run in (ours, theirs):
        run()
    pairs = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(repeats)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def spread(times: list[float], cores: int) -> str:
    ms = [t / cores * 1e3 for t in times]
    return f"{statistics.median(ms):8.1f} ms [{min(ms):.1f}, {max(ms):.1f}]"


def measure(name: str, folder: Path, model, cores: int, repeats: int) -> None:
    import jax
    import numpy as np
    from flax import nnx

    from smart_jax.models import load_config
    from smart_jax.models.weights import load_weights
    from tests.parity.qwen3_vl import Inputs

    config = load_config(folder)
    graphdef, params = load_weights(folder, config)
    run = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b).states[:, :, 0])
    ids = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
    for workload, (spec, bins) in WORKLOADS.items():
        inputs = Inputs.random(spec, ids=ids)
        batch = jax.device_put(inputs.batch(config, bins=bins))
        ours, theirs = compare(
            lambda b=batch: run(params, b).block_until_ready(),
            lambda i=inputs: i.torch_last(model),
            repeats,
        )
        error = max(
            float(np.abs(a[: len(r[0])] - b[: len(r[0])]).max())
            for a, b, r in zip(np.asarray(run(params, batch)), inputs.torch_last(model), inputs.rows, strict=True)
        )
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(
            f"{name:10s} {workload:26s} ours {spread(ours, cores)}  torch sdpa {spread(theirs, cores)}  "
            f"ratio {ratio:.2f}  max error {error:.1e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)  # before either library starts its threads
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # spinning torch threads would be charged to it

    import torch

    from smart_jax.hub import resolve
    from tests.parity.qwen3_vl import save, torch_model

    torch.set_num_threads(len(cores))
    with tempfile.TemporaryDirectory() as scratch:
        for name, shape in MODELS.items():
            model = torch_model(shape)
            folder = save(model, Path(scratch) / name.replace(" ", "_"))
            measure(name, folder, model, len(cores), options.repeats)
    from transformers import Qwen3VLModel

    tiny = resolve("tiny")
    measure("tiny", tiny, Qwen3VLModel.from_pretrained(tiny, dtype=torch.float32).eval(), len(cores), options.repeats)


if __name__ == "__main__":
    main()
