"""The table of readers: what each writes as a good file, and how it reads a damaged one.

A new reader is a new entry of `READERS`. `write` is called once, in a process of its own, and `read` in a fresh one for
each case; `names` are the files that are damaged.
"""

from __future__ import annotations

import json
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import smart_jax
from eval.benchmarks import Benchmark, Side
from eval.methods.result import Result
from eval.reports import read_results
from eval.states.cache import Cache, Shards
from smart_jax import Adapter, AdapterConfig, Embeddings, States
from smart_jax.files import open_checkpoint, read_tensors
from smart_jax.index.first_stage import Weights, first_scores
from smart_jax.index.pdf import Pdf
from smart_jax.index.snapshot import PLACES, Snapshot
from smart_jax.index.stages import STAGES
from smart_jax.inputs import open_preprocessor, open_rgb
from smart_jax.inputs.image import ImageSettings
from smart_jax.inputs.video import process_video
from smart_jax.inputs.video_settings import VideoSettings
from smart_jax.models import load_config, load_weights
from smart_jax.publishing.figures import read_figures
from smart_jax.retrieval import open_adapter
from smart_jax.retrieval.embeddings_folder import EmbeddingsFolder, ItemVectors
from smart_jax.retrieval.reference_adapter import export_reference
from smart_jax.tables import Table, read_in_order
from tests.fake_encoder import FakeEncoder
from tests.indexes import random_embeddings
from tests.lora import write_lora
from tests.small_bert import write_json, write_plain, write_sentence_transformer
from tests.small_pdf import write_pdf
from train.data.outlines import Outlines, outline_of
from train.export import is_exported, mark_exported
from train.monitor.metrics_log import read_metrics
from train.run_directory import open_run
from train.states.store import ItemStates, Store

DOCUMENTED = (ValueError, OSError)


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
      write: writes good files to a folder.
      read: reads them; raises one of `errors` where they are bad.
      names: the files that are damaged; () = all.
      errors: the documented kinds of error.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    names: tuple[str, ...] = ()
    errors: tuple[type[Exception], ...] = DOCUMENTED


def _adapter(kind: str) -> Adapter:
    from flax import nnx

    return Adapter(
        AdapterConfig(hidden_size=8, dim=4, kind=kind, layers=(-2, -1), **({"heads": 2} if kind[0] == "s" else {})),
        rngs=nnx.Rngs(0),
    )


PROMPTS = {"prompts": {"query": "find: ", "document": ""}, "default_prompt_name": "document"}


def _write_text_model(folder: Path) -> None:
    write_sentence_transformer(folder)
    write_json(folder / "config_sentence_transformers.json", PROMPTS)


def _read_model(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    config = load_config(checkpoint)
    preprocessor = open_preprocessor(checkpoint, config)
    for query in (True, False):
        preprocessor.tokenize("revenue by region " * 20 + "a" * 60, query=query)
    load_weights(checkpoint, preprocessor.config)


def _write_tiny(folder: Path) -> None:
    shutil.copytree(smart_jax.files.resolve("tiny"), folder, dirs_exist_ok=True)


def _read_tiny(folder: Path) -> None:
    config = load_config(folder)
    preprocessor = open_preprocessor(folder, config)
    preprocessor.tokenize({"text": "revenue by region " * 20 + "a" * 60, "image": np.zeros((64, 64, 3), np.uint8)})
    if config.text.num_hidden_layers != 4 or config.vision.depth != 2:  # else the damage is in what was read
        load_weights(folder, preprocessor.config)


def _write_peft(folder: Path) -> None:
    """An adapter beside its base, whose settings it has changed."""
    write_plain(folder / "base")
    modules = {f"encoder.layer.{i}.attention.self.query": (32, 32) for i in range(2)}
    pattern = {"layer.0.*query": 4}
    write_lora(folder / "adapter", modules, rank_pattern=pattern, base_model_name_or_path="../base")
    settings = {"max_length": 20, "default_instruction": "in ", "query_instruction": "find ", "length_buckets": [8, 24]}
    write_json(folder / "adapter" / "smart_jax.json", settings | {"pooling": "cls"})


def _write_shards(folder: Path) -> None:
    from safetensors.numpy import save_file

    for i in range(2):
        save_file({f"t{i}": np.ones((2, 2), np.float32)}, str(folder / f"model-{i}.safetensors"))
    shards = {"weight_map": {f"t{i}": f"model-{i}.safetensors" for i in range(2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))


IMAGES = ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "tga", "ico", "jp2")


def _write_images(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for suffix in IMAGES:
        Image.fromarray(noise).save(folder / f"x.{suffix}")


def _read_images(folder: Path) -> None:
    for suffix in IMAGES:
        path = folder / f"x.{suffix}"
        open_rgb(path.read_bytes() if path.is_file() else path)


FILMS = ("mp4", "mkv", "avi", "gif")


def _write_films(folder: Path) -> None:
    import av

    for suffix in FILMS:
        with av.open(str(folder / f"x.{suffix}"), "w") as out:
            stream = out.add_stream("gif" if suffix == "gif" else "mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb8" if suffix == "gif" else "yuv420p"
            for i in range(20):
                out.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (96, 64), (9 * i, 0, 0)))))
            out.mux(stream.encode())


