"""Query-document pairs in a folder, or a hub data set, of parquet files, read a few records at a time.

The layout is that of the ColPali training set, which the paper trains on (arXiv:2605.24938): a record is a pair, with
the column `query` (string) and one for the document: `image` (struct{bytes, path}, or binary), `video` or `text`.
Optional columns are `negatives` (a list of images or of strings), `scores` (a list of numbers) and `source` (string);
others are not read. Where documents are images and records have an `id` (string), strings in `negatives` are the ids of
other records, whose documents are meant (as in llamaindex/vdr-multilingual-train); a record without a query is there
for such negatives only.

`scores` are a teacher's, for distillation: the document's first and then one for each negative. There is null in the
list where the teacher has not scored a document, and null or an empty list where it has scored none of the record.

A video is the path of its file (string, or struct with `path`), or its frames (a list of images, or of their paths).
The files of images are read, those of videos stay where they are. Files are in the folder, and their paths relative to
it; videos may be in another folder that the caller names (`video_folder`), and their paths absolute. Beside `video`
there may be `fps` and `max_frames`. The query may hold a video, too: `query_video`, `query_fps`, `query_max_frames`,
with null in `query` where there is no text, and null in `query_video` where there is no video.

Files are read one row group at a time, so memory does not grow with the source.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from smart_jax.files import download, path_inside
from smart_jax.inputs import check_sampling, check_video_file, open_image
from smart_jax.tables import is_binary, is_list, is_number, is_text, open_parquet, read_in_order

LARGEST = float(np.finfo(np.float32).max)  # of a score
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLIT_NAME = re.compile(r"(?:^|[/_.-])(train|test|validation|valid|val|dev)(?=[_.-])")


def find_source(source: str | Path, revision: str | None = None, subset: str | None = None) -> Path:
    """Returns the folder of a source, or of its subset, downloaded where it is the hub's; raises as `convert`."""
    if (folder := Path(source)).is_dir():
        return _subset(folder, subset)
    name = str(source)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"'{name}' is not a folder: give one with parquet files, or a hub id 'owner/name'")
    files = "*.parquet" if subset is None else f"{subset}/*.parquet"
    folder = download(name, kind="dataset", revision=revision, patterns=[files])
    return _subset(folder, subset)


def _subset(folder: Path, subset: str | None) -> Path:
    if subset is None or (folder / subset).is_dir():
        return folder / (subset or "")
    names = sorted({str(file.parent.relative_to(folder)) for file in folder.rglob("*.parquet")})
    raise FileNotFoundError(f"'{folder}' has no subset '{subset}'; there are parquet files in {names}")


class _Layout(NamedTuple):
    document: str
    negatives: str | None
    videos: dict[str, str]
    scores: bool
    columns: list[str]


