"""The gated delta rule by kernels for Hopper GPUs."""

from zoo.ops.gated_delta_rule.hopper.op import run, run_or_xla, unsupported

__all__ = ["run", "run_or_xla", "unsupported"]
