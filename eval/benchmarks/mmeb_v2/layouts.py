"""Layouts of MMEB-V2's annotations: which columns a task's records have, and what is made of them."""

from __future__ import annotations

import dataclasses

from eval.benchmarks.vidore import VidoreSet


@dataclasses.dataclass(frozen=True)
class Source:
    """Files of annotations.

    Attributes:
      repository: on the hub.
      files: in the repository; "x/test" stands for the parquet files of the split "test" in x, a name with a suffix for
        itself.
      local: the file's other place, in the MMEB-V2 folder, where VLM2Vec's code keeps a copy.
      subsets: names of subsets of one file each, which replace {subset}.
    """

    repository: str
    files: str
    local: str
    subsets: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Archive:
    """A part of the hub's TIGER-Lab/MMEB-V2.

    Attributes:
      files: in it; * stands for several pieces of one archive.
      folder: in which it is unpacked.
    """

    files: str
    folder: str


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Records of qry_inst, qry_text, qry_img_path; tgt_text and tgt_img_path list candidates, the first is right.

    Attributes:
      query_image: whether queries have images.
      candidates: "texts", "images" (each with its text, stripped, if it has one), or "images and texts" (with the texts
        as they are, if the first is not blank).
    """

    query_image: bool
    candidates: str


@dataclasses.dataclass(frozen=True)
class Classes:
    """Records of video_id and pos_text, the class.

    Attributes:
      candidates: column of candidates; None = all classes of `labels.toml`.
    """

    candidates: str | None = None


@dataclasses.dataclass(frozen=True)
class Captions:
    """Records of a caption, which is the query, and its video.

    Attributes:
      caption: column of the caption; of a list of captions the first counts.
      video: column of the name of the video.
      stem: whether that is a path, of which the file's name without its suffix counts.
    """

    caption: str
    video: str
    stem: bool = False


@dataclasses.dataclass(frozen=True)
class Questions:
    """Records of a question about a video and the options of its answer.

    Attributes:
      video: folder of the frames; {column} stands for a column's value.
      query: text of the query; {question} is the question, {options} all options.
      answer: what the column `answer` holds of the right option: its "number" from 0, its "letter" or its "text".
      separator: between two options.
      options: column of a list of options, or columns of one option each.
      choices: options of every question, where no column has them.
      letters: "added" to options as "(A) ", "taken off" candidates that are of the form "A. option", or "none".
    """

    video: str
    query: str
    answer: str
    separator: str = ""
    options: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    letters: str = "none"


@dataclasses.dataclass(frozen=True)
class Moments:
    """Records of query and video_path; the video's folder has folders of query, positive* and other candidates."""


@dataclasses.dataclass(frozen=True)
class Clips:
    """MomentSeeker: records of query, input_frames (a video, an image or nothing), positive_ and negative_frames."""


@dataclasses.dataclass(frozen=True)
class Pages:
    """A folder of queries, corpus and qrels, see `eval.benchmarks.vidore`.

    Attributes:
      vidore_set: how the folder is read.
      short_names: whether a page's file is named by the first 50 characters of its id and a hash, or as ID.png.
    """

    vidore_set: VidoreSet
    short_names: bool = False


Layout = Pairs | Classes | Captions | Questions | Moments | Clips | Pages
