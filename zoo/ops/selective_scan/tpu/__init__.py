"""The selective scan as kernels for TPUs, in Pallas."""

from zoo.ops.selective_scan.tpu.scan import backward, fitted, forward, unsupported

__all__ = ["backward", "fitted", "forward", "unsupported"]
