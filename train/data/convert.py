"""Query-document pairs from Hugging Face parquet files -> a tensorflow-datasets data set in ArrayRecord format.

See `train.data.parquet` for the layout of a source.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from train.data.parquet import ParquetFolder, find_source

VERSION = "1.0.0"
SHARD_BYTES = 256 * 2**20
WRITE_AT_ONCE = 32  # examples
Content = bytes | str | list[bytes]  # an image, a text or a video's path, a video's frames


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What `convert` did: where the data set is, examples per split, rows left out by reason."""

    path: Path
    examples: dict[str, int]
    skipped: dict[str, int]


def convert(
    source: str | Path,
    name: str,
    out: str | Path,
    *,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    max_negatives: int | None = None,
    validation_ratio: float = 0.02,
    seed: int = 0,
    shards: int | None = None,
    skip_unreadable: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Write `out`/`name`, which `train.data.open_split` reads, from a folder or hub data set of parquet files.

    Rows whose query is null or blank are left out and counted. The validation split takes about `validation_ratio` of
    the documents, chosen by a hash of their bytes (of a video file, its path in the source) and `seed`: all queries of
    a page are on one side, and the choice depends neither on the rows' order nor on the files. The data set appears
    only when it is complete.

    Video files are not copied. Where the source has a path relative to its folder, the data set has one relative to its
    own: keep both where they are, or move what holds both.

    Args:
      source: a folder with parquet files in it or in its `data/`, or a hub id "owner/name" (downloaded once).
      name: of the data set: lower-case letters, digits and underscores.
      out: the folder of all data sets.
      split: of the source, where the files' names tell splits apart (`train-00000-of-00082.parquet`).
      subset: a folder of the source, such as a language; None = the whole of it.
      revision: of the hub data set.
      max_negatives: keep at most so many of each row, the first ones: each is stored with every row that names it.
      validation_ratio: in [0, 1); 0 = no validation split.
      seed: of the choice of the validation split.
      shards: at most so many files per split; None = one for each 256 MiB of the source.
      skip_unreadable: leave out and count rows whose document is missing or is no image or video, instead of raising.
      overwrite: replace a data set of this name.

    Raises:
      FileExistsError: there is a data set of this name, and `overwrite` is off.
      FileNotFoundError: no such folder or hub data set, or no parquet files in it.
      ConnectionError: the hub is needed and can not be reached, or is switched off.
      ImportError: there are video files, and PyAV is not installed.
      ValueError: a missing column, a corrupt file, a document that can not be read, a number of scores that is not that
        of the documents, an empty split.
    """
    check_name(name)
    if not 0 <= validation_ratio < 1:
        raise ValueError(f"validation_ratio={validation_ratio}: expected 0 <= ratio < 1")
    if shards is not None and shards < 1:
        raise ValueError(f"shards={shards}: expected at least 1, or None")
    target, partial = Path(out) / name, Path(out) / f".{name}.partial"
    if target.exists() and not overwrite:
        raise FileExistsError(f"'{target}' exists: pass overwrite (--overwrite) to replace it, or choose another name")
    if max_negatives is not None and max_negatives < 0:
        raise ValueError(f"max_negatives={max_negatives}: expected at least 0, or None")
    rows = ParquetFolder(find_source(source, revision, subset), split, videos=Path(source).is_dir())
    skipped: collections.Counter[str] = collections.Counter()
    shards = shards or max(1, sum(file.stat().st_size for file in rows.files) // SHARD_BYTES)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        by_id = ImagesById(rows, partial) if rows.negatives == "id" else None
        pairs = _pairs(rows, target, by_id, max_negatives, skip_unreadable, skipped)
        examples = _write(pairs, rows, partial / VERSION, name, validation_ratio, seed, math.ceil(len(rows) / shards))
        for key, count in examples.items():
            if not count:
                raise ValueError(
                    f"no row of '{rows.root}' falls into the split '{key}' (left out: {dict(skipped)}): give more "
                    "rows, another --validation_ratio or --seed, or --validation_ratio 0"
                )
        if by_id is not None:
            by_id.remove()
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Conversion(target, examples, dict(skipped))


def _write(
    pairs: Iterator[tuple[Content, dict[str, Any]]],
    rows: ParquetFolder,
    folder: Path,
    name: str,
    validation_ratio: float,
    seed: int,
    examples_per_shard: int,
) -> dict[str, int]:
    """Writes in one pass, in the source's order (reading shuffles); returns the number of examples per split."""
    counts = {"train": 0, "validation": 0} if validation_ratio else {"train": 0}
    writer = open_writer(folder, name, _features(rows), list(counts), examples_per_shard)
    while some := list(itertools.islice(pairs, WRITE_AT_ONCE)):  # each call rewrites the metadata
        parts: dict[str, list[dict[str, Any]]] = {split: [] for split in counts}
        for content, example in some:
            fraction = _fraction(content, seed)
            parts["validation" if fraction < validation_ratio else "train"].append(example)
        writer.add_examples({split: part for split, part in parts.items() if part})
        counts = {split: counts[split] + len(part) for split, part in parts.items()}
    writer.close_all()
    return counts


def open_writer(
    folder: Path, name: str, features: tfds.features.FeaturesDict, splits: list[str], examples_per_shard: int
) -> tfds.core.SequentialWriter:
    """Of a new data set; the folder is its version's, and made.

    tensorflow_datasets' GeneratorBasedBuilder would shuffle what it writes, and for that needs tensorflow as soon as a
    split exceeds 1 GB.
    """
    folder.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity, description="Query-document pairs for contrastive training.", features=features
    )
    writer = tfds.core.SequentialWriter(info, examples_per_shard, file_format="array_record")
    writer.initialize_splits(splits)
    return writer


