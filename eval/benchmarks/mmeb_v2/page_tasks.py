"""Reads the sets of document tasks, and finds their pages in the archive of images."""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import vidore
from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.lazy_items import LazyItems
from eval.benchmarks.mmeb_v2.layouts import Pages
from eval.benchmarks.mmeb_v2.table import Task
from smart_jax.files import files_fingerprint, path_inside


def read_pages(task: Task, layout: Pages, root: Path) -> Benchmark:
    """Opens a set, with pages from the archive of images where it has them."""
    folder = set_folder(layout, root)
    if folder is None:
        raise FileNotFoundError(
            f"task {task.name}: '{root}' has no folder '{layout.vidore_set.repository}'. "
            f"`{how_to_get_set(layout, root)}` gets it"
        )
    benchmark = vidore.load(layout.vidore_set, folder)
    return dataclasses.replace(benchmark, corpus=_page_files(task, benchmark, layout, root / task.media[0]))


def _page_files(task: Task, benchmark: Benchmark, layout: Pages, images: Path) -> Sequence[Any]:
    """Returns the pages: files of the image archive where it has them, as in the reference; else those of the set."""
    if not images.is_dir():
        return benchmark.corpus
    name, pages = _short_name if layout.short_names else _png, benchmark.corpus
    files = [path_inside(images, name(page), f"task {task.name}: the id of a page") for page in benchmark.corpus_ids]
    there = [file.is_file() for file in files]
    if all(there):
        return [{"image": file} for file in files]
    if not any(there):
        return pages
    known = files_fingerprint(f for f, is_there in zip(files, there, strict=True) if is_there)
    source = f"{getattr(pages, 'source', None)} {known}"
    return LazyItems(len(files), lambda i: {"image": files[i]} if there[i] else pages[i], source=source)


def set_folder(layout: Pages, root: Path) -> Path | None:
    """Returns the folder of a set; None = it is not there."""
    places = (root, root / "visdoc-tasks" / "data", root / "visdoc-tasks")
    folders = (vidore.find(layout.vidore_set, place) for place in places)
    return next((folder for folder in folders if folder), None)


def how_to_get_set(layout: Pages, root: Path) -> str:
    """Returns the command that downloads a set."""
    return vidore.how_to_get(layout.vidore_set, root / layout.vidore_set.repository)


def _png(page: str) -> str:
    return f"{page}.png"


def _short_name(page: str) -> str:
    """Returns a page's id as the image archive shortens it: 50 characters, and 8 of its MD5 hash."""
    base, suffix = posixpath.splitext(page)
    return f"{base[:50]}_{hashlib.md5(page.encode()).hexdigest()[:8]}{suffix}"
