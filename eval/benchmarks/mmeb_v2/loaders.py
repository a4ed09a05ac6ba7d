"""The tasks of `eval.benchmarks.mmeb_v2.table` as benchmarks, one loader per layout.

A folder holds them all: that of the hub's TIGER-Lab/MMEB-V2, its archives unpacked, for images and frames; and the
annotations, each in a copy of its hub repository, FOLDER/OWNER/NAME.

Candidates are named as in the reference, for the tie-breaking hash: by their text, their path, their path and text,
their video or their page. Clips of moment retrieval, there named by the absolute path of their frames, are named by
the path inside the MMEB-V2 folder, so that ties are broken alike on every machine. Queries are named by the number of
their record.

nDCG is trec_eval's. The reference pairs a query's pages with their grades through an unordered set, which can
exchange grades where a query has pages of several.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import posixpath
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from eval.benchmarks import vidore
from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.lazy_items import LazyItems
from eval.benchmarks.mmeb_v2 import records, table
from eval.benchmarks.mmeb_v2.media import Media
from eval.benchmarks.mmeb_v2.records import Record
from eval.benchmarks.mmeb_v2.table import CLIP_FRAMES, FRAMES, Task
from smart_jax.files import files_fingerprint

LABELS = Path(__file__).with_name("labels.toml")
Item = dict[str, Any]
_IMAGE_TOKEN = "<|image_1|>"  # that the annotations' instructions hold for models that need it

_logger = logging.getLogger(__name__)


def load(task: Task, root: str | Path) -> Benchmark:
    """Opens a task; images and frames are looked for, not read.

    Args:
      task: of the table.
      root: the MMEB-V2 folder.

    Raises:
      FileNotFoundError: annotations, images or frames are missing; the message says what to download and where it goes.
      ValueError: a record or column of the annotations is not as the task's layout says; the message names them.

    Example:
      >>> load(table.select(["CIRR"])[0], "no-such-folder")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      FileNotFoundError: task CIRR: ...
    """
    if isinstance(task.layout, table.Pages):
        benchmark = _pages(task, task.layout, Path(root))
    else:
        try:
            benchmark = _annotated(task, Path(root))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"task {task.name}: {error}") from error
        except ValueError as error:
            raise ValueError(f"task {task.name}: {error}") from error
    if len(benchmark.queries) != task.queries:
        _logger.warning(
            "task %s has %d queries, on the leaderboard %d: these are others, or not all",
            task.name,
            len(benchmark.queries),
            task.queries,
        )
    return benchmark


def lacking(task: Task, root: str | Path) -> list[str]:
    """Returns commands that get what a task lacks, as far as its files of annotations and folders of media show it.

    Example:
      >>> commands = lacking(table.select(["CIRR"])[0], "no-such-folder")
      >>> len(commands), commands[0].startswith("hf download")
      (2, True)
    """
    root = Path(root)
    if isinstance(task.layout, table.Pages):
        return [] if _set_folder(task.layout, root) else [_get_set(task.layout, root)]
    assert task.source is not None
    commands = [] if records.are_there(task.source, root) else [records.how_to_get(task.source, root)]
    if not any((root / name).is_dir() for name in task.media):
        commands.append(table.how_to_unpack(task.archive, root))
    return commands


class _Collector:
    """Collects queries, candidates and labels; of candidates of one name the first counts, as in the reference."""

    def __init__(self, task: Task):
        self.task = task
        self.corpus: dict[str, Item] = {}
        self._queries: list[Item] = []
        self._names: dict[str, str] = {}  # one object of each name, which a million candidates share
        self._candidates: dict[str, list[str]] = {}
        self._qrels: dict[str, dict[str, int]] = {}

    def add(self, query: Item, candidates: Iterable[str], labels: Sequence[str]) -> None:
        """Adds one query; its candidates and labels are names in `corpus`."""
        name = str(len(self._queries))
        self._queries.append(query)
        self._candidates[name] = list(dict.fromkeys(self._names.setdefault(c, c) for c in candidates))
        self._qrels[name] = dict.fromkeys(labels, 1)

    def benchmark(self) -> Benchmark:
        """Returns what was collected."""
        return Benchmark(
            name=self.task.name,
            queries=self._queries,
            query_ids=list(self._candidates),
            corpus=list(self.corpus.values()),
            corpus_ids=list(self.corpus),
            qrels=self._qrels,
            candidates=None if self.task.global_ranking else self._candidates,
            instruction=self.task.instruction,
        )


def _annotated(task: Task, root: Path) -> Benchmark:
    assert task.source is not None
    stored = records.read(task.source, root)
    first = next(stored)  # missing annotations are reported before missing images
    annotations = itertools.islice(itertools.chain([first], stored), task.limit)
    media, collector = Media(task, root), _Collector(task)
    match task.layout:
        case table.Pairs():
            _pairs(task.layout, annotations, media, collector)
        case table.Classes():
            _classes(task.layout, annotations, media, collector)
        case table.Captions():
            _captions(task.layout, annotations, media, collector)
        case table.Questions():
            _questions(task.layout, annotations, media, collector)
        case table.Moments():
            _moments(annotations, media, collector)
        case table.Clips():
            _clips(annotations, media, collector)
    media.check()
    return collector.benchmark()


def _pairs(layout: table.Pairs, annotations: Iterable[Record], media: Media, out: _Collector) -> None:
    add = {"texts": _text_candidates, "images": _image_candidates, "images and texts": _image_text_candidates}
    for record in annotations:
        query: Item = {"instruction": record.text("qry_inst").replace(_IMAGE_TOKEN, "").strip()}
        if layout.query_image:
            query |= {"text": record.text("qry_text", optional=True), "image": media.image(record.text("qry_img_path"))}
        else:
            query["text"] = record.filled("qry_text")
        names = add[layout.candidates](record, media, out.corpus)
        if not names:
            raise record.wrong("tgt_text" if layout.candidates == "texts" else "tgt_img_path", "at least one candidate")
        out.add(query, names, names[:1])


def _text_candidates(record: Record, media: Media, corpus: dict[str, Item]) -> list[str]:
    texts = record.texts("tgt_text")
    _add_texts(record, "tgt_text", texts, texts, corpus)
    return texts


def _image_candidates(record: Record, media: Media, corpus: dict[str, Item]) -> list[str]:
    paths = record.texts("tgt_img_path")
    for path, text in itertools.zip_longest(paths, record.texts("tgt_text")[: len(paths)], fillvalue=""):
        if path not in corpus:
            corpus[path] = _image_item(media, path, text.strip())
    return paths


def _image_text_candidates(record: Record, media: Media, corpus: dict[str, Item]) -> list[str]:
    paths, texts = record.texts("tgt_img_path"), record.texts("tgt_text")
    if len(paths) != len(texts):
        raise ValueError(f"{record.place}: {len(paths)} candidates in 'tgt_img_path', and {len(texts)} in 'tgt_text'")
    written = bool(texts) and bool(texts[0].strip())
    names = []
    for path, text in zip(paths, texts, strict=True):
        name = path + ":" + text.strip('"')
        names.append(name)
        if name not in corpus:
            corpus[name] = _image_item(media, path, text if written else "")
    return names


def _image_item(media: Media, path: str, text: str) -> Item:
    return {"image": media.image(path), "text": text} if text else {"image": media.image(path)}


def _add_texts(
    record: Record, column: str, names: Sequence[str], texts: Sequence[str], corpus: dict[str, Item]
) -> None:
    """Adds candidates that are texts alone."""
    for name, text in zip(names, texts, strict=True):
        if name not in corpus:
            if not text.strip():
                raise record.wrong(column, "candidates that are not empty")
            corpus[name] = {"text": text}


def _video(media: Media, name: str, count: int = FRAMES) -> Item:
    return {"video": media.frames(name, count), "max_frames": FRAMES}


@cache
def _labels() -> Mapping[str, Sequence[str]]:
    return tomllib.loads(LABELS.read_text(encoding="utf-8"))


def _classes(layout: table.Classes, annotations: Iterable[Record], media: Media, out: _Collector) -> None:
    column = layout.candidates
    for record in annotations:
        label = record.text("pos_text")
        names = record.texts(column) if column else [label]
        if column and label not in names:
            _logger.warning(
                "task %s: %s: 'pos_text' is not among the candidates of '%s', and counts as a miss, as in the "
                "reference: %r",
                out.task.name,
                record.place,
                column,
                label,
            )
        _add_texts(record, column or "pos_text", names, names, out.corpus)
        _add_texts(record, "pos_text", [label], [label], out.corpus)
        out.add(_video(media, record.name("video_id")), names, [label])
    if not column:
        for label in _labels()[out.task.name]:
            out.corpus.setdefault(label, {"text": label})


def _captions(layout: table.Captions, annotations: Iterable[Record], media: Media, out: _Collector) -> None:
    for record in annotations:
        name = record.name(layout.video)
        if layout.stem:
            name = PurePosixPath(name).stem
        if name not in out.corpus:
            out.corpus[name] = _video(media, name)
        out.add({"text": record.filled(layout.caption)}, [name], [name])


def _questions(layout: table.Questions, annotations: Iterable[Record], media: Media, out: _Collector) -> None:
    for record in annotations:
        options = list(layout.choices) or _options(layout, record)
        right = _right(layout, record, options)
        if layout.letters == "added":
            options = [f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(options)]
        texts = [_without_letter(option) for option in options] if layout.letters == "taken off" else options
        question = layout.query.format(question=record.text("question"), options=layout.separator.join(options))
        if layout.letters == "added":
            question = question.rstrip()
        _add_texts(record, layout.options[0] if layout.options else "question", options, texts, out.corpus)
        out.add({**_video(media, _folder(layout.video, record)), "text": question}, options, [options[right]])


def _options(layout: table.Questions, record: Record) -> list[str]:
    options = record.texts(layout.options[0]) if len(layout.options) == 1 else [record.text(c) for c in layout.options]
    if not options:
        raise record.wrong(layout.options[0], "at least one option")
    return options


def _right(layout: table.Questions, record: Record, options: Sequence[str]) -> int:
    """Returns the index of the right option: of several equal ones the last, as in the reference."""
    answer = record.name("answer")
    if layout.answer == "text":
        index = max((i for i, option in enumerate(options) if option == answer), default=-1)
    elif layout.answer == "letter":
        index = ord(answer) - ord("A") if len(answer) == 1 else -1
    else:
        index = int(answer) if answer.isdecimal() else -1
    if not 0 <= index < len(options):
        raise record.wrong("answer", f"the {layout.answer} of one of the options {list(options)}")
    return index


def _without_letter(option: str) -> str:
    """Returns "It rains" of "A. It rains."."""
    at = option.find(". ")
    return option if at < 0 else option[at:].strip(". ")


def _folder(template: str, record: Record) -> str:
    class Names(dict[str, str]):
        def __missing__(self, column: str) -> str:
            return record.name(column)

    return template.format_map(Names())


def _moments(annotations: Iterable[Record], media: Media, out: _Collector) -> None:
    folder = out.task.media[0]
    for record in annotations:
        video = PurePosixPath(record.text("video_path")).stem
        folders = media.folders(video)
        clips = [clip for clip in folders if clip != "query"]
        for clip in clips:
            if (name := f"{folder}/{video}/{clip}") not in out.corpus:
                out.corpus[name] = _video(media, f"{video}/{clip}", CLIP_FRAMES)
        right = [clip for clip in clips if clip.startswith("positive")]
        if folders and not right:
            raise ValueError(f"{record.place}: video '{video}' has no folder positive* among its clips {clips}")
        query = {**_video(media, f"{video}/query"), "text": record.filled("query")}
        out.add(query, *([f"{folder}/{video}/{clip}" for clip in part] for part in (clips, right)))


def _clips(annotations: Iterable[Record], media: Media, out: _Collector) -> None:
    folder = out.task.media[0]
    for record in annotations:
        query, asked = {"text": record.filled("query")}, record.text("input_frames", optional=True)
        if asked.endswith(".mp4"):
            query |= _video(media, _clip(asked))
        elif asked.endswith(".jpg"):
            query["image"] = media.image(f"query_{asked}")
        kind = next((key for key in ("video", "image") if key in query), "")
        query["instruction"] = table.CLIP_INSTRUCTIONS[kind]
        names: dict[str, list[str]] = {}
        for column in ("positive_frames", "negative_frames"):
            clips = [_clip(inner.text("output_path")) for inner in record.dicts(column)]
            names[column] = [f"{folder}/{clip}" for clip in clips]
            for name, clip in zip(names[column], clips, strict=True):
                if name not in out.corpus:
                    out.corpus[name] = _video(media, clip)
        if not names["positive_frames"]:
            raise record.wrong("positive_frames", "at least one clip")
        out.add(query, itertools.chain(*names.values()), names["positive_frames"])


def _clip(path: str) -> str:
    """Returns the folder of a video's frames: its path in one word."""
    return "video_frames/" + path.replace("/", "_").split(".mp4")[0]