def _read_films(folder: Path) -> None:
    for suffix in FILMS:
        process_video(folder / f"x.{suffix}", ImageSettings(), VideoSettings(min_pixels=1024, max_pixels=4096))


def _write_sounds(folder: Path) -> None:
    with wave.open(str(folder / "x.wav"), "wb") as sound:
        sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000)
        sound.writeframes(np.random.default_rng(0).integers(0, 256, 16_000, dtype=np.uint8).tobytes())


def _read_sounds(folder: Path) -> None:
    from smart_jax.inputs.audio_file import read_recording

    read_recording(folder / "x.wav", 30.0, "item")
    if (folder / "x.wav").is_file():
        read_recording((folder / "x.wav").read_bytes(), 30.0, "item")


def _write_document(folder: Path) -> None:
    lines = [(20, 300, 12, "Revenue by region"), (20, 200, 9, "a line of text")]
    write_pdf(folder / "x.pdf", [lines, lines], [("Revenue", 0, 300), ("\tRegion", 1, None)])


def _read_document(folder: Path) -> None:
    with Pdf(folder / "x.pdf") as pdf:
        for index in range(min(len(pdf), 3)):
            pdf.text(index), pdf.page_text(index), pdf.image(index)


def _write_table(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"id": [str(i) for i in range(50)], "text": ["revenue"] * 50, "values": [[1.0, 2.0]] * 50}
    pq.write_table(pa.table(rows), folder / "test-00000-of-00001.parquet", row_group_size=20, compression="zstd")


def _read_table(folder: Path) -> None:
    path = folder / "test-00000-of-00001.parquet"
    table = Table([path])
    for name in table.schema.names[:5]:
        table.column(name)
    records = table.records(table.schema.names[:5])
    for i in range(min(len(table), 3)):
        records(i)
    for _ in read_in_order(path, table.schema.names[:5]):
        pass


