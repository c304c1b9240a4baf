"""The selective scan as kernels for Hopper GPUs, in Pallas' Mosaic GPU."""

from zoo.ops.selective_scan.hopper.scan import backward, fitted, forward, unsupported

__all__ = ["backward", "fitted", "forward", "unsupported"]
