"""The adapter's loss against a transcription of the paper's in torch: value and gradient, with each kind of bank."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from smart_jax.models.batch import Batch, Hidden
from smart_jax.retrieval.adapter import Adapter, AdapterConfig
from smart_jax.runtime.mesh import make_mesh
from tests.test_objectives import NO_BACKBONE
from train.config import LossConfig
from train.data.batches import put_batch
from train.objective import Objective, Part, Partition, TrainBatch, take_apart

pytestmark = pytest.mark.compiles

B, K, P, L, H, D = 16, 2, 5, 11, 12, 8  # queries of P tokens with K documents of L tokens; widths of states and tokens
SHAPES = {"q": (B, P), "d": (B * K, L)}
LOSSES: dict[str, dict[str, Any]] = {
    "late": {"objective": "hybrid", "hybrid_loss_weight": 0.0, "late_loss_weight": 1.0, "temperature": 0.03},
    "hybrid": {"objective": "hybrid", "pooled_weight": 0.7, "late_weight": 1.3, "late_loss_weight": 0.5},
}


class OfStates(Objective):
    """The states of both sides are frozen parameters."""

    def encode(self, params, frozen, batch, dropout=None):
        side = "q" if len(batch.input_ids) == B else "d"
        return self.encoded(params, Hidden(frozen[f"{side}_pooled"], frozen[f"{side}_states"]), batch.keep_mask)


class Reference(torch.nn.Module):
    """The loss of the paper's code: each device has the candidates of its own batch, and gradients are averaged."""

    def __init__(self, params: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.proj = torch.nn.Sequential(torch.nn.LayerNorm(H), torch.nn.Linear(H, D, bias=False)).double()
        with torch.no_grad():
            self.proj[0].weight.copy_(torch.tensor(params["adapter.norm.scale"]))
            self.proj[0].bias.copy_(torch.tensor(params["adapter.norm.bias"]))
            self.proj[1].weight.copy_(torch.tensor(params["adapter.proj.kernel"].T))

    def scores(self, q: dict[str, torch.Tensor], d: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = F.normalize(q["pooled"], dim=-1) @ F.normalize(d["pooled"], dim=-1).T
        late = []
        for states, mask in zip(q["states"], q["mask"], strict=True):
            tokens = F.normalize(self.proj(states[mask]), dim=-1)
            best = [
                (tokens @ F.normalize(self.proj(x[kept]), dim=-1).T).max(dim=1).values.mean()
                for x, kept in zip(d["states"], d["mask"], strict=True)
            ]
            late.append(torch.stack(best))
        return pooled, torch.stack(late)

    def forward(self, sides: dict[str, dict[str, torch.Tensor]], devices: int, loss: LossConfig) -> torch.Tensor:
        total = torch.tensor(0.0, dtype=torch.float64)
        for device in range(devices):
            own = {
                side: {name: x.chunk(devices)[device] for name, x in arrays.items()} for side, arrays in sides.items()
            }
            pooled, late = self.scores(own["q"], own["d"])
            labels = torch.arange(len(late)) * K
            both = loss.pooled_weight * pooled + loss.late_weight * late
            total += loss.hybrid_loss_weight * F.cross_entropy(both / loss.temperature, labels) / devices
            total += loss.late_loss_weight * F.cross_entropy(late / loss.temperature, labels) / devices
        return total


def made() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters of the adapter, states and pooled states of both sides, and masks."""
    rng = np.random.default_rng(0)
    params = {
        "adapter.norm.scale": 1 + 0.3 * rng.standard_normal(H),
        "adapter.norm.bias": 0.3 * rng.standard_normal(H),
        "adapter.proj.kernel": rng.standard_normal((H, D)),
    }
    states = {f"{side}_pooled": rng.standard_normal((rows, H)) for side, (rows, _) in SHAPES.items()}
    states |= {f"{side}_states": rng.standard_normal((*shape, 1, H)) for side, shape in SHAPES.items()}
    masks = {side: rng.random(shape) < 0.7 for side, shape in SHAPES.items()}
    for mask in masks.values():
        mask[:, 0] = True
    return (
        {name: x.astype(np.float32) for name, x in params.items()},
        {name: x.astype(np.float32) for name, x in states.items()},
        masks,
    )


def hit_rate(reference: Reference, sides: dict[str, dict[str, torch.Tensor]], devices: int) -> float:
    """The mean over the devices of how often a query's own document is first of theirs."""
    hits = []
    for device in range(devices):
        q, d = ({name: x.chunk(devices)[device] for name, x in sides[side].items()} for side in "qd")
        hits += [int(row.argmax()) == K * i for i, row in enumerate(reference.scores(q, d)[1])]
    return float(np.mean(hits))


def batch_of(mask: np.ndarray) -> Batch:
    ids = np.zeros(mask.shape, np.int32)
    return Batch(ids, mask, np.zeros((3, *mask.shape), np.int32), mask, ids, None)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("bank", "devices"), [("local", 1), ("local", 4), ("global", 4)])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_the_papers(name, bank, devices, remat):
    """On four devices the paper's loss is another than that of the global batch; ours can be either."""
    params, states, masks = made()
    config = LossConfig(bank=bank, mask_false_negatives=False, **LOSSES[name])
    mesh = make_mesh(devices=jax.devices()[:devices])
    structure, _ = take_apart(Part.ADAPTER, *nnx.split(Adapter(AdapterConfig(H, D), rngs=nnx.Rngs(0))))
    objective = OfStates(config, 5, mesh, Partition.of([structure]), NO_BACKBONE, structure, remat=remat)
    batch = TrainBatch(batch_of(masks["q"]), batch_of(masks["d"]), np.arange(B * K, dtype=np.uint32)[:, None])
    function = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, metrics), gradient = function(
        jax.tree.map(jnp.asarray, params),
        jax.tree.map(jnp.asarray, states),
        put_batch(batch, mesh),
        jnp.int32(1),
    )

    reference = Reference(params)
    sides = {
        side: {
            "pooled": torch.tensor(states[f"{side}_pooled"]).double(),
            "states": torch.tensor(states[f"{side}_states"][:, :, 0]).double(),
            "mask": torch.tensor(masks[side]),
        }
        for side in SHAPES
    }
    groups = devices if bank == "local" else 1
    expected = reference(sides, groups, config)
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    other = reference(sides, 1 if groups > 1 else 4, config)
    assert abs(other.item() - expected.item()) > 0.1  # the other bank would not do
    theirs = {
        "adapter.norm.scale": reference.proj[0].weight.grad,
        "adapter.norm.bias": reference.proj[0].bias.grad,
        "adapter.proj.kernel": reference.proj[1].weight.grad.T,
    }
    for parameter, expected_gradient in theirs.items():
        scale = expected_gradient.abs().max().item()
        np.testing.assert_allclose(
            gradient[parameter], expected_gradient.numpy(), atol=2e-5 * max(1, scale), err_msg=parameter
        )
    assert float(metrics["late_hit@1"]) == pytest.approx(hit_rate(reference, sides, groups))


