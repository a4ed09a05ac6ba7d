"""A tiny model, a tiny data set and a config for tests of training, also used by their child processes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.backbone import write_backbone
from tests.checkpoints import write_processor
from train.config import TrainConfig, default_config, from_config_dict
from train.data import convert

EXAMPLES = 40


def page(number: int) -> bytes:
    """A 64 x 64 PNG, another one for each number."""
    rng = np.random.default_rng(number)
    pixels = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_inputs(folder: Path) -> Path:
    """`folder`/model and the data set "pages" in `folder`/data, with a validation split."""
    write_processor(write_backbone(folder / "model"))
    rows = [
        {"image": {"bytes": page(i), "path": None}, "query": f"page number {i}", "source": "test"}
        for i in range(EXAMPLES)
    ]
    (folder / "source").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "source" / "train-00000.parquet")
    convert(folder / "source", "pages", folder / "data", validation_ratio=0.3)
    return folder


def write_mixed_inputs(folder: Path) -> Path:
    """As `write_inputs`, but pages have many sizes, and queries many lengths."""
    write_processor(write_backbone(folder / "model"))
    rng = np.random.default_rng(5)
    rows = []
    for i in range(EXAMPLES):
        width, height = (int(side) for side in rng.integers(2, 9, 2) * 32)
        buffer = io.BytesIO()
        Image.open(io.BytesIO(page(i))).resize((width, height)).save(buffer, "JPEG")
        image = {"bytes": buffer.getvalue(), "path": None}
        rows.append({"image": image, "query": "page " * int(rng.integers(1, 40)) + str(i), "source": "test"})
    (folder / "source").mkdir()
    for part in range(2):
        half = rows[part * EXAMPLES // 2 :][: EXAMPLES // 2]
        pq.write_table(pa.Table.from_pylist(half), folder / "source" / f"train-{part:05d}-of-00002.parquet")
    convert(folder / "source", "pages", folder / "data", validation_ratio=0.3, shards=2)
    return folder


def make_config(folder: Path, output: Path, **settings: Any) -> TrainConfig:
    """8 steps of batches of 8 on `write_inputs(folder)`; settings are "loss.objective" and so on, with "__" for "."."""
    config = default_config()
    config.model, config.output = str(folder / "model"), str(output)
    config.batch_size, config.steps, config.log_every = 8, 8, 1
    config.data.dir, config.data.name = str(folder / "data"), "pages"
    config.checkpoint.every, config.eval.validation_batches, config.eval.validation_documents = 2, 1, 0
    config.optimizer.learning_rate = 0.01
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in settings.items()})
    return from_config_dict(config)


MEASURED = (
    "examples_per_second",
    "tokens_per_second",
    "seconds_per_step",
    "mfu",
    "device_memory_gib",
    "host_memory_gib",
)


def repeatable(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of a run without what another run of the same updates may have otherwise."""
    return [{name: value for name, value in record.items() if name not in MEASURED} for record in records]