def check_name(name: str) -> None:
    """Raises ValueError: a data set can not be called so."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"data set name '{name}': use lower-case letters, digits and underscores, a letter first")


def _features(rows: ParquetFolder) -> tfds.features.FeaturesDict:
    kinds = {"image": tfds.features.Image, "text": tfds.features.Text}  # an image keeps its encoded bytes
    features = {key: tfds.features.Text() for key in ("id", "query", "source")}
    if rows.document != "video":
        features[rows.document] = kinds[rows.document]()
    for column, kind in rows.videos.items():
        prefix, frames = column.removesuffix("video"), tfds.features.Sequence(tfds.features.Image())
        features[column] = frames if kind == "frames" else tfds.features.Text()
        features[prefix + "fps"] = tfds.features.Scalar(np.float32)  # 0 = not given
        features[prefix + "max_frames"] = tfds.features.Scalar(np.int64)
    if rows.negatives:
        features["negatives"] = tfds.features.Sequence(kinds["text" if rows.negatives == "text" else "image"]())
    if rows.has_scores:
        features["scores"] = tfds.features.Sequence(np.float32)
    return tfds.features.FeaturesDict(features)


class ImagesById:
    """The images of all rows in one file beside what is written, since parquet reads no single row."""

    def __init__(self, rows: ParquetFolder, folder: Path) -> None:
        """Raises ValueError: two rows have one id."""
        folder.mkdir(parents=True)
        self._path = folder / "images"
        self._places: dict[str, tuple[int, int]] = {}  # offset and size
        with self._path.open("wb") as file:
            for _, where, row in tqdm(rows, total=len(rows), desc="reading images", unit=" rows"):
                if row["id"] in self._places:
                    raise ValueError(f"{where} has the id '{row['id']}' of another row: negatives name rows by id")
                try:
                    data = rows.image(row["image"])
                except ValueError:
                    data = b""  # told of where it is needed
                self._places[row["id"]] = file.tell(), len(data)
                file.write(data)
        self._file = self._path.open("rb")

    def __getitem__(self, name: str) -> bytes:
        """Raises ValueError: no row has that id, or no readable image."""
        if name not in self._places:
            raise ValueError(f"names the negative '{name}', which is no row's id")
        offset, size = self._places[name]
        if not size:
            raise ValueError(f"names the negative '{name}', whose row has no readable image")
        self._file.seek(offset)
        return self._file.read(size)

    def remove(self) -> None:
        self._file.close()
        self._path.unlink()


def _pairs(
    rows: ParquetFolder,
    target: Path,
    by_id: ImagesById | None,
    max_negatives: int | None,
    skip_unreadable: bool,
    skipped: collections.Counter[str],
) -> Iterator[tuple[Content, dict[str, Any]]]:
    """Each document's content and the example as the writer takes it; rows left out are counted in `skipped`."""
    for number, where, row in tqdm(rows, total=len(rows), desc="converting", unit=" rows"):
        query = (row["query"] or "").strip()
        if not query and not rows.has_video("query_video", row):
            skipped["no query"] += 1
            continue
        try:
            content, items = _items(rows, row, target)
            if rows.negatives:
                listed = (row["negatives"] or [])[:max_negatives]
                items["negatives"] = [by_id[x] if by_id else _document(rows, rows.negatives, x) for x in listed]
        except ValueError as error:
            if not skip_unreadable:
                remedy = "repair or drop the row, or skip such rows (skip_unreadable, --skip_unreadable)"
                raise ValueError(f"{where} {error}: {remedy}") from error
            skipped["unreadable document"] += 1
            continue
        if rows.has_scores:
            items["scores"] = rows.scores(row, where)[: None if max_negatives is None else 1 + max_negatives]
        yield content, {"id": f"{number:08d}", "query": query, "source": row.get("source") or "", **items}


def _items(rows: ParquetFolder, row: dict[str, Any], target: Path) -> tuple[Content, dict[str, Any]]:
    """The document's content, and the example's columns of documents and videos."""
    items, content = {}, b""
    for column in rows.videos:
        video = rows.video(column, row) or {"video": [] if rows.videos[column] == "frames" else ""}
        content, prefix = video["video"] if column == rows.document else content, column.removesuffix("video")
        items[column] = _stored(rows, video["video"], target)
        items |= {prefix + key: video.get(key, 0) for key in ("fps", "max_frames")}
    if rows.document != "video":
        items[rows.document] = content = _document(rows, rows.document, row[rows.document])
    elif not content:
        raise ValueError("has no video")
    return content, items


def _stored(rows: ParquetFolder, video: str | list[bytes], target: Path) -> str | list[bytes]:
    """Frames and absolute paths as they are, other paths from the data set's folder."""
    if not video or isinstance(video, list) or Path(video).is_absolute():
        return video
    return os.path.relpath(rows.root.resolve() / video, target.resolve())


def _document(rows: ParquetFolder, kind: str | None, value: Any) -> Any:
    if kind == "image":
        return rows.image(value)
    if not value or not value.strip():
        raise ValueError("has no text")
    return value


def _fraction(document: Content, seed: int) -> float:
    """A number in [0, 1) that depends on the document's content and the seed only."""
    parts = document if isinstance(document, list) else [document]
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64
