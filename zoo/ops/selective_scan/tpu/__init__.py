"""The selective scan as kernels for TPUs, in Pallas: one forwards, one backwards.

They have been interpreted on a CPU, and compiled for v5e and v6e by `libtpu` (tests), but not run on a TPU. What
there is instead is what the compiler says, by `python -m benchmarks.kernels.tpu_compiler`: its schedule, in bundles of
instructions (a cycle each, if nothing waits for memory), and for what XLA makes also its cost model::

    v5e: B 8, T 4096, E 2048, N 16,     schedule                 cost model               temporary memory
    bfloat16, with a gate               forward  training step   forward  training step   of a training step
    kernels                               3.9 M         14.7 M         -              -      1 MB
    "xla_chunked"                       >11.6 M        >43.3 M     100 M          331 M   6344 MB
    "xla_sequential"                    >12.9 M        >68.7 M      78 M          605 M    673 MB

The two differ in kind: the schedule leaves out waits for memory, of which XLA's forms have more, and the cost model is
rough. (">": of some of XLA's instructions the schedule is not known.) The kernels are bound by arithmetic: forwards
they read and write 0.54 GB, for which a v5e (819 GB/s, 1.5 GHz) would need about 1 M cycles.
"""

from zoo.ops.selective_scan.tpu.scan import backward, fitted, forward, unsupported

__all__ = ["backward", "fitted", "forward", "unsupported"]
