"""Conversion of query-document pairs in parquet files to a tensorflow-datasets data set in ArrayRecord format.

See `train.data.parquet` for the layout of a source.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tqdm.auto import tqdm

from train.data.outlines import Item, Outline, outline_of
from train.data.parquet import ParquetFolder, find_source
from train.data.writer import VERSION, DataSetWriter, check_name, join

SHARD_BYTES = 256 * 2**20
WRITE_AT_ONCE = 32  # examples
Content = bytes | str | list[bytes]  # an image, a text or a video's path, a video's frames


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Result of `convert`.

    Attributes:
      path: folder of the data set.
      examples: how many there are, by split.
      skipped: how many records were left out, by reason.

    Example:
      >>> Conversion(Path("data/pages"), {"train": 98, "validation": 2}, {}).examples["train"]
      98
    """

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
    processes: int = 1,
    video_folder: str | Path | None = None,
) -> Conversion:
    """Writes `out`/`name`, which `open_split` reads, from a folder or hub data set of parquet files.

    Records whose query is null or blank are left out and counted. The validation split takes about `validation_ratio`
    of the documents, chosen by a hash of their bytes (of a video file, of its path in the source) and `seed`: all
    queries of a page are on one side, and the choice depends neither on the order of the records nor on the files. The
    data set appears only when it is complete.

    Video files are not copied. Where the source has a path relative to its folder, the data set has one relative to its
    own: keep both where they are, or move what holds both.

    Args:
      source: folder with parquet files in it or in its `data/`, or hub id "owner/name", which is downloaded once.
      name: of the data set: lower-case letters, digits and underscores.
      out: folder of all data sets.
      split: of the source, where the files' names tell splits apart (`train-00000-of-00082.parquet`).
      subset: folder in the source, such as a language; None = the whole of it.
      revision: of the hub data set.
      max_negatives: largest number of negatives of a record, of which the first are kept; each is stored with every
        record that names it. None = all.
      validation_ratio: in [0, 1); 0 = no validation split.
      seed: of the choice of the validation split.
      shards: largest number of files per split; None = one for each 256 MiB of the source.
      skip_unreadable: whether records whose document is missing or is no image or video are left out and counted; False
        = they are errors.
      overwrite: whether a data set of this name is replaced.
      processes: largest number that convert files of the source side by side; what is written does not depend on it.
        With more than one, a script needs the usual `if __name__ == "__main__":`.
      video_folder: folder that absolute paths of videos may lead to; None = the source's alone. A data set of others
        names no other file of this machine.

    Returns:
      Where the data set is, and how many examples it has.

    Raises:
      FileExistsError: there is a data set of this name, and `overwrite` is off.
      FileNotFoundError: there is no such folder or hub data set, or there are no parquet files in it.
      ConnectionError: the hub is needed and cannot be reached, or is switched off.
      ImportError: there are video files, and PyAV is not installed.
      ValueError: a column is missing, a file is corrupt, a document cannot be read, there are not as many scores as
        documents, or a split is empty.

    Example:
      >>> import tempfile
      >>> import pyarrow as pa
      >>> from pyarrow import parquet
      >>> folder = Path(tempfile.mkdtemp())
      >>> pairs = {"query": ["a query", "another", ""], "text": ["a document", "another", "without a query"]}
      >>> parquet.write_table(pa.table(pairs), folder / "train.parquet")
      >>> result = convert(folder, "pairs", folder / "data", validation_ratio=0)
      >>> result.examples, result.skipped
      ({'train': 2}, {'no query': 1})
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
    if processes < 1:
        raise ValueError(f"processes={processes}: expected at least 1")
    root, is_here = find_source(source, revision, subset), Path(source).is_dir()
    records = ParquetFolder(root, split, videos=is_here, video_folder=video_folder)
    shards = shards or max(1, sum(file.stat().st_size for file in records.files) // SHARD_BYTES)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        by_id = ImagesById(records, partial) if records.negatives == "id" else None
        splits = ("train", "validation") if validation_ratio else ("train",)
        job = _Job(records, name, target, by_id, splits, validation_ratio, seed, max_negatives, skip_unreadable)
        examples, skipped = _write(job, partial, shards, processes)
        for key, count in examples.items():
            if not count:
                raise ValueError(
                    f"no row of '{records.root}' falls into the split '{key}' (left out: {dict(skipped)}): give more "
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


@dataclasses.dataclass(frozen=True)
class _Job:
    """Settings of a conversion, the same for all parts of a source."""

    records: ParquetFolder
    name: str
    target: Path
    by_id: ImagesById | None
    splits: tuple[str, ...]
    validation_ratio: float
    seed: int
    max_negatives: int | None
    skip_unreadable: bool


class _Part(NamedTuple):
    """Some files of a source, in order, and what comes of them."""

    files: tuple[Path, ...]
    folder: Path
    shards: int  # largest number of files per split


def _write(job: _Job, partial: Path, shards: int, processes: int) -> tuple[dict[str, int], collections.Counter[str]]:
    """Writes part by part, and joins the parts; returns the number of examples by split, and what is left out."""
    runs = _runs(job.records.files, min(shards, len(job.records.files)))
    parts = [_Part(files, partial / f"part-{i}", shards // len(runs)) for i, files in enumerate(runs)]
    if len(parts) == 1:
        return _write_part(job, parts[0]._replace(folder=partial / VERSION))
    skipped: collections.Counter[str] = collections.Counter()
    with _runner(min(processes, len(parts))) as run:
        done = run(_write_part, itertools.repeat(job), parts)
        for _, left_out in tqdm(done, total=len(parts), desc="converting", unit=" files", disable=processes == 1):
            skipped += left_out
    examples = join([part.folder for part in parts], partial / VERSION, job.name, _features(job.records))
    for part in parts:
        shutil.rmtree(part.folder)
    return examples, skipped


def _runs(files: Sequence[Path], count: int) -> list[tuple[Path, ...]]:
    """Returns the files in `count` runs of neighbours, of about as many files each."""
    return [tuple(files[i * len(files) // count : (i + 1) * len(files) // count]) for i in range(count)]


@contextlib.contextmanager
def _runner(processes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yields `map`, or one that runs in so many other processes."""
    if processes == 1:
        yield map
        return
    # Forking a process whose libraries run threads is not safe.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def _write_part(job: _Job, part: _Part) -> tuple[dict[str, int], collections.Counter[str]]:
    """Writes a part in one pass, in the source's order (reading shuffles); returns as `_write`."""
    skipped: collections.Counter[str] = collections.Counter()
    size = max(1, math.ceil(job.records.count(part.files) / part.shards))
    writer = DataSetWriter(part.folder, job.name, _features(job.records), job.splits, size)
    pairs = _pairs(job, part, skipped)
    while some := list(itertools.islice(pairs, WRITE_AT_ONCE)):
        by_split: dict[str, list[tuple[dict[str, Any], Outline]]] = {split: [] for split in job.splits}
        for content, example, outline in some:
            held_out = _fraction(content, job.seed) < job.validation_ratio
            by_split["validation" if held_out else "train"].append((example, outline))
        writer.add(by_split)
    return writer.close(), skipped


