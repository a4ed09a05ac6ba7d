"""Data sets that `python -m train.data` wrote: a split gives one example at a time from its ArrayRecord files.

Neither writing nor reading them needs tensorflow.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.json_format import ParseError

from smart_jax.files import files_fingerprint
from train.data.outlines import Item, Outline, Outlines, content_hash, outlines_file


@dataclasses.dataclass(frozen=True)
class Example:
    """Query, a document that answers it, and documents that do not.

    Attributes:
      id: number of the source's record, as text.
      query: {"text": ...}, {"video": ...} or both.
      document: {"image": encoded bytes}, {"text": ...} or {"video": path of a file, or list of frames}. Beside a video,
        here and in the query, there may be fps and max_frames.
      negatives: other documents of the same form, possibly none.
      source: where the pair comes from, possibly "".
      scores: a teacher's scores of the document and then of each negative, NaN where there is none; or none at all.
      hashes: `content_hash` of the document and then of each negative where it is stored; "" or none where it is not.

    Example:
      >>> Example("0", {"text": "What is a page?"}, {"text": "One side of a leaf."}).negatives
      ()
    """

    id: str
    query: Item
    document: Item
    negatives: tuple[Item, ...] = ()
    source: str = ""
    scores: tuple[float, ...] = ()
    hashes: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)

    def document_hashes(self, count: int = 1) -> list[str]:
        """Returns `content_hash` of the first `count` of the document and the negatives, which is read or computed."""
        stored = dict(enumerate(self.hashes))
        return [stored.get(k) or content_hash(item) for k, item in enumerate((self.document, *self.negatives)[:count])]


@runtime_checkable
class Source(Protocol):
    """Examples by number: a split on disk, or a list.

    Example:
      >>> source: Source = [Example("0", {"text": "a query"}, {"text": "a document"})]
      >>> source[0].id
      '0'
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class _Encoded(tfds.decode.SkipDecoding):
    """Decoder that leaves images in the bytes they are stored in; the library's class lacks sequences of them."""

    def decode_batch_example_np(self, example_data: Any) -> list[bytes]:
        return list(example_data)


class Split:
    """Converted split, of which one example at a time is read from ArrayRecord files; `open_split` opens it.

    Attributes:
      has_videos: whether documents or queries may be videos.

    Example:
      >>> record = {"id": b"0", "query": b"a query", "text": b"a document", "source": b""}
      >>> Split([record], "text", None, Path("data/pages"))[0].document
      {'text': 'a document'}
    """

    def __init__(
        self,
        source: Sequence[dict[str, Any]],
        document: str,
        negatives: str | None,
        folder: Path,
        outlines: Outlines | None = None,
        numbers: range | Sequence[int] | None = None,
        has_videos: bool = False,
    ) -> None:
        """Takes the opened records.

        Args:
          source: the records.
          document: "image", "video" or "text", what documents are.
          negatives: "image" or "text", what negatives are; None = there are none.
          folder: where relative paths of videos start.
          outlines: of the whole split; None = a data set of an earlier version, which has none.
          numbers: of the records in the whole split; None = these are all.
          has_videos: whether documents or queries may be videos.
        """
        self._source, self._document, self._negatives, self._folder = source, document, negatives, folder
        self._outlines, self._numbers = outlines, range(len(source)) if numbers is None else numbers
        self.has_videos = has_videos

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        try:
            record = self._source[index]
        except RuntimeError as error:
            raise ValueError(f"example {index} of the data is corrupt ({error}): convert the data again") from error
        negatives = record["negatives"] if self._negatives else ()
        text = {"text": record["query"].decode()} if record["query"] else {}
        is_video = self._document == "video"
        return Example(
            id=record["id"].decode(),
            query=text | self._video(record, "query_"),
            document=self._video(record) if is_video else _item(self._document, record[self._document]),
            negatives=tuple(_item(self._negatives, value) for value in negatives),
            source=record["source"].decode(),
            scores=tuple(float(score) for score in record.get("scores", ())),  # not in data sets of earlier versions
            hashes=() if (outline := self.outline(index)) is None else outline.hashes,
        )

    def outline(self, index: int) -> Outline | None:
        """Returns what is known of an example without reading it; None in a data set of an earlier version."""
        return None if self._outlines is None else self._outlines[self._numbers[index]]

    def _video(self, record: dict[str, Any], prefix: str = "") -> Item:
        """Returns the video in the column "video" or "query_video" as an item, {} if there is none."""
        video = record.get(prefix + "video", b"")
        if not len(video):
            return {}
        if isinstance(video, bytes):
            item: Item = {"video": Path(os.path.normpath(self._folder / video.decode()))}
        else:
            item = {"video": [bytes(frame) for frame in video]}
        if fps := record[prefix + "fps"]:
            item["fps"] = float(str(np.float32(fps)))  # as it was written: stored is its float32 neighbour
        if max_frames := record[prefix + "max_frames"]:
            item["max_frames"] = int(max_frames)
        return item


def _item(kind: str | None, value: bytes) -> Item:
    return {"image": bytes(value)} if kind == "image" else {"text": value.decode()}


