"""The command that says which models are supported, and what a folder holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from smart_jax.cli.options import Json
from smart_jax.cli.output import print_facts, print_json, print_table, size_of


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="FOLDER", help="A folder, or tiny, or minilm.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the supported models, or say what a folder holds."""
    if name is not None:
        facts = describe(name)
        if as_json:
            print_json(facts)
        else:
            shown = {"weights": size_of(facts["weights"])} if "weights" in facts else {}
            print_facts({key: value for key, value in {**facts, **shown}.items() if value is not None})
        return
    rows = [*_named(), *_published()]
    if as_json:
        print_json({"models": rows})
    else:
        print_table(("name", "model_type", "reads", "pooling", "where"), [list(row.values()) for row in rows])


def describe(name: str) -> dict[str, Any]:
    """Returns what a folder, or a model by its name, holds; weights are not read.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: its architecture is not supported, or a file is corrupt.
    """
    from smart_jax.files import Checkpoint, named_folder, other_folder, resolve_base
    from smart_jax.inputs import open_preprocessor
    from smart_jax.models import load_config

    folder = Path(name) if Path(name).is_dir() else named_folder(name)
    if folder is None:
        raise FileNotFoundError(
            f"'{name}' is no folder here: `smart-jax models` lists names, and a hub id is downloaded by "
            "`hf download`, whose answer is the folder"
        )
    if not (folder / "config.json").is_file() and (held := other_folder(folder)) is not None:
        return {"folder": str(folder), "kind": held.removeprefix("it holds ").partition(":")[0], "opened_by": held}
    checkpoint = Checkpoint(folder, resolve_base(folder))
    config = load_config(checkpoint)
    preprocessor = open_preprocessor(checkpoint, config)
    files = sorted(checkpoint.weights.glob("*.safetensors"))
    return {
        "folder": str(folder),
        "kind": "a model",
        "model_type": config.model_type,
        "preset": preprocessor.preset,
        "reads": list(preprocessor.modalities),
        "pooling": preprocessor.settings.pooling or getattr(config, "pooling", None),
        "instruction": preprocessor.settings.default_instruction,
        "query_instruction": preprocessor.settings.query_instruction,
        "max_tokens": preprocessor.length_buckets[-1],
        "width": config.state_width,
        "blocks": config.text.num_hidden_layers,
        "token_width": config.token_dim or config.state_width,
        "parameters": sum(map(_parameters, files)),
        "weights": sum(file.stat().st_size for file in files),
        "adapter": None if checkpoint.adapter is None else str(checkpoint.adapter),
    }


def _parameters(file: Path) -> int:
    """Returns the number of parameters in a safetensors file, by its header."""
    from smart_jax.files import read_header

    return sum(math.prod(entry.shape) for entry in read_header(file)[0].values())


def _named() -> list[dict[str, Any]]:
    """Returns the models that go by a name."""
    from smart_jax.files import PACKAGED, named_folder

    rows = []
    for name in ("tiny", *PACKAGED):
        remedy = "embedded" if name not in PACKAGED else PACKAGED[name].remedy
        folder = named_folder(name)
        facts = describe(name) if folder is not None else {"model_type": "bert", "reads": ["text"], "pooling": "mean"}
        where = remedy if folder is None or name not in PACKAGED else f"installed, {PACKAGED[name].distribution}"
        rows.append({"name": name, **{key: facts[key] for key in ("model_type", "reads", "pooling")}, "where": where})
    return rows


def _published() -> list[dict[str, Any]]:
    """Returns the presets of published models, and sentence-transformers, whose folders say all that a preset says."""
    from smart_jax.inputs import PRESETS

    rows = []
    for name, preset in PRESETS.items():
        video = [] if preset.settings.video == "none" else ["video"]
        rows.append(
            {
                "name": name,
                "model_type": list(preset.model_types),
                "reads": ["text", "image", *video],
                "pooling": preset.settings.pooling,
                "where": "a folder or a hub id",
            }
        )
    text = {"reads": ["text"], "pooling": "mean or cls", "where": "a folder or a hub id"}
    return [*rows, {"name": "sentence-transformers", "model_type": ["bert"], **text}]
