"""Reads annotations of video tasks."""

from __future__ import annotations

import itertools
import logging
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from eval.benchmarks.mmeb_v2.collector import Collector, Item, add_texts
from eval.benchmarks.mmeb_v2.layouts import Captions, Classes, Questions
from eval.benchmarks.mmeb_v2.media import Media
from eval.benchmarks.mmeb_v2.records import Record
from eval.benchmarks.mmeb_v2.table import CLIP_FRAMES, CLIP_INSTRUCTIONS, FRAMES

LABELS = Path(__file__).with_name("labels.toml")

_logger = logging.getLogger(__name__)


def read_classes(layout: Classes, annotations: Iterable[Record], media: Media, out: Collector) -> None:
    """Reads classes of videos."""
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
        add_texts(record, column or "pos_text", names, names, out.corpus)
        add_texts(record, "pos_text", [label], [label], out.corpus)
        out.add(_video(media, record.name("video_id")), names, [label])
    if not column:
        for label in _labels()[out.task.name]:
            out.corpus.setdefault(label, {"text": label})


@cache
def _labels() -> Mapping[str, Sequence[str]]:
    return tomllib.loads(LABELS.read_text(encoding="utf-8"))


def read_captions(layout: Captions, annotations: Iterable[Record], media: Media, out: Collector) -> None:
    """Reads captions as queries of videos."""
    for record in annotations:
        name = record.name(layout.video)
        if layout.stem:
            name = PurePosixPath(name).stem
        if name not in out.corpus:
            out.corpus[name] = _video(media, name)
        out.add({"text": record.filled(layout.caption)}, [name], [name])


def read_questions(layout: Questions, annotations: Iterable[Record], media: Media, out: Collector) -> None:
    """Reads questions about videos, and options as candidates."""
    for record in annotations:
        options = list(layout.choices) or _options(layout, record)
        right = _right(layout, record, options)
        if layout.letters == "added":
            options = [f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(options)]
        texts = [_without_letter(option) for option in options] if layout.letters == "taken off" else options
        question = layout.query.format(question=record.text("question"), options=layout.separator.join(options))
        if layout.letters == "added":
            question = question.rstrip()
        add_texts(record, layout.options[0] if layout.options else "question", options, texts, out.corpus)
        out.add({**_video(media, _folder(layout.video, record)), "text": question}, options, [options[right]])


def _options(layout: Questions, record: Record) -> list[str]:
    options = record.texts(layout.options[0]) if len(layout.options) == 1 else [record.text(c) for c in layout.options]
    if not options:
        raise record.wrong(layout.options[0], "at least one option")
    return options


def _right(layout: Questions, record: Record, options: Sequence[str]) -> int:
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


def read_moments(annotations: Iterable[Record], media: Media, out: Collector) -> None:
    """Reads descriptions of moments, and clips of the video as candidates."""
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


def read_clips(annotations: Iterable[Record], media: Media, out: Collector) -> None:
    """Reads MomentSeeker's queries and clips."""
    folder = out.task.media[0]
    for record in annotations:
        query: Item = {"text": record.filled("query")}
        asked = record.text("input_frames", optional=True)
        if asked.endswith(".mp4"):
            query |= _video(media, _clip(asked))
        elif asked.endswith(".jpg"):
            query["image"] = media.image(f"query_{asked}")
        kind = next((key for key in ("video", "image") if key in query), "")
        query["instruction"] = CLIP_INSTRUCTIONS[kind]
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


def _video(media: Media, name: str, count: int = FRAMES) -> Item:
    return {"video": media.frames(name, count), "max_frames": FRAMES}
