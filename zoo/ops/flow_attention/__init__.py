"""Flow-Attention: attention linear in the sequence by conservation of flow (Flowformer, arXiv:2202.06258)."""

from zoo.ops.flow_attention.api import flow_attention, flow_attention_init, flow_attention_step
from zoo.ops.flow_attention.common import FlowState

__all__ = ["FlowState", "flow_attention", "flow_attention_init", "flow_attention_step"]