def _features(records: ParquetFolder) -> tfds.features.FeaturesDict:
    kinds = {"image": tfds.features.Image, "text": tfds.features.Text}  # an image keeps its encoded bytes
    features = {key: tfds.features.Text() for key in ("id", "query", "source")}
    if records.document != "video":
        features[records.document] = kinds[records.document]()
    for column, kind in records.videos.items():
        prefix, frames = column.removesuffix("video"), tfds.features.Sequence(tfds.features.Image())
        features[column] = frames if kind == "frames" else tfds.features.Text()
        features[prefix + "fps"] = tfds.features.Scalar(np.float32)  # 0 = not given
        features[prefix + "max_frames"] = tfds.features.Scalar(np.int64)
    if records.negatives:
        features["negatives"] = tfds.features.Sequence(kinds["text" if records.negatives == "text" else "image"]())
    if records.has_scores:
        features["scores"] = tfds.features.Sequence(np.float32)
    return tfds.features.FeaturesDict(features)


class ImagesById:
    """Images of all records in one file beside what is written, since parquet reads no single record."""

    def __init__(self, records: ParquetFolder, folder: Path) -> None:
        """Reads all images; raises ValueError where two records have one id."""
        folder.mkdir(parents=True)
        self._path = folder / "images"
        self._places: dict[str, tuple[int, int]] = {}  # offset and size
        with self._path.open("wb") as file:
            for _, where, record in tqdm(records, total=len(records), desc="reading images", unit=" rows"):
                if record["id"] in self._places:
                    raise ValueError(f"{where} has the id '{record['id']}' of another row: negatives name rows by id")
                try:
                    data = records.image(record["image"])
                except ValueError:
                    data = b""  # an error where it is needed
                self._places[record["id"]] = file.tell(), len(data)
                file.write(data)

    def __getitem__(self, name: str) -> bytes:
        """Returns the image of the record with an id; raises ValueError where there is none, or no readable image."""
        if name not in self._places:
            raise ValueError(f"names the negative '{name}', which is no row's id")
        offset, size = self._places[name]
        if not size:
            raise ValueError(f"names the negative '{name}', whose row has no readable image")
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def remove(self) -> None:
        """Removes the file."""
        self._path.unlink()