class OfTrainedStates(Objective):
    """The states of both sides are trained parameters, as those of a backbone with low-rank branches."""

    def encode(self, params, frozen, batch, dropout=None):
        side = "q" if batch.input_ids.shape[1] == P else "d"
        keep = batch.keep_mask if self.config.tokens == "kept" else batch.attention_mask
        return self.encoded(params, Hidden(params[f"{side}_pooled"], params[f"{side}_states"]), keep)


def lora_loss(states: dict[str, torch.Tensor], masks: dict[str, np.ndarray], objective: str) -> torch.Tensor:
    """The loss of the paper's LoRA code: cosines over 0.05, of queries and documents gathered from all devices."""
    pooled = F.normalize(states["q_pooled"], dim=-1) @ F.normalize(states["d_pooled"], dim=-1).T / 0.05
    q, d = (F.normalize(states[f"{side}_states"][:, :, 0], dim=-1) for side in "qd")
    cosines = torch.einsum("bqh,ckh->bqck", q, d)
    lowest = torch.finfo(cosines.dtype).min
    best = cosines.masked_fill(~torch.tensor(masks["d"])[None, None], lowest).max(dim=-1).values
    q_mask = torch.tensor(masks["q"])
    late = best.masked_fill(~q_mask[:, :, None], 0.0).sum(dim=1) / q_mask.sum(dim=1)[:, None] / 0.05
    logits = {"pooled": pooled, "late": late, "hybrid": pooled + late}[objective]
    return F.cross_entropy(logits, torch.arange(len(logits)))


@pytest.mark.parametrize(("objective", "devices"), [("pooled", 4), ("late", 1), ("late", 4), ("hybrid", 4)])
def test_the_lora_runs_loss_and_gradient_are_the_papers(objective, devices):
    """All tokens but padding; the kept ones alone have another loss, which is the one for `loss.tokens` = kept."""
    _, states, whole = made()
    states = {name: x if name.startswith("q") else x[::K] for name, x in states.items()}
    rng = np.random.default_rng(1)
    masks = {"all": {"q": whole["q"], "d": whole["d"][::K]}}
    masks["kept"] = {side: mask & (rng.random(mask.shape) < 0.5) for side, mask in masks["all"].items()}
    for side, mask in masks["kept"].items():
        mask[:, 0] = masks["all"][side][:, 0]
    mesh = make_mesh(devices=jax.devices()[:devices])
    sides = {side: dataclasses.replace(batch_of(masks["all"][side]), keep_mask=masks["kept"][side]) for side in "qd"}
    batch = TrainBatch(sides["q"], sides["d"], np.arange(B, dtype=np.uint32)[:, None])
    for tokens in ("all", "kept") if devices > 1 else ("all",):
        config = LossConfig(objective, temperature=0.05, mask_false_negatives=False, tokens=tokens)
        function = jax.jit(
            jax.value_and_grad(OfTrainedStates(config, 5, mesh, Partition({}, {}), NO_BACKBONE), has_aux=True)
        )
        (loss, _), gradient = function(jax.tree.map(jnp.asarray, states), {}, put_batch(batch, mesh), jnp.int32(1))
        theirs = {name: torch.tensor(x).double().requires_grad_() for name, x in states.items()}
        expected = lora_loss(theirs, masks[tokens], objective)
        expected.backward()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
        for name, x in theirs.items():
            wanted = np.zeros(x.shape) if x.grad is None else x.grad.numpy()
            atol = 2e-5 * max(1, np.abs(wanted).max())
            np.testing.assert_allclose(gradient[name], wanted, atol=atol, err_msg=name)
        other = lora_loss(theirs, masks["kept" if tokens == "all" else "all"], objective)
        assert objective == "pooled" or abs(other.item() - expected.item()) > 0.01