class ParquetFolder:
    """Records of a split's parquet files, in order.

    Attributes:
      root: the folder.
      files: files of the split.
      document: "image", "video" or "text", the column of the documents.
      negatives: "image", "text" or "id", what the column `negatives` lists; None = there is no such column.
      videos: "path" or "frames", what each of the columns `video` and `query_video` that exist holds.
      has_scores: whether there is a column `scores`.
    """

    def __init__(self, root: Path, split: str, *, videos: bool = True, video_folder: str | Path | None = None) -> None:
        """Looks at every file's schema, so that a bad source fails before anything is written; raises as `convert`.

        Args:
          root: the folder.
          split: name of the split, which the files' names tell.
          videos: whether the files of videos are there; those of the hub are not.
          video_folder: folder of videos that have absolute paths; None = they are in `root`, too.
        """
        self.root, self.files = root, _split_files(root, split)
        self._video_folder = root if video_folder is None else Path(video_folder)
        self._counts: dict[Path, int] = {}
        layouts = {file: self._layout(file) for file in self.files}
        self.document, self.negatives, self.videos, self.has_scores, self._columns = layouts[self.files[0]]
        for file, layout in layouts.items():
            if layout != layouts[self.files[0]]:
                raise ValueError(
                    f"'{file}' has other columns than '{self.files[0]}': {layout.columns} and {self._columns}"
                )

        if "path" in self.videos.values() and not videos:
            raise ValueError(
                f"'{root}' has videos by path, and their files are not downloaded with it: get the whole data set "
                "(hf download --repo-type dataset NAME --local-dir FOLDER) and pass that folder"
            )

    def _layout(self, file: Path) -> _Layout:
        with open_parquet(file) as parquet:
            schema = parquet.schema_arrow
            self._counts[file] = parquet.metadata.num_rows
        document = next((column for column in ("image", "video", "text") if column in schema.names), None)
        if "query" not in schema.names or document is None:
            missing = "'query'" if "query" not in schema.names else "'image' (or 'video' or 'text')"
            raise ValueError(f"'{file}' has no column {missing}; its columns are {schema.names}")
        if not is_text(schema.field("query").type):
            raise ValueError(f"'{file}': column 'query' is {schema.field('query').type}, expected string")
        if document != "video" and _kind(schema.field(document).type) != document:
            expected = "struct{bytes, path} or binary" if document == "image" else "string"
            raise ValueError(f"'{file}': column '{document}' is {schema.field(document).type}, expected {expected}")
        negatives = None
        if "negatives" in schema.names and not pa.types.is_null(kind := schema.field("negatives").type):
            negatives = _kind(kind.value_type) if is_list(kind) else None
            if negatives is None:
                raise ValueError(f"'{file}': column 'negatives' is {kind}, expected a list of images or of strings")
            has_ids = "id" in schema.names and is_text(schema.field("id").type)
            negatives = "id" if (document, negatives, has_ids) == ("image", "text", True) else negatives
        scores = "scores" in schema.names and not pa.types.is_null(kind := schema.field("scores").type)
        if scores and not (is_list(kind) and is_number(kind.value_type)):
            raise ValueError(f"'{file}': column 'scores' is {kind}, expected a list of numbers")
        has_source = "source" in schema.names and is_text(schema.field("source").type)
        videos, sampling = _videos(schema, document, file)
        columns = list(dict.fromkeys(["query", document, *videos, *sampling]))
        columns += ["negatives"] * bool(negatives) + ["id"] * (negatives == "id") + ["scores"] * scores
        columns += ["source"] * has_source
        return _Layout(document, negatives, videos, scores, columns)

    def __len__(self) -> int:
        return self.count(self.files)

    def __iter__(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yields as `read` all records."""
        return self.read(self.files)

    def count(self, files: Sequence[Path]) -> int:
        """Returns the number of records of some of the files."""
        return sum(self._counts[file] for file in files)

    def read(self, files: Sequence[Path]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Yields, of some of the files, each record's number over all files, a name for messages, and its columns."""
        for file in files:
            first = self.count(self.files[: self.files.index(file)])
            for in_file, record in enumerate(read_in_order(file, self._columns)):
                yield first + in_file, f"row {in_file} of '{file}'", record

    def image(self, value: Any) -> bytes:
        """Returns the encoded bytes of an image column's value; raises ValueError where they are no readable image."""
        data = value
        if isinstance(value, dict):
            data = value.get("bytes")
            if data is None and value.get("path"):
                path = path_inside(self.root, value["path"], "has no image bytes, and")
                if not path.is_file():
                    raise ValueError(f"has no image bytes, and '{value['path']}' is no file in '{self.root}'")
                data = path.read_bytes()
        if not data:
            raise ValueError("has no image")
        try:
            with open_image(io.BytesIO(data)) as image:  # the header; Pillow's guard against decompression bombs is on
                image.size  # noqa: B018
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"has {len(data)} bytes that are no readable image ({error})") from error
        return data

    def scores(self, record: dict[str, Any], where: str) -> list[float]:
        """Returns a teacher's scores of a record's document and negatives, NaN for null; [] where it has none.

        Raises:
          ValueError: there are not as many as documents, or one is no finite float32; the message says `where`.
        """
        scores, documents = record["scores"] or [], 1 + len(record.get("negatives") or [])
        if scores and len(scores) != documents:
            raise ValueError(
                f"{where} has {len(scores)} scores, expected {documents}, the document's and one for each of its "
                f"{documents - 1} negatives: score them all, with null where there is no score"
            )
        bad = [score for score in scores if score is not None and not abs(score) <= LARGEST]
        if bad:
            raise ValueError(f"{where} has the score {bad[0]}: scores are finite numbers (float32), or null")
        return [math.nan if score is None else float(score) for score in scores]

    def video(self, column: str, record: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the video in a column of a record, and how to sample it; None = there is no video.

        Returns:
          `video`, the path of an existing file as the record has it, or a list of frames as encoded bytes; and `fps`
          and `max_frames` where the record has them.

        Raises:
          ValueError: the video cannot be used; a path that leaves the folder is refused.
          ImportError: PyAV, which looks into the file, is not installed.
        """
        value = self._value(column, record)
        if not value:
            return None
        prefix = column.removesuffix("video")
        item = {key: x for key in ("fps", "max_frames") if (x := record.get(prefix + key)) is not None}
        try:
            check_sampling(item.get("fps", 1), item.get("max_frames", 2))
            if self.videos[column] == "path":
                self._check_file(value)
            else:
                value = [self.image({"path": frame} if isinstance(frame, str) else frame) for frame in value]
        except (OSError, ValueError) as error:
            raise ValueError(f"has a {column.replace('_', ' ')} that cannot be used: {error}") from error
        return {"video": value, **item}

    def has_video(self, column: str, record: dict[str, Any]) -> bool:
        """Returns whether a record has a video in a column."""
        return bool(self._value(column, record))

    def _value(self, column: str, record: dict[str, Any]) -> Any:
        """Returns path or frames; empty or None where there is no video."""
        value = record.get(column)
        return value["path"] if isinstance(value, dict) else value

    def _check_file(self, path: str) -> None:
        absolute = Path(path).is_absolute()
        folder = self._video_folder if absolute else self.root
        remedy = "name the folder of the videos (video_folder, --video_folder), or copy them into that of the files"
        check_video_file(path_inside(folder, path, "it", absolute=absolute, remedy=remedy))


def _split_files(root: Path, split: str) -> list[Path]:
    files = sorted(root.glob("data/*.parquet")) or sorted(root.glob("*.parquet"))
    if not files:
        nested = sorted({str(file.parent.relative_to(root)) for file in root.rglob("*.parquet")})
        hint = f"; there are some in {nested}: pass that folder" if nested else ""
        raise FileNotFoundError(f"no parquet files in '{root}' or '{root / 'data'}'{hint}")
    names = {file: match[1] if (match := _SPLIT_NAME.search(file.name)) else "train" for file in files}
    chosen = [file for file in files if names[file] == split]
    if not chosen:
        raise FileNotFoundError(f"'{root}' has no split '{split}'; it has {sorted(set(names.values()))}")
    return chosen


def _videos(schema: pa.Schema, document: str, file: Path) -> tuple[dict[str, str], list[str]]:
    """Returns what the columns of videos hold, and the columns that say how to sample them."""
    videos, sampling = {}, []
    for column in ("video", "query_video"):
        if column not in schema.names or (column == "video" and document != "video"):
            continue
        kind = schema.field(column).type
        if is_list(kind) and _kind(kind.value_type) is not None:
            videos[column] = "frames"
        elif is_text(kind) or (pa.types.is_struct(kind) and kind.get_field_index("path") >= 0):
            videos[column] = "path"
        else:
            raise ValueError(
                f"'{file}': column '{column}' is {kind}, expected string (a path), struct{{path, ...}} or a list of "
                "images or of their paths"
            )
        for key, fits in (("fps", is_number), ("max_frames", pa.types.is_integer)):
            name = column.removesuffix("video") + key
            if name not in schema.names or pa.types.is_null(schema.field(name).type):
                continue
            if not fits(schema.field(name).type):
                raise ValueError(f"'{file}': column '{name}' is {schema.field(name).type}, expected a number")
            sampling.append(name)
    return videos, sampling


def _kind(kind: pa.DataType) -> str | None:
    if is_text(kind):
        return "text"
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return "image" if is_struct or is_binary(kind) else None
