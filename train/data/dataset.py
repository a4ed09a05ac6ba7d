"""Training data: `python -m train.data` converts a source once, `open_split` and `Examples` read it.

    python -m train.data --source vidore/colpali_train_set --name colpali --out data

writes data/colpali, a tensorflow-datasets data set in ArrayRecord format with the splits train and validation; neither
writing nor reading needs tensorflow. See `train.data.parquet` for the layout of a source.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.json_format import ParseError

Item = dict[str, Any]  # what `smart_jax.inputs.multimodal.Preprocessor.row` takes


@dataclasses.dataclass(frozen=True)
class Example:
    """A query, a document that answers it, and documents that do not.

    Attributes:
      id: the source's row, as text.
      query: {"text": ...}, {"video": ...} or both.
      document: {"image": encoded bytes}, {"text": ...} or {"video": the path of a file, or frames as a list}; with a
        video, here and in the query, may be fps and max_frames.
      negatives: likewise, possibly none.
      source: where the source got the pair from; may be empty.
      scores: a teacher's, of the document and then of each negative, NaN for those that it has not scored; or empty.
    """

    id: str
    query: Item
    document: Item
    negatives: tuple[Item, ...] = ()
    source: str = ""
    scores: tuple[float, ...] = ()


def content_hash(item: Item) -> str:
    """Hex digest (128 bits) of an item's text, image bytes, and path or frames of a video.

    Equal documents of a batch are no negatives; a video is the same one however it is sampled, so fps and max_frames
    do not count.
    """
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(item.keys() - {"fps", "max_frames"}):
        for value in item[key] if isinstance(item[key], list) else [item[key]]:
            data = str(value).encode() if isinstance(value, str | Path) else value
            data = data if isinstance(data, bytes) else data.tobytes()  # an array or a Pillow image
            digest.update(f"{key}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


class Source(Protocol):
    """Random access to examples: a split on disk, or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class _Encoded(tfds.decode.SkipDecoding):
    """Images as the bytes they are stored in; the library's own class lacks the method for sequences."""

    def decode_batch_example_np(self, example_data: Any) -> list[bytes]:
        return list(example_data)


class Split:
    """A converted split; reads one example at a time from its ArrayRecord files."""

    def __init__(self, source: Sequence[dict[str, Any]], document: str, negatives: str | None, folder: Path) -> None:
        """`document` and `negatives` are "image", "video" or "text"; paths are relative to `folder`."""
        self._source, self._document, self._negatives, self._folder = source, document, negatives, folder

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
        )

    def _video(self, record: dict[str, Any], prefix: str = "") -> Item:
        """The video in the column "video" or "query_video", nothing if there is none."""
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
    """A split of a data set that `python -m train.data` wrote; the library's slices such as "train[:100]" work.

    Raises:
      FileNotFoundError: no such data set, or one of its files is missing.
      ValueError: no such split, a truncated or corrupt file, or a data set with other features.
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
    return Split(builder.as_data_source(split, decoders=decoders), document, negatives, folder)


def split_names(data_dir: str | Path, name: str) -> list[str]:
    """Of a data set that `python -m train.data` wrote; errors as of `open_split`."""
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
    """Refuses a missing or truncated file, for which the library would give None or abort at the first batch."""
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is missing: convert the data again")
    try:
        reader = ArrayRecordReader(str(path))
        found = reader.num_records() if reader.ok() else 0
        reader.close()
    except (RuntimeError, ValueError) as error:
        reason = str(error) or "no records"
        raise ValueError(f"'{path}' is truncated or corrupt ({reason}): convert the data again") from error
    if found != count:
        raise ValueError(f"'{path}' is truncated: it has {found} of {count} examples, convert the data again")


class Examples:
    """Iterator over batches of a source, shuffled anew each epoch; its position can be saved and restored.

    What is in batch k depends on `seed` only, not on the number of processes or workers; each process reads its own
    examples of it. What does not fill a batch at the end of an epoch is left out of that epoch, so no batch spans two
    epochs and none has an example twice.

    Args:
      source: `open_split(...)`, or a list of examples.
      batch_size: of the global batch, over all processes.
      seed: of the shuffling.
      epochs: to iterate over; None = without end.
      shuffle: off = the source's order, as for a validation split.
      process_index, process_count: this process's part; None = jax's.
      workers: processes that read; 0 = this one (two threads).

    Raises:
      ValueError: a batch of fewer than 2 examples has no negatives; or one that does not divide among the processes, or
        is larger than the source.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = None,
        shuffle: bool = True,
        process_index: int | None = None,
        process_count: int | None = None,
        workers: int = 0,
    ) -> None:
        index = jax.process_index() if process_index is None else process_index
        count = jax.process_count() if process_count is None else process_count
        _check_batch(len(source), batch_size, index, count)
        self.batches_per_epoch = len(source) // batch_size
        self._settings = {"examples": len(source), "batch_size": batch_size, "seed": seed, "shuffle": shuffle}
        self._workers = workers
        # Of numbers, not of examples: a process reads its own alone. Those are neighbours, so that the rows of the
        # global batch are in the same order however many processes there are.
        numbers = grain.MapDataset.range(len(source)).seed(seed)
        numbers = numbers.shuffle() if shuffle else numbers
        numbers = numbers[: self.batches_per_epoch * batch_size].batch(batch_size)
        size = batch_size // count
        own = slice(index * size, (index + 1) * size)
        self._batches = numbers.map(lambda batch: [source[i] for i in batch[own]]).repeat(epochs)
        self._start(0)

    def _start(self, position: int) -> None:
        self._position = position
        # A few batches ahead: the library's own default of 500 would hold gigabytes of page images.
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        dataset = self._batches[position:].to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # grain reads its own flags; outside of absl's app they keep their defaults
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        self._iterator = iter(dataset)

    def __iter__(self) -> Examples:
        return self

    def __next__(self) -> list[Example]:
        """The next batch's examples of this process."""
        batch = next(self._iterator)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Position after the last batch given out, of plain values that JSON can hold."""
        return {**self._settings, "batches": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on after the batch at which `get_state` was called.

        Raises:
          ValueError: the state is of other data or other settings, which are named.
        """
        changed = [
            f"{key}: {state.get(key)!r} then, {value!r} now"
            for key, value in self._settings.items()
            if state.get(key) != value
        ]
        position = state.get("batches")
        if changed or not isinstance(position, int) or position < 0:
            raise ValueError(
                f"the saved data position does not fit ({'; '.join(changed) or f'batches: {position!r}'}): resume with "
                "the data and settings of the first start, or start a new run"
            )
        self._start(position)