def _pages(task: Task, layout: table.Pages, root: Path) -> Benchmark:
    folder = _set_folder(layout, root)
    if folder is None:
        raise FileNotFoundError(
            f"task {task.name}: '{root}' has no folder '{layout.vidore_set.repository}'. `{_get_set(layout, root)}` "
            "gets it"
        )
    benchmark = vidore.load(layout.vidore_set, folder)
    return dataclasses.replace(benchmark, corpus=_page_files(benchmark, layout, root / task.media[0]))


def _page_files(benchmark: Benchmark, layout: table.Pages, images: Path) -> Sequence[Any]:
    """Returns the pages: files of the image archive where it has them, as in the reference; else those of the set."""
    if not images.is_dir():
        return benchmark.corpus
    name, pages = _short_name if layout.short_names else _png, benchmark.corpus
    files = [images / name(page) for page in benchmark.corpus_ids]
    there = [file.is_file() for file in files]
    if all(there):
        return [{"image": file} for file in files]
    if not any(there):
        return pages
    known = files_fingerprint(f for f, is_there in zip(files, there, strict=True) if is_there)
    source = f"{getattr(pages, 'source', None)} {known}"
    return LazyItems(len(files), lambda i: {"image": files[i]} if there[i] else pages[i], source=source)


def _set_folder(layout: table.Pages, root: Path) -> Path | None:
    places = (root, root / "visdoc-tasks" / "data", root / "visdoc-tasks")
    folders = (vidore.find(layout.vidore_set, place) for place in places)
    return next((folder for folder in folders if folder), None)


def _get_set(layout: table.Pages, root: Path) -> str:
    return vidore.how_to_get(layout.vidore_set, root / layout.vidore_set.repository)


def _png(page: str) -> str:
    return f"{page}.png"


def _short_name(page: str) -> str:
    """Returns a page's id as the image archive shortens it: 50 characters, and 8 of its MD5 hash."""
    base, suffix = posixpath.splitext(page)
    return f"{base[:50]}_{hashlib.md5(page.encode()).hexdigest()[:8]}{suffix}"
