"""One training step by this library and by torch, on the same random weights and batch.

Torch's trainer is the usual one, written from the paper's description (arXiv:2605.24938): transformers' Qwen3-VL with
sdpa, LayerNorm and Linear as the adapter, peft's LoRA on the text projections, a dense MaxSim, cross-entropy over the
documents of the batch, clipped gradients and AdamW.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3VLModel

from smart_jax.models import TEXT_PROJECTIONS, LoraConfig, QwenVLConfig, add_lora, load_config, load_weights
from smart_jax.retrieval import Adapter, AdapterConfig
from smart_jax.runtime import make_mesh, replicated
from tests.parity.qwen3_vl import Inputs
from train.config import LossConfig, OptimizerConfig
from train.objective import Objective, Params, Part, Partition, TrainBatch, take_apart
from train.optimizer import make_optimizer, make_schedule
from train.step import init_state, make_train_step

STEPS = 1000  # steps of the run that a step is taken from


@dataclasses.dataclass(frozen=True)
class Step:
    """Trained part, and settings: the paper's settings except for the rank, which is 128 of a width of 2,048 there."""

    trainable: str  # "adapter" or "lora"
    loss: LossConfig
    optimizer: OptimizerConfig
    chunk_size: int | None = None
    r: int = 32


CONSTANT: dict[str, Any] = {"schedule": "constant", "warmup_ratio": 0.0}
ADAPTER = Step("adapter", LossConfig(temperature=0.03), OptimizerConfig(learning_rate=1e-3, **CONSTANT))
LORA = Step(
    "lora",
    LossConfig(objective="hybrid", temperature=0.05),
    OptimizerConfig(learning_rate=1e-4, weight_decay=0.0, **CONSTANT),
)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A batch without padding: `count` queries of text, each with a page of patches and some text."""

    count: int = 8
    query_tokens: int = 24
    grid: tuple[int, int, int] = (1, 16, 16)
    page_words: int = 24

    def inputs(self, config: QwenVLConfig) -> tuple[Inputs, Inputs]:
        """Returns random queries and pages."""
        ids = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
        before = self.page_words // 2
        page: list[int | tuple[int, int, int]] = [before, self.grid, self.page_words - before]
        return (
            Inputs.random([[self.query_tokens]] * self.count, seed=0, ids=ids),
            Inputs.random([page] * self.count, seed=1, ids=ids, size=config.vision.patch_size),
        )


PAIRS = {"qwen3_vl": Pairs(), "tiny": Pairs(count=32, query_tokens=16, grid=(1, 8, 16), page_words=8)}
RANK = {"qwen3_vl": 32, "tiny": 16}


class Ours:
    """The step of `train.step`, put together as in a run."""

    def __init__(self, folder: Path, pairs: Pairs, step: Step) -> None:
        config = load_config(folder)
        assert isinstance(config, QwenVLConfig)
        graphdef, weights = load_weights(folder, config)
        if step.trainable == "lora":
            lora = LoraConfig(r=step.r, alpha=2.0 * step.r, modules=TEXT_PROJECTIONS)
            graphdef, weights = add_lora(graphdef, weights, lora)
        backbone, arrays = take_apart(Part.BACKBONE, graphdef, weights)
        adapter = None
        if step.trainable == "adapter":
            module = Adapter(AdapterConfig(config.text.hidden_size), rngs=nnx.Rngs(0))
            adapter, projection = take_apart(Part.ADAPTER, *nnx.split(module))
            arrays |= projection
        partition, mesh = Partition.of([backbone, adapter]), make_mesh(devices=jax.devices()[:1])
        self.objective = Objective(step.loss, STEPS, mesh, partition, backbone, adapter, chunk_size=step.chunk_size)
        queries, documents = (side.batch(config) for side in pairs.inputs(config))
        ids = jnp.arange(pairs.count, dtype=jnp.uint32)[:, None]
        # On the mesh, as in a run: else the first step's results would be placed differently and compile it again.
        (self.params, self.frozen), self.batch = jax.device_put(
            (partition.split(arrays), TrainBatch(queries, documents, ids)), replicated(mesh)
        )
        self._step = step

    def loss_and_gradient(self) -> tuple[float, dict[str, np.ndarray]]:
        """Returns loss and gradient of the first step, the gradient by the parameters' names."""
        run = jax.jit(jax.value_and_grad(lambda p, f, b: self.objective(p, f, b, jnp.int32(1))[0]))
        loss, gradient = run(self.params, self.frozen, self.batch)
        return float(loss), jax.device_get(gradient)

    def stepper(self) -> Callable[[], dict[str, float]]:
        """Returns a call that makes the next update and returns loss and gradient norm."""
        optimizer, schedule = (make(self._step.optimizer, STEPS) for make in (make_optimizer, make_schedule))
        state = init_state(jax.tree.map(jnp.copy, self.params), optimizer, self.objective.mesh)
        update = make_train_step(self.objective, optimizer, schedule, state)

        def run() -> dict[str, float]:
            nonlocal state
            state, metrics = update(state, self.frozen, self.batch)
            return {name: float(metrics[name]) for name in ("loss", "grad_norm")}

        return run


