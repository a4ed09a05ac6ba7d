"""Qwen3.5: decoders in which most layers are linear attention by the gated delta rule."""

__all__: list[str] = []