def open_split(data_dir: str | Path, name: str, split: str = "train") -> Split:
    """Opens a split of a data set that `convert` wrote.

    Args:
      data_dir: folder of all data sets.
      name: of the data set.
      split: its name; slices of tensorflow-datasets such as "train[:100]" work.

    Returns:
      The split, a `Source`.

    Raises:
      FileNotFoundError: there is no such data set, or one of its files is missing.
      ValueError: there is no such split, a file is truncated or corrupt, or the data set has other features.

    Example:
      >>> import tempfile
      >>> import pyarrow as pa
      >>> from pyarrow import parquet
      >>> from train.data import convert
      >>> folder = Path(tempfile.mkdtemp())
      >>> parquet.write_table(pa.table({"query": ["q"], "text": ["a document"]}), folder / "train.parquet")
      >>> _ = convert(folder, "pairs", folder / "data", validation_ratio=0)
      >>> open_split(folder / "data", "pairs")[0].document
      {'text': 'a document'}
    """
    builder = _open(data_dir, name)
    features = builder.info.features
    document = next((key for key in ("image", "video", "text") if key in features), None)
    if document is None or not {"id", "query", "source"} <= set(features):
        raise ValueError(f"'{builder.data_path}' was not written by train.data: it has the features {sorted(features)}")
    negatives = None
    if "negatives" in features:
        negatives = "image" if _holds_images(features["negatives"]) else "text"
    decoders = {key: _Encoded() for key, feature in features.items() if _holds_images(feature)}
    part = split.partition("[")[0]
    if part not in builder.info.splits:
        raise ValueError(f"data set '{name}' has no split '{part}'; it has {sorted(builder.info.splits)}")
    info = builder.info.splits[part]
    for path, count in zip(info.filepaths, info.shard_lengths, strict=True):
        _check_file(Path(path), count)
    folder = (Path(data_dir) / name).resolve()
    outlines = _outlines(Path(builder.data_path), part, info.num_examples)
    records = builder.as_data_source(split, decoders=decoders)
    has_videos = bool({"video", "query_video"} & set(features))
    return Split(records, document, negatives, folder, outlines, _numbers(builder, split), has_videos)


def _outlines(folder: Path, split: str, examples: int) -> Outlines | None:
    """Returns the outlines of a split's examples, None where none are stored."""
    if not (file := outlines_file(folder, split)).is_file():
        return None
    outlines = Outlines.read([file])
    if len(outlines) != examples:
        raise ValueError(f"'{file}' is of {len(outlines)} examples, the split has {examples}: convert the data again")
    return outlines


def _numbers(builder: tfds.core.DatasetBuilder, split: str) -> list[int]:
    """Returns the numbers, in the whole split, of the records that a slice such as "train[:100]" has."""
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    return [i for part in parts for i in range(builder.info.splits[part.splitname].num_examples)[part.from_ : part.to]]


def split_fingerprint(data_dir: str | Path, name: str, split: str) -> str:
    """Returns what tells a split from others: its name and 16 hexadecimal digits of the data set's files.

    Args:
      data_dir: folder of all data sets.
      name: of a data set that `convert` wrote.
      split: of it.

    Raises:
      FileNotFoundError: there is no such data set.

    Example:
      >>> import tempfile
      >>> import pyarrow as pa
      >>> from pyarrow import parquet
      >>> from train.data import convert
      >>> folder = Path(tempfile.mkdtemp())
      >>> parquet.write_table(pa.table({"query": ["q"], "text": ["a document"]}), folder / "train.parquet")
      >>> _ = convert(folder, "pairs", folder / "data", validation_ratio=0)
      >>> split_fingerprint(folder / "data", "pairs", "train").startswith("train of ")
      True
    """
    folder = Path(_open(data_dir, name).data_path)
    return f"{split} of {files_fingerprint(sorted(file for file in folder.iterdir() if file.is_file()))}"


def split_names(data_dir: str | Path, name: str) -> list[str]:
    """Returns the names of a data set's splits.

    Args:
      data_dir: folder of all data sets.
      name: of a data set that `convert` wrote.

    Raises:
      FileNotFoundError: there is no such data set.
      ValueError: its metadata are corrupt.

    Example:
      >>> import tempfile
      >>> import pyarrow as pa
      >>> from pyarrow import parquet
      >>> from train.data import convert
      >>> folder = Path(tempfile.mkdtemp())
      >>> parquet.write_table(pa.table({"query": ["q"], "text": ["a document"]}), folder / "train.parquet")
      >>> _ = convert(folder, "pairs", folder / "data", validation_ratio=0)
      >>> split_names(folder / "data", "pairs")
      ['train']
    """
    return list(_open(data_dir, name).info.splits)


def _open(data_dir: str | Path, name: str) -> tfds.core.DatasetBuilder:
    versions = sorted(path.parent for path in (Path(data_dir) / name).glob("*/dataset_info.json"))
    if not versions:
        raise FileNotFoundError(
            f"no data set '{name}' in '{data_dir}': write it with `python -m train.data --source FOLDER_OR_HUB_ID "
            f"--name {name} --out {data_dir}`"
        )
    try:
        return tfds.builder_from_directory(versions[-1])
    except (ParseError, ValueError, KeyError) as error:
        raise ValueError(f"the metadata in '{versions[-1]}' are corrupt ({error}): convert the data again") from error


def _holds_images(feature: tfds.features.FeatureConnector) -> bool:
    return isinstance(getattr(feature, "feature", feature), tfds.features.Image)


def _check_file(path: Path, count: int) -> None:
    """Refuses a missing or truncated file, for which the library would return None or abort at the first batch."""
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is missing: convert the data again")
    try:
        reader = ArrayRecordReader(str(path))
        readable = reader.num_records() if reader.ok() else 0
        reader.close()
    except (RuntimeError, ValueError) as error:
        reason = str(error) or "no records"
        raise ValueError(f"'{path}' is truncated or corrupt ({reason}): convert the data again") from error
    if readable != count:
        raise ValueError(f"'{path}' is truncated: it has {readable} of {count} examples, convert the data again")