def _write_beir(folder: Path) -> None:
    (folder / "qrels").mkdir()
    Image.new("RGB", (30, 30)).save(folder / "page.png")
    corpus = [{"_id": f"d{i}", "title": "t", "text": "one", "image": "page.png"} for i in range(4)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(x) + "\n" for x in corpus))
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": "which"}) + "\n" for i in range(4))
    )
    (folder / "qrels" / "test.jsonl").write_text(
        "".join(json.dumps({"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1}) + "\n" for i in range(4))
    )
    (folder / "candidates.jsonl").write_text(
        "".join(json.dumps({"id": f"q{i}", "candidates": ["d0", f"d{i}"][: i + 1]}) + "\n" for i in range(4))
    )


def _read_benchmark(folder: Path) -> None:
    benchmark = Benchmark.load(folder)
    for item in [*benchmark.queries[:4], *benchmark.corpus[:4]]:
        if isinstance(item, dict) and isinstance(item.get("image"), Path):
            open_rgb(item["image"])


def _write_benchmark(folder: Path) -> None:
    page = Image.new("RGB", (30, 30))
    Benchmark(
        "pages", ["which", "what"], ["q0", "q1"], [page, "text"], ["d0", "d1"], {"q0": {"d0": 1}, "q1": {"d1": 2}}
    ).save(folder)


def _vectors(dtype: Any) -> Embeddings:
    return random_embeddings(5).astype(dtype)


def _write_embeddings(folder: Path) -> None:
    for dtype in (np.float32, np.int8):
        _vectors(dtype).save(folder / np.dtype(dtype).name)


def _read_embeddings(folder: Path) -> None:
    for name in ("float32", "int8"):
        for mmap in (False, True):
            loaded = Embeddings.load(folder / name, mmap=mmap)
            loaded[[0, len(loaded) - 1]]
            loaded.lengths.sum() + np.nan_to_num(np.asarray(loaded.tokens, np.float32)).sum()


def _write_journal(folder: Path) -> None:
    out = EmbeddingsFolder(folder, items=2, about={"model": "m"})
    out.expect(0, tokens=1)
    out.write([ItemVectors(0, np.float32([1, 0]), np.float32([[0, 1]]))])
    out.close()
    for path in folder.iterdir():
        if path.suffix == ".jsonl":
            path.rename(folder / path.name)


def _read_journal(folder: Path) -> None:
    with EmbeddingsFolder(folder, items=2, about={"model": "m"}) as out:
        number = int(np.argmin(out.done))
        if not out.done.all():
            out.expect(number, tokens=1)
            out.write([ItemVectors(number, np.float32([1, 0]), np.float32([[0, 1]]))])


def _states() -> States:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(6, 2, 4)).astype(np.float32)
    arrays = {
        "pooled": tokens[:3, 0],
        "states": tokens,
        "norms": np.ones((6, 2), np.float32),
        "ids": np.arange(6, dtype=np.int32),
    }
    return States(
        **arrays,
        offsets=np.array([0, 2, 4, 6]),
        grids=np.int32([[0, 1, 1, 2]]),
        visual_ids=(0, 1),
        layers=(-2, -1),
        depth=3,
    )


def _read_states(folder: Path) -> None:
    shards = Shards(folder, 3, 3, 2**20)
    shards.has(0)
    states = States.load(shards.path(0))
    states[[0, 2]].embeddings(-1)
    list(shards.parts())


def _read_cache(folder: Path) -> None:
    """Encodes what is not there, which is all of it where the folder is empty."""
    side = Side("pages", query=False, items=["revenue", "by region", "a line"], ids=["a", "b", "c"], instruction=None)
    shards = Cache(folder, "weights").encode(FakeEncoder(), side, layers=None, dtype=np.float16, progress=False)
    for _ in shards.parts():
        pass
    shards.take(np.array([0, 2])).embeddings(-1)


def _write_index(folder: Path) -> None:
    with smart_jax.Index(folder, FakeEncoder(), dtype="int8") as index:
        index.add_embeddings(
            random_embeddings(12, pooled=16, width=16),
            ids=[f"d{i}" for i in range(12)],
            metadata=[{"year": i} for i in range(12)],
        )
        index.keep_stages(["binary", "centroids"])


def _read_index(folder: Path) -> None:
    with smart_jax.Index(folder) as index:
        index.info(), list(index.items()), len(index), "d3" in index
        with index._engine.store.reading() as (_, snapshot):
            for segment in snapshot.segments:
                segment.embeddings.lengths.sum() + segment.embeddings.tokens.astype(np.int64).sum()
                segment.embeddings[len(segment.embeddings) - 1], snapshot.item(segment.number << PLACES)
            _score_by_stages(snapshot)


def _score_by_stages(snapshot: Snapshot) -> None:
    queries = random_embeddings(1, pooled=16, width=16)
    for name in STAGES:
        if snapshot.segments and (name == "pooled" or name in snapshot.stages):
            first_scores(name, queries, snapshot, [None] * len(snapshot.segments), Weights())


def _write_results(folder: Path) -> None:
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6}
    rows = {
        "rows": {"late": {"ndcg@5": figure}},
        "differences": [{"row": "late", "minus": "pooled", "metrics": {"ndcg@5": figure}}],
    }
    entry = {
        "name": "pages",
        "queries": 2,
        "documents": 3,
        "ranking": "global",
        "bytes_per_document": {"late": 9.0},
        **rows,
    }
    entry |= {"query_ids": ["q0", "q1"], "values": {"late": {"ndcg@5": [0.4, 0.6]}}}
    average = {"name": "average", "queries": 2, "documents": 3, "ranking": None, "bytes_per_document": {}, **rows}
    stored = {
        "level": 0.95,
        "samples": 10,
        "metrics": ["ndcg@5"],
        "benchmarks": [entry, average],
        "failed": [],
        "config": {"model": "tiny"},
    }
    (folder / "results.json").write_text(json.dumps(stored | {"environment": {}}))
    Result("pages", ["q0"], 3, False, {"late": {"mrr": np.ones(1)}}, {"encode": 1.0}).save(folder / "result.json")


def _read_results(folder: Path) -> None:
    for read, name in ((read_results, "results.json"), (read_figures, "results.json"), (Result.load, "result.json")):
        read(folder / name)


def _write_run(folder: Path) -> None:
    open_run(folder, {"seed": 0, "data": {"path": "x"}}, resume=False, overwrite=False)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')
    mark_exported(folder, ["adapter"], 2)


def _read_run(folder: Path) -> None:
    read_metrics(folder / "metrics.jsonl")
    is_exported(folder, ["adapter"], 2)
    open_run(folder, {"seed": 0, "data": {"path": "x"}}, resume=True, overwrite=False)


def _write_store(folder: Path) -> None:
    item = ItemStates(np.ones(4, np.float32), np.ones((2, 1, 4), np.float16))
    Store(folder, 3, 3).write(0, [item, "bad page", item], item)
    outlines = Outlines.of([outline_of("a query", [{"text": "a"}, {"text": "b"}])])
    outlines.write(folder / "outlines-train.parquet")


def _read_store(folder: Path) -> None:
    store = Store(folder, 3, 3)
    if store.has(0):
        store.lengths.sum(), store.error(1), store.bytes
    outlines = Outlines.read([folder / "outlines-train.parquet"])
    [outlines[i] for i in range(min(len(outlines), 3))]


READERS: dict[str, Reader] = {
    "adapter.pt": Reader(lambda folder: export_reference(_adapter("linear"), folder), open_adapter),
    "adapter": Reader(lambda folder: _adapter("self_attention").save(folder), open_adapter),
    "model": Reader(
        _write_tiny,
        _read_tiny,
        (
            "config.json",
            "smart_jax.json",
            "preprocessor_config.json",
            "chat_template.jinja",
            "tokenizer_config.json",
            "tokenizer.json",
        ),
    ),
    "text model": Reader(_write_text_model, _read_model),
    "PEFT adapter": Reader(
        _write_peft,
        lambda folder: _read_model(folder / "adapter"),
        tuple(f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "smart_jax.json")),
    ),
    "shards": Reader(_write_shards, lambda folder: [read() for _, read in read_tensors(folder)]),
    "images": Reader(_write_images, _read_images),
    "videos": Reader(_write_films, _read_films),
    "audio": Reader(_write_sounds, _read_sounds),
    "PDF": Reader(_write_document, _read_document),
    "parquet": Reader(_write_table, _read_table),
    "BEIR folder": Reader(_write_beir, _read_benchmark),
    "saved benchmark": Reader(_write_benchmark, _read_benchmark),
    "embeddings": Reader(_write_embeddings, _read_embeddings),
    "journal of embeddings": Reader(_write_journal, _read_journal),
    "states of an evaluation": Reader(_read_cache, _read_cache),
    "states": Reader(lambda folder: _states().save(folder / "00000.safetensors"), _read_states),
    "index": Reader(_write_index, _read_index),
    "results": Reader(_write_results, _read_results),
    "run directory": Reader(_write_run, _read_run),
    "states of training": Reader(_write_store, _read_store),
}
