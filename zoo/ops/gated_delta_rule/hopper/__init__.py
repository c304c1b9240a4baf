"""The gated delta rule by kernels for Hopper GPUs."""

from zoo.ops.gated_delta_rule.hopper.op import run, unsupported

__all__ = ["run", "unsupported"]