def _pairs(
    job: _Job, part: _Part, skipped: collections.Counter[str]
) -> Iterator[tuple[Content, dict[str, Any], Outline]]:
    """Yields each document's content, the example as the writer takes it, and its outline.

    What is left out is counted in `skipped`.
    """
    records, by_id = job.records, job.by_id
    alone = multiprocessing.parent_process() is None
    rows = tqdm(
        records.read(part.files), total=records.count(part.files), desc="converting", unit=" rows", disable=not alone
    )
    for number, where, record in rows:
        query = (record["query"] or "").strip()
        if not query and not records.has_video("query_video", record):
            skipped["no query"] += 1
            continue
        try:
            content, items = _items(records, record, job.target)
            if records.negatives:
                listed = (record["negatives"] or [])[: job.max_negatives]
                items["negatives"] = [by_id[x] if by_id else _document(records, records.negatives, x) for x in listed]
        except ValueError as error:
            if not job.skip_unreadable:
                remedy = "repair or drop the row, or skip such rows (skip_unreadable, --skip_unreadable)"
                raise ValueError(f"{where} {error}: {remedy}") from error
            skipped["unreadable document"] += 1
            continue
        if records.has_scores:
            scores = records.scores(record, where)
            items["scores"] = scores[: None if job.max_negatives is None else 1 + job.max_negatives]
        outline = outline_of(query, _documents(records, items))
        yield content, {"id": f"{number:08d}", "query": query, "source": record.get("source") or "", **items}, outline


def _documents(records: ParquetFolder, items: dict[str, Any]) -> list[Item]:
    """Returns the document and the negatives of an example's columns."""
    kind = "text" if records.negatives == "text" else "image"
    return [{records.document: items[records.document]}, *({kind: x} for x in items.get("negatives", ()))]


def _items(records: ParquetFolder, record: dict[str, Any], target: Path) -> tuple[Content, dict[str, Any]]:
    """Returns the document's content, and the example's columns of documents and videos."""
    items, content = {}, b""
    for column in records.videos:
        video = records.video(column, record) or {"video": [] if records.videos[column] == "frames" else ""}
        content, prefix = video["video"] if column == records.document else content, column.removesuffix("video")
        items[column] = _stored(records, video["video"], target)
        items |= {prefix + key: video.get(key, 0) for key in ("fps", "max_frames")}
    if records.document != "video":
        items[records.document] = content = _document(records, records.document, record[records.document])
    elif not content:
        raise ValueError("has no video")
    return content, items


def _stored(records: ParquetFolder, video: str | list[bytes], target: Path) -> str | list[bytes]:
    """Returns frames and absolute paths as they are, other paths as seen from the data set's folder."""
    if not video or isinstance(video, list) or Path(video).is_absolute():
        return video
    return os.path.relpath(records.root.resolve() / video, target.resolve())


def _document(records: ParquetFolder, kind: str | None, value: Any) -> Any:
    if kind == "image":
        return records.image(value)
    if not value or not value.strip():
        raise ValueError("has no text")
    return value


def _fraction(document: Content, seed: int) -> float:
    """Returns a number in [0, 1) that depends on the document's content and the seed alone."""
    parts = document if isinstance(document, list) else [document]
    data = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64
