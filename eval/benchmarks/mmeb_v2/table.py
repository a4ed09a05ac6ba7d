"""The 78 tasks of MMEB-V2: what each reads, asks and is measured by. Facts only; `eval.benchmarks.mmeb_v2.loaders`
reads them.

Names, folders, columns, texts and settings were read from public code (github.com/QwenLM/Qwen3-VL-Embedding and its
fork in HanSolo9682/SMART; github.com/TIGER-AI-Lab/VLM2Vec) and data set cards, never from the sets themselves. The
files' names inside the hub's video repositories, and their columns' types, are inferred from code that reads them.

Where the codes differ, VLM2Vec's notes of 2026 (docs/mmebv2_reproduction, pull request 213) decide:
- ViDoSeek-page-fixed and MMLongBench-page-fixed, under these names, instead of the page sets before them;
- MomentSeeker with 1,602 rows, not 1,800; no English-only sets of ViDoRe V2;
- 64 frames of a video (VLM2Vec's older default: 8), fewer if fewer were saved, 8 of a candidate clip;
- images with a side below 28 pixels enlarged to 56 x 56;
- the instruction as the system turn of queries, none of candidates, and texts with their whitespace.
In what the notes leave open, the texts are Qwen's and SMART's, with which the leaderboard's figures were made:
instructions of video and document queries end in a period (VLM2Vec: a colon), no "Question:" before a question, a
blank between EgoSchema's question and its options. Of several positive clips of one moment all are relevant, as in
VLM2Vec (SMART: the last one listed).
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks import vidore
from eval.benchmarks.messages import quoted
from eval.benchmarks.mmeb_v2.layouts import (
    Archive,
    Captions,
    Classes,
    Clips,
    Layout,
    Moments,
    Pages,
    Pairs,
    Questions,
    Source,
)
from eval.benchmarks.vidore import VidoreSet

MODALITIES = {"image": "images", "video": "videos", "visdoc": "visual documents"}  # names for people
FRAMES = 64  # of a video, at most
CLIP_FRAMES = 8  # of a candidate of moment retrieval


@dataclasses.dataclass(frozen=True)
class Task:
    """One line of the table.

    Attributes:
      name: of the benchmark, in the tie-breaking hash and on the leaderboard.
      modality: a key of `MODALITIES`.
      category: as on the leaderboard.
      layout: how records are read, and the templates of queries and candidates.
      queries: how many the leaderboard has.
      media: folders of images or frames in the MMEB-V2 folder; the first one that is there is used.
      archive: which holds these folders.
      source: of the annotations; None = those of the layout.
      instruction: of the queries; None = in the records.
      global_ranking: whether queries rank all candidates, or only their own.
      limit: number of records that are used, from the first; None = all.

    Example:
      >>> task = select(["CIRR"])[0]
      >>> task.modality, task.metric, task.queries
      ('image', 'hit@1', 1000)
    """

    name: str
    modality: str
    category: str
    layout: Layout
    queries: int
    media: tuple[str, ...]
    archive: Archive
    source: Source | None = None
    instruction: str | None = None
    global_ranking: bool = False
    limit: int | None = None

    @property
    def metric(self) -> str:
        """The primary metric."""
        return "ndcg@5" if self.modality == "visdoc" else "hit@1"


# --- images ----------------------------------------------------------------------------------------------------------

_IMAGES = Archive("image-tasks/mmeb_v1.tar.gz", "image-tasks")
_TO_TEXT = Pairs(query_image=True, candidates="texts")
_TO_IMAGE = Pairs(query_image=False, candidates="images")
_IMAGE_TO_IMAGE = Pairs(query_image=True, candidates="images and texts")


def _image(category: str, layout: Layout, *names: str) -> list[Task]:
    return [
        Task(
            name=name,
            modality="image",
            category=category,
            layout=layout,
            queries=1000,
            media=("image-tasks", "image-tasks/MMEB"),
            archive=_IMAGES,
            source=Source("ziyjiang/MMEB_Test_Instruct", f"{name}/test", f"image-tasks/{name}/test"),
        )
        for name in names
    ]


_IMAGE_TASKS = [
    *_image("Classification", _TO_TEXT, "ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "Place365"),
    *_image("Classification", _TO_TEXT, "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211"),
    *_image("QA", _TO_TEXT, "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA"),
    *_image("QA", _TO_TEXT, "Visual7W", "ScienceQA", "VizWiz", "GQA", "TextVQA"),
    *_image("Retrieval", _TO_IMAGE, "VisDial"),
    *_image("Retrieval", _IMAGE_TO_IMAGE, "CIRR"),
    *_image("Retrieval", _TO_IMAGE, "VisualNews_t2i"),
    *_image("Retrieval", _TO_TEXT, "VisualNews_i2t"),
    *_image("Retrieval", _TO_IMAGE, "MSCOCO_t2i"),
    *_image("Retrieval", _TO_TEXT, "MSCOCO_i2t"),
    *_image("Retrieval", _IMAGE_TO_IMAGE, "NIGHTS"),
    *_image("Retrieval", _TO_IMAGE, "WebQA"),
    *_image("Retrieval", _IMAGE_TO_IMAGE, "FashionIQ"),
    *_image("Retrieval", _TO_IMAGE, "Wiki-SS-NQ"),
    *_image("Retrieval", _IMAGE_TO_IMAGE, "OVEN"),
    *_image("Retrieval", _TO_IMAGE, "EDIS"),
    *_image("Grounding", _IMAGE_TO_IMAGE, "MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"),
]

# --- videos ----------------------------------------------------------------------------------------------------------

_FRAMES = "video-tasks/frames"


def _classes(name: str, queries: int, instruction: str, repository: str = "", file: str = "") -> Task:
    repository = repository or name
    return Task(
        name=name,
        modality="video",
        category="Classification",
        layout=Classes(),
        queries=queries,
        media=(f"{_FRAMES}/video_cls/{name}",),
        archive=Archive(f"{_FRAMES}/video_cls.tar.gz", f"{_FRAMES}/video_cls"),
        source=Source(f"VLM2Vec/{repository}", "data/test.jsonl", f"video-tasks/data/{file or name.lower()}.jsonl"),
        instruction=instruction,
        global_ranking=True,
    )


_CHOOSE = (
    "Given a video and a question, select the most accurate answer from the provided candidates. Return only the exact "
    "text of your chosen answer."
)
_LETTERED = "{question}\nOptions:\n{options}"


def _questions(name: str, queries: int, layout: Questions, source: Source, *folders: str) -> Task:
    return Task(
        name=name,
        modality="video",
        category="QA",
        layout=layout,
        queries=queries,
        media=tuple(f"{_FRAMES}/{part}/{folder}" for folder in folders or (name,) for part in _QA_FOLDERS),
        archive=Archive(f"{_FRAMES}/video_qa.tar.gz-0*", _FRAMES),
        source=source,
        instruction=_CHOOSE,
    )


_QA_FOLDERS = ("video_qa", "video_qa/video_qa")
_MVBENCH = (
    *("episodic_reasoning", "action_sequence", "action_prediction", "action_antonym", "fine_grained_action"),
    *("unexpected_action", "object_existence", "object_interaction", "object_shuffle", "moving_direction"),
    *("action_localization", "scene_transition", "action_count", "moving_count", "moving_attribute", "state_change"),
    *("fine_grained_pose", "character_order", "egocentric_navigation", "counterfactual_inference"),
)


def _captions(name: str, queries: int, instruction: str, layout: Captions, source: Source) -> Task:
    return Task(
        name=name,
        modality="video",
        category="Retrieval",
        layout=layout,
        queries=queries,
        media=(
            f"{_FRAMES}/video_ret/data/ziyan/video_retrieval/{name}/frames",
            f"{_FRAMES}/video_ret/{name}",
        ),
        archive=Archive(f"{_FRAMES}/video_ret.tar.gz", f"{_FRAMES}/video_ret"),
        source=source,
        instruction=instruction,
        global_ranking=True,
    )


def _moments(name: str, queries: int, layout: Layout, file: str, instruction: str | None = None) -> Task:
    return Task(
        name=name,
        modality="video",
        category="Moment retrieval",
        layout=layout,
        queries=queries,
        media=(f"{_FRAMES}/video_mret/{name}",),
        archive=Archive(f"{_FRAMES}/video_mret.tar.gz", _FRAMES),
        source=Source(f"VLM2Vec/{name}", "data/test", f"video-tasks/data/{file}.jsonl"),
        instruction=instruction,
    )


_IN_VIDEO = "Find the clip that corresponds to the described scene in the given video."
CLIP_INSTRUCTIONS = {  # by what MomentSeeker's queries have beside their text
    "video": "Find the clip that corresponds to the given sentence and video segment.",
    "image": "Select the video clip that aligns with the given text and image.",
    "": "Find the clip that corresponds to the given text.",
}
_VIDEO_TASKS = [
    _classes("K700", 1000, "Recognize the category of the video content.", "Kinetics-700"),
    dataclasses.replace(
        _classes(
            "SmthSmthV2",
            1000,
            "What actions or object interactions are being performed by the person in the video?",
            file="ssv2",
        ),
        layout=Classes(candidates="neg_text"),
        media=(f"{_FRAMES}/video_cls/SSv2",),
        global_ranking=False,
        limit=1000,
    ),
    _classes("HMDB51", 1000, "What actions or objects interactions are the person in the video doing?"),
    _classes("UCF101", 1000, "What activities or sports are being performed by the person in the video?"),
    _classes("Breakfast", 433, "Recognize the breakfast type that the person is cooking in the video."),
    _questions(
        "MVBench",
        4000,
        Questions("{subset}/{video}", _LETTERED, "text", "\n", options=("candidates",), letters="added"),
        Source("VLM2Vec/MVBench", "json/{subset}.json", "video-tasks/data/mvbench/{subset}.json", _MVBENCH),
    ),
    _questions(
        "Video-MME",
        2700,
        Questions("{videoID}", "{question}\n{options}", "letter", "\n", options=("options",), letters="taken off"),
        Source("VLM2Vec/Video-MME", "videomme/test", "video-tasks/data/video-mme.jsonl"),
    ),
    _questions(
        "NExTQA",
        8564,
        Questions("{video}", _LETTERED, "number", "\n", options=("a0", "a1", "a2", "a3", "a4"), letters="added"),
        Source("VLM2Vec/NExTQA", "MC/test", "video-tasks/data/nextqa.jsonl"),
    ),
    _questions(
        "EgoSchema",
        500,
        Questions("{video_idx}", "{question} {options}", "number", " ", options=("option",), letters="taken off"),
        Source("VLM2Vec/EgoSchema", "Subset/test", "video-tasks/data/egoschema.jsonl"),
        "egoschema",
        "EgoSchema",
    ),
    _questions(
        "ActivityNetQA",
        1000,
        Questions("v_{video_name}", "{question}? (A) yes; (B) no.", "text", choices=("yes", "no")),
        Source("VLM2Vec/ActivityNetQA", "data/test", "video-tasks/data/activitynetqa.jsonl"),
    ),
    _captions(
        "DiDeMo",
        1004,
        "Find a video that includes the following described scenes.",
        Captions("caption", "video", stem=True),
        Source("VLM2Vec/DiDeMo", "didemo_test.json", "video-tasks/data/didemo.jsonl"),
    ),
    _captions(
        "MSR-VTT",
        1000,
        "Find a video that contains the following visual content.",
        Captions("caption", "video_id"),
        Source("VLM2Vec/MSR-VTT", "msrvtt_test_1k.json", "video-tasks/data/msr-vtt.jsonl"),
    ),
    _captions(
        "MSVD",
        670,
        "Find the video snippet that corresponds to the given summary.",
        Captions("caption", "video_id"),
        Source("VLM2Vec/MSVD", "msvd_test.json", "video-tasks/data/msvd.jsonl"),
    ),
    _captions(
        "VATEX",
        4478,
        "Select a video that fits the description provided.",
        Captions("enCap", "videoID"),
        Source("VLM2Vec/VATEX", "vatex_test/test", "video-tasks/data/vatex.jsonl"),
    ),
    _captions(
        "YouCook2",
        3179,
        "Find a video that demonstrates the following action while making a recipe.",
        Captions("sentence", "id"),
        Source("lmms-lab/YouCook2", "data/val", "video-tasks/data/youcook2-val.jsonl"),
    ),
    _moments("QVHighlight", 1083, Moments(), "qvhighlight", _IN_VIDEO),
    _moments("Charades-STA", 727, Moments(), "charades_sta", _IN_VIDEO),
    _moments("MomentSeeker", 1602, Clips(), "momentseeker_1k6"),
]

# --- visual documents ------------------------------------------------------------------------------------------------

_VIDORE = {
    **{"ViDoRe_arxivqa": 500, "ViDoRe_docvqa": 451, "ViDoRe_infovqa": 494, "ViDoRe_tabfquad": 280},
    **{"ViDoRe_tatdqa": 1646, "ViDoRe_shiftproject": 100},
    **{"ViDoRe_syntheticDocQA_artificial_intelligence": 100, "ViDoRe_syntheticDocQA_energy": 100},
    **{"ViDoRe_syntheticDocQA_government_reports": 100, "ViDoRe_syntheticDocQA_healthcare_industry": 100},
    **{"ViDoRe_esg_reports_human_labeled_v2": 52, "ViDoRe_biomedical_lectures_v2_multilingual": 640},
    **{"ViDoRe_economics_reports_v2_multilingual": 232, "ViDoRe_esg_reports_v2_multilingual": 228},
}
_VISRAG = {"ArxivQA": 816, "ChartQA": 63, "MP-DocVQA": 591, "SlideVQA": 556, "InfoVQA": 718, "PlotQA": 863}
_OOD = {
    **{"ViDoSeek-page-fixed": ("ViDoSeek-page-fixed", 1142), "ViDoSeek-doc": ("ViDoSeek", 1142)},
    **{"MMLongBench-page-fixed": ("MMLongBench-page-fixed", 838), "MMLongBench-doc": ("MMLongBench-doc", 838)},
}


def _pages(category: str, layout: Pages, queries: int, images: str = "") -> Task:
    return Task(
        name=layout.vidore_set.name,
        modality="visdoc",
        category=category,
        layout=layout,
        queries=queries,
        media=(f"visdoc-tasks/images/{images or layout.vidore_set.name}",),
        archive=Archive("visdoc-tasks/visdoc-tasks.images.tar.gz", "visdoc-tasks"),
        instruction=vidore.INSTRUCTION,
        global_ranking=True,
    )


_SETS = {entry.name: entry for entry in vidore.SETS}
_PAGE_TASKS = [
    *(
        _pages("ViDoRe V1", Pages(_SETS[name]), queries)
        if "v1" in _SETS[name].versions
        else _pages("ViDoRe V2", Pages(_SETS[name]), queries, name.removeprefix("ViDoRe_"))
        for name, queries in _VIDORE.items()
    ),
    *(
        _pages(
            "VisRAG",
            Pages(VidoreSet(f"VisRAG_{name}", f"openbmb/VisRAG-Ret-Test-{name}", (), split="train"), short_names=True),
            queries,
        )
        for name, queries in _VISRAG.items()
    ),
    *(
        _pages("OOD", Pages(VidoreSet(name, f"VLM2Vec/{repository}", ())), queries)
        for name, (repository, queries) in _OOD.items()
    ),
]

TASKS = (*_IMAGE_TASKS, *_VIDEO_TASKS, *_PAGE_TASKS)


def select(names: Sequence[str] = (), modalities: Sequence[str] = ()) -> list[Task]:
    """Returns tasks of the table, in its order.

    Args:
      names: of tasks; none = all of the modalities.
      modalities: keys of `MODALITIES`; none = all.

    Raises:
      ValueError: an unknown name or modality, or a task of another modality.

    Example:
      >>> [task.name for task in select(["K700", "CIRR"])], len(select(modalities=["visdoc"]))
      (['CIRR', 'K700'], 24)
    """
    if unknown := [m for m in modalities if m not in MODALITIES]:
        raise ValueError(f"unknown modalities {quoted(unknown)}: use some of {', '.join(MODALITIES)}")
    table = {task.name: task for task in TASKS}
    if strangers := [name for name in names if name not in table]:
        raise ValueError(f"unknown tasks {quoted(strangers)}: use some of {', '.join(table)}")
    of = [task for task in TASKS if not modalities or task.modality in modalities]
    if others := [name for name in names if table[name] not in of]:
        raise ValueError(f"{quoted(others)} are no {', '.join(modalities)} tasks: leave the modality out")
    return [task for task in of if not names or task.name in names]


def groups() -> dict[str, list[Task]]:
    """Returns which tasks are averaged, by name: all, those of each modality, and those of each of its categories.

    The second group is the paper's own (SMART, arXiv:2605.24938): its 41 retrieval tasks, of 12 sets of images, 5 of
    videos and 24 of visual documents.

    Example:
      >>> {name: len(tasks) for name, tasks in groups().items()}["MMEB-V2, videos"]
      18
    """
    retrieval = [task for task in TASKS if task.category == "Retrieval" or task.modality == "visdoc"]
    by_name = {"MMEB-V2": list(TASKS), "MMEB-V2, 41 retrieval tasks": retrieval}
    for modality, title in MODALITIES.items():
        tasks = [task for task in TASKS if task.modality == modality]
        by_name[f"MMEB-V2, {title}"] = tasks
        for category in dict.fromkeys(task.category for task in tasks):
            by_name[f"MMEB-V2, {title}, {category}"] = [task for task in tasks if task.category == category]
    return by_name


def how_to_unpack(archive: Archive, root: str | Path) -> str:
    """Returns the commands that put a part of the hub's TIGER-Lab/MMEB-V2 into its folder."""
    folder = shlex.quote(str(root))  # not the whole path: * stays a pattern
    get = f"hf download --repo-type dataset TIGER-Lab/MMEB-V2 --include '{archive.files}' --local-dir {folder}"
    target = f"{folder}/{archive.folder}"
    return f"{get} && mkdir -p {target} && cat {folder}/{archive.files} | tar -xzf - -C {target}"
