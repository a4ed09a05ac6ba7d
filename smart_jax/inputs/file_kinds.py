"""Kinds of files by their suffix: images, audio, and what is to be done with those that are neither."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".jp2", ".avif"),
)
# What Pillow calls the formats that are opened, whatever a file's name is.
IMAGE_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF"),
    *("PPM", "TGA", "ICO", "JPEG2000", "AVIF"),
)
AUDIO_SUFFIXES = (
    *(".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac"),
    *(".aif", ".aiff", ".aifc", ".caf", ".w64", ".amr", ".wma", ".mka", ".weba"),
)
_VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
_TEXT_SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".py", ".tex")
_OFFICE_SUFFIXES = (".doc", ".docx", ".ppt", ".pptx", ".xls", ".xlsx", ".odt", ".odp", ".ods", ".epub")
LONGEST_PATH = 1024  # characters of a text that is looked for among the files


def not_an_image(path: str | Path) -> str | None:
    """Returns what to do with a file that is certainly no image, told by its suffix; None = it may be one.

    Example:
      >>> not_an_image("report.pdf")
      'smart_jax.Index.add takes PDFs, page by page; here pass images of the pages'
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".pdf":
        return "smart_jax.Index.add takes PDFs, page by page; here pass images of the pages"
    if suffix in AUDIO_SUFFIXES:
        return f"pass {{'audio': '{path}'}}"
    if suffix in _VIDEO_SUFFIXES:
        return f"pass {{'video': '{path}'}}"
    if suffix in _TEXT_SUFFIXES:
        return f"pass what it says, {{'text': Path('{path}').read_text()}}"
    if suffix in _OFFICE_SUFFIXES:
        return "save it as PDF, which smart_jax.Index.add takes, or as images"
    return "pass the files in it, or 'FOLDER/*.png' to smart_jax.Index.add" if os.path.isdir(path) else None


def is_file_of_another_kind(text: str) -> bool:
    """Returns whether a text without an image's suffix is the path of a file, or, with a slash in it, of a folder.

    Example:
      >>> is_file_of_another_kind("revenue by region")
      False
    """
    if len(text) > LONGEST_PATH or "\n" in text:
        return False
    return os.path.isfile(text) or (os.sep in text and os.path.isdir(text))