class Theirs(torch.nn.Module):
    """The same step by transformers, peft and torch, which starts from `params` of ours."""

    def __init__(self, folder: Path, pairs: Pairs, step: Step, params: Params) -> None:
        super().__init__()
        config = load_config(folder)
        assert isinstance(config, QwenVLConfig)
        model = Qwen3VLModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        model.requires_grad_(False)
        self._step, self.adapter = step, None
        if step.trainable == "lora":
            wanted = PeftConfig(r=step.r, lora_alpha=2 * step.r, target_modules=r"language_model\..*_proj")
            self.backbone = get_peft_model(model, wanted)
        else:
            self.backbone, width = model, config.text.hidden_size
            self.adapter = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, width, bias=False))
        queries, documents = pairs.inputs(config)
        self._batch = [queries.torch_inputs(), documents.torch_inputs()]
        self.trained = {_our_name(name): p for name, p in self.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, value in params.items():
                self.trained[name].copy_(torch.tensor(np.asarray(value).T if value.ndim == 2 else np.asarray(value)))

    def encode(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns unit pooled vectors [B, H], unit tokens [B, L, D] and the mask [B, L] of kept tokens."""
        with torch.set_grad_enabled(self.adapter is None):
            states = self.backbone(**inputs, use_cache=False).last_hidden_state
        mask = inputs["attention_mask"].bool()
        last = inputs["attention_mask"].sum(1) - 1
        pooled = states[torch.arange(len(states)), last]
        tokens = states if self.adapter is None else self.adapter(states)
        return F.normalize(pooled, dim=-1), F.normalize(tokens, dim=-1), mask

    def loss(self) -> torch.Tensor:
        """Returns the InfoNCE loss over the documents of the batch."""
        (query, q, q_mask), (document, d, d_mask) = (self.encode(inputs) for inputs in self._batch)
        similarity = torch.einsum("bpd,nld->bnpl", q, d).masked_fill(~d_mask[None, :, None], -torch.inf)
        best = similarity.max(-1).values.masked_fill(~q_mask[:, None], 0.0)
        late = best.sum(-1) / q_mask.sum(-1)[:, None]
        scores = late if self._step.loss.objective == "late" else query @ document.T + late
        return F.cross_entropy(scores / self._step.loss.temperature, torch.arange(len(scores)))

    def loss_and_gradient(self) -> tuple[float, dict[str, np.ndarray]]:
        """Returns what that of `Ours` returns, by its names and in its layouts."""
        self.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.item(), {name: p.grad.numpy().T for name, p in self.trained.items()}

    def products(self) -> Callable[[], None]:
        """Returns a call that makes the matrix products of a step on random numbers, and nothing else."""
        with _Products() as seen:
            self.loss().backward()
        calls = [(call, [_random_like(x) for x in arguments]) for call, arguments in seen.calls]

        def run() -> None:
            with torch.no_grad():
                for call, arguments in calls:
                    call(*arguments)

        return run

    def stepper(self) -> Callable[[], dict[str, float]]:
        """Returns a call that makes the next update and returns loss and gradient norm."""
        c = self._step.optimizer
        decayed: list[torch.Tensor] = []
        plain: list[torch.Tensor] = []
        for name, parameter in self.trained.items():
            (plain if "norm" in name else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": c.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=c.learning_rate, betas=(c.b1, c.b2), eps=c.eps, fused=True
        )

        def run() -> dict[str, float]:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), c.clip_norm)
            optimizer.step()
            return {"loss": loss.item(), "grad_norm": norm.item()}

        return run


class _Products(TorchDispatchMode):
    """Records the matrix products that are computed in it, except for attention's, which is one call of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], list[torch.Tensor]]] = []

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.calls.append((call, list(args)))
        elif call is torch.ops.aten.addmm.default:  # a product and the addition of a bias, which is left out
            self.calls.append((torch.ops.aten.mm.default, list(args[1:])))
        elif call is torch.ops.aten.convolution.default:  # a product, since the stride is the kernel
            patches, kernel = args[:2]
            self.calls.append((torch.ops.aten.mm.default, [patches.flatten(1), kernel.flatten(1).T]))
        return call(*args, **(kwargs or {}))


def _random_like(x: torch.Tensor) -> torch.Tensor:
    """Returns random numbers in x's shape and order in memory."""
    return torch.empty_strided(x.shape, x.stride()).normal_()


def _our_name(name: str) -> str:
    """Returns our name of a parameter.

    backbone.base_model.model.language_model.layers.0.mlp.up_proj.lora_A.default.weight ->
    lora.language_model.layers.0.mlp.up_proj.a
    """
    if name.startswith("adapter."):
        return {"0.weight": "adapter.norm.scale", "0.bias": "adapter.norm.bias", "1.weight": "adapter.proj.kernel"}[
            name.removeprefix("adapter.")
        ]
    path, factor = name.removeprefix("backbone.base_model.model.").removesuffix(".default.weight").split(".lora_")
    return f"lora.{path}.{factor.lower()}"
