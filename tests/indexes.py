"""Synthetic embeddings for indexes, and what an index holds, read back."""

from __future__ import annotations

from typing import Any

import numpy as np

from smart_jax import Embeddings, Index
from smart_jax.index.centroids import assign
from smart_jax.index.sign_scores import sign_words
from smart_jax.index.snapshot import PLACES
from smart_jax.index.stages import MARKED


def random_embeddings(count: int, seed: int = 0, *, pooled: int = 8, width: int = 4, longest: int = 9) -> Embeddings:
    """Unit vectors, of items of 1 to `longest` tokens; tokens are float16 numbers in float32."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    pooled_vectors, tokens = (rng.standard_normal(shape) for shape in ((count, pooled), (int(offsets[-1]), width)))
    unit = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (pooled_vectors, tokens)]
    return Embeddings(unit[0], unit[1].astype(np.float16).astype(np.float32), offsets)


def contents(index: Index) -> dict[str, tuple[Any, bytes, bytes]]:
    """Metadata and the bytes of pooled vector and tokens, by id."""
    held = {}
    with index._engine.store.reading() as (db, snapshot):
        by_number = {segment.number: segment for segment in snapshot.segments}
        for row, name, metadata in db.execute("SELECT row, id, metadata FROM item"):
            segment, place = by_number[row >> PLACES], row & (2**PLACES - 1)
            assert segment.alive is None or segment.alive[place]
            item = segment.embeddings[place]
            held[name] = (metadata, item.pooled.tobytes(), item.tokens.tobytes())
        assert len(snapshot) == len(held)
    return held


def check_nothing_left_over(index: Index) -> None:
    """A writer has just been at it: the files hold what the catalog names, and nothing else."""
    with index._engine.store.reading() as (db, _):
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        expected = {}
        files = index._engine.store.files
        for number, items, tokens in db.execute("SELECT number, items, tokens FROM segment"):
            rows = {".tokens": tokens, ".pooled": items, ".bounds": items, ".scales": tokens}
            expected |= {files.path(number, s): rows[s] * size for s, size in files.format.row_bytes().items()}
        extents = db.execute("SELECT number, tokens FROM segment").fetchall()
        marks = {}
        for stage in index._engine.store.stages():
            dtype, shape = stage.mark_shape(files.format)
            marks |= {stage.file(number): tokens * int(np.prod(shape)) * dtype.itemsize for number, tokens in extents}
            if stage.name == "centroids":
                marks[stage.file()] = stage.centroids * files.format.token_width * 4
        rows = [row for (row,) in db.execute("SELECT row FROM content")]
        known = {row for table in ("item", "staged") for (row,) in db.execute(f"SELECT row FROM {table}")}
        assert set(rows) <= known
    folder = index.folder / "segments"
    assert {path: path.stat().st_size for path in folder.glob("*")} == expected
    assert {path.name: path.stat().st_size for path in (index.folder / "stages").glob("*")} == marks
    assert {path.name for path in index.folder.iterdir()} <= {
        *("index.db", "index.db-wal", "index.db-shm", "segments", "stages", "write.lock")
    }


def check_marks(index: Index) -> None:
    """Each token that is stored has the marks that follow from it."""
    with index._engine.store.reading() as (_, snapshot):
        assert snapshot.segments
        for segment in snapshot.segments:
            tokens = segment.embeddings.tokens.astype(np.float32)
            assert {*segment.marks} == {*MARKED}
            np.testing.assert_array_equal(segment.marks["binary"], sign_words(tokens))
            np.testing.assert_array_equal(segment.marks["centroids"], assign(tokens, snapshot.centroids))