def _check_batch(examples: int, batch_size: int, index: int, count: int) -> None:
    if batch_size < 2:
        raise ValueError(f"batch_size={batch_size}: the other documents of a batch are the negatives, so it needs >= 2")
    if not 0 <= index < count:
        raise ValueError(f"process_index={index} of process_count={count}: expected 0 <= index < count")
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} does not divide among {count} processes: choose a multiple")
    if examples < batch_size:
        raise ValueError(f"batch_size={batch_size} exceeds the {examples} examples of the data: choose a smaller one")


def main(arguments: Sequence[str] | None = None) -> None:
    from train.data.convert import convert

    parser = argparse.ArgumentParser(
        prog="python -m train.data",
        description="Convert query-document pairs (parquet, Hugging Face layout) to a data set for training.",
    )
    parser.add_argument("--source", required=True, help="folder with parquet files, or hub id owner/name")
    parser.add_argument("--name", required=True, help="name of the data set, such as colpali")
    parser.add_argument("--out", required=True, help="folder of the data sets")
    parser.add_argument("--split", default="train", help="split of the source (default: %(default)s)")
    parser.add_argument("--subset", help="folder of the source, such as a language")
    parser.add_argument("--revision", help="revision of the hub data set")
    parser.add_argument("--max_negatives", type=int, help="keep at most so many of each row (default: all)")
    parser.add_argument("--validation_ratio", type=float, default=0.02, help="default: %(default)s; 0 = none")
    parser.add_argument("--seed", type=int, default=0, help="of the validation split (default: %(default)s)")
    parser.add_argument("--shards", type=int, help="files per split (default: by size)")
    parser.add_argument("--skip_unreadable", action="store_true", help="leave out rows without a readable document")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of this name")
    options = vars(parser.parse_args(arguments))
    try:
        result = convert(options.pop("source"), options.pop("name"), options.pop("out"), **options)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"train.data: {error}")
    counts = ", ".join(f"{split}: {count} examples" for split, count in result.examples.items())
    skipped = ", ".join(f"{count} rows ({reason})" for reason, count in result.skipped.items()) or "nothing"
    print(f"wrote {result.path} with {counts}; left out {skipped}")
