"""Reads annotations of image tasks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from eval.benchmarks.mmeb_v2.collector import Collector, Item, add_texts
from eval.benchmarks.mmeb_v2.layouts import Pairs
from eval.benchmarks.mmeb_v2.media import Media
from eval.benchmarks.mmeb_v2.records import Record

_IMAGE_TOKEN = "<|image_1|>"  # that the records' instructions hold for models that need it


def read_pairs(layout: Pairs, annotations: Iterable[Record], media: Media, out: Collector) -> None:
    """Reads queries with candidates of texts, images or both."""
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
    add_texts(record, "tgt_text", texts, texts, corpus)
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
