"""Qwen3.5: the tower of Qwen3-VL before a decoder in which most layers are linear attention."""

from smart_jax.models.qwen3_5.config import Qwen35Config
from smart_jax.models.qwen3_5.gated_delta import CHUNKS, gated_delta
from smart_jax.models.qwen3_5.model import IGNORED, SHARDING_RULES, Qwen35

__all__ = ["CHUNKS", "IGNORED", "SHARDING_RULES", "Qwen35", "Qwen35Config", "gated_delta"]
