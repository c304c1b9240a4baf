"""The gated delta rule by kernels for TPUs."""

from zoo.ops.gated_delta_rule.tpu.op import run, unsupported

__all__ = ["run", "unsupported"]
