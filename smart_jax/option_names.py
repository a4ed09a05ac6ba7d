"""Options by the names that other libraries give them, or mistyped: the error says which option is meant."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

# By another library's name: the option here; where there is none, what does the same.
ELSEWHERE = {
    "top_k": "k",
    "topk": "k",
    "limit": "k",
    "n_results": "k",
    "filter": "where",
    "filters": "where",
    "torch_dtype": "dtype",
    "precision": "dtype",
    "prompt": "instruction",
    "prompt_name": "instruction",
    "show_progress_bar": "progress",
    "show_progress": "progress",
    "model_name": "name_or_path",
    "model_name_or_path": "name_or_path",
    "model_path": "name_or_path",
    "peft_model": "adapter",
    "max_length": "settings={'max_length': ...}",
    "max_seq_length": "settings={'max_length': ...}",
    "max_pixels": "settings={'max_pixels': ...}",
    "max_soft_tokens": "settings={'soft_tokens': ...}",
    "processor_kwargs": "settings={...}",
    "model_kwargs": "dtype, head, pooling, prompt and settings, each by its name",
    "device": "mesh=smart_jax.make_mesh(devices=[...]); by default JAX's first device is used, see JAX_PLATFORMS",
    "device_map": "mesh=smart_jax.make_mesh(), which takes all devices",
    "trust_remote_code": "not needed: no code of a repository is ever run",
    "attn_implementation": "not needed: the attention is chosen for the device",
    "normalize_embeddings": "not needed: embeddings are always L2-normalised",
    "convert_to_numpy": "not needed: embeddings are NumPy arrays",
    "convert_to_tensor": "not needed: embeddings are NumPy arrays",
}


def known_options(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Returns the function with an error, for an option that it does not have, that says which one is meant.

    Raises:
      TypeError: in a call with an option of another name.

    Example:
      >>> @known_options
      ... def search(query, k=10): ...
      >>> search("q", top_k=5)
      Traceback (most recent call last):
      TypeError: search has no option 'top_k': here it is k; there are query, k
    """
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]

    @functools.wraps(function)
    def checked(*args: _P.args, **options: _P.kwargs) -> _R:
        for name in options:
            if name not in names:
                raise TypeError(f"{function.__name__} has no option '{name}'{_meant(name, names)}")
        return function(*args, **options)

    return checked


def _meant(name: str, names: list[str]) -> str:
    there = f"; there are {', '.join(names)}"
    elsewhere = ELSEWHERE.get(name, "")
    option = elsewhere.partition("=")[0]
    if elsewhere and (option in names or not option.isidentifier()):
        return f": here it is {elsewhere}{there}"
    close = difflib.get_close_matches(name, names, n=1)
    return f": did you mean '{close[0]}'?{there}" if close else there
