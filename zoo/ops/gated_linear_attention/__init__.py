"""Linear attention with decay: the one recurrence of linear attention, RetNet, Mamba-2 (SSD) and GLA."""

from zoo.ops.gated_linear_attention.api import gated_linear_attention, gated_linear_attention_step

__all__ = ["gated_linear_attention", "gated_linear_attention_step"]
