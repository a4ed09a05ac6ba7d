"""Sections of a model card that say how what is published is loaded: here, and in torch without this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smart_jax.publishing.contents import Contents

# Parts of the token projection in torch, as smart_jax.retrieval.adapter computes it.
_HEAD = '''\
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

w = load_file(hf_hub_download("{name}", "adapter.safetensors"))


def token_vectors(hidden_states):
    """Returns [L, D]: hidden_states are those of transformers, [1, L, H] each, of the tokens that are kept."""
'''
_ONE = "    x = hidden_states[{layer}][0].float()\n"
_FUSED = """\
    h = torch.stack([hidden_states[i][0].float() for i in {layers}])
    rms = lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    share = torch.softmax((rms(h) * rms(w["layer_vector"])).sum(-1) / h.shape[-1] ** 0.5, dim=0)
    x = (share[..., None] * h).sum(0)
"""
_NORM = '    x = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"])\n'
_HIDDEN = '    x = F.gelu(F.linear(x, w["hidden.weight"]))\n'
_PROJ = '    x = F.linear(x, w["proj.weight"])\n'
_BLOCKS = """\
    for i in range({blocks}):
        b = {{name.removeprefix(f"blocks.{{i}}."): t for name, t in w.items() if name.startswith(f"blocks.{{i}}.")}}
        qkv = F.linear(x, b["in_proj.weight"], b["in_proj.bias"])
        q, k, v = qkv.unflatten(-1, (3, {heads}, -1)).permute(1, 2, 0, 3)
        y = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
        y = F.linear(y, b["out_proj.weight"], b["out_proj.bias"])
        x = F.layer_norm(x + y, x.shape[-1:], b["norm.weight"], b["norm.bias"])
"""
_TAIL = """\
    return F.normalize(x, dim=-1)


def late_score(query, document):
    return (query @ document.T).amax(dim=1).mean()
"""


def torch_projection(settings: Mapping[str, Any], name: str) -> str:
    """Returns Python code that computes an adapter's token vectors and the late score in torch.

    Args:
      settings: of adapter.json.
      name: hub id of the repository.
    """
    kind, layers = settings.get("kind", "linear"), list(settings["layers"])
    code = _HEAD.format(name=name)
    code += _ONE.format(layer=layers[0]) if len(layers) == 1 else _FUSED.format(layers=layers)
    code += _NORM + (_HIDDEN if kind == "mlp" else "") + _PROJ
    if kind == "self_attention":
        code += _BLOCKS.format(blocks=settings.get("blocks", 1), heads=settings.get("heads", 8))
    return code + _TAIL


def usage(contents: Contents, name: str, base: str | None) -> str:
    """Returns the sections "Use" and "In torch" of a card.

    Args:
      contents: of the folder.
      name: hub id of the repository.
      base: what `smart_jax.load` takes for the base model; None = unknown.
    """
    base = base or "path/to/the/base/model"
    if contents.kind == "adapter":
        loaded = f'smart_jax.load("{base}", adapter="{name}")'
    else:
        loaded = f'smart_jax.load("{name}"' + (f', adapter="{name}")' if contents.adapter else ")")
    lines = ["## Use", "", "```python", "import smart_jax", "", f"model = {loaded}"]
    lines += ['queries = model.encode_query(["revenue by region"])']
    documents = "texts" if contents.model.get("model_type") == "bert" else '["page1.png", "page2.png"]'
    lines += [f"documents = model.encode_document({documents})"]
    lines += ["smart_jax.score(queries, documents)  # hybrid; pooled_weight=0.0 is late interaction alone", "```", ""]
    return "\n".join([*lines, "## In torch", "", *_in_torch(contents, name, base), ""])


def _in_torch(contents: Contents, name: str, base: str) -> list[str]:
    lines = []
    if contents.kind == "lora":
        lines = ["```python", "from peft import PeftModel", "from transformers import AutoModel", ""]
        lines += [f'model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}"), "{name}")', "```"]
    elif contents.kind == "model":
        lines = ["```python", "from transformers import AutoModel", ""]
        lines += [f'model = AutoModel.from_pretrained("{name}")', "```"]
    if contents.adapter:
        of = base if contents.kind == "adapter" else name
        lines += [""] if lines else []
        lines += [f"With the states of `{of}` from transformers (`output_hidden_states=True`):", ""]
        lines += ["```python", torch_projection(contents.adapter, name).rstrip(), "```"]
    return lines
