"""The gated delta rule by kernels for TPUs."""

from zoo.ops.gated_delta_rule.tpu.op import run, run_or_xla, unsupported

__all__ = ["run", "run_or_xla", "unsupported"]
