"""The selective scan as kernels for TPUs, in Pallas: one forwards, one backwards.

They have been interpreted on a CPU, and compiled for v3 to v6e and 7x by `libtpu`, but have not been run on a TPU. What
there is instead is the compiler's schedule, in bundles of instructions (a cycle each, if nothing waits for memory)::

    B 8, T 4096, E 2048, N 16, bfloat16, gate   forwards   and back   beside operands and results
    kernels, schedule for v5e                      3.9 M     14.8 M      1 MB
    "xla_chunked", the compiler's cost model       100 M      331 M   6344 MB
    "xla_sequential", likewise                      78 M      605 M    673 MB

The cost model is not the schedule: the main step of the forward "xla_sequential" alone, whose schedule is known too, it
puts at 2.4 times that, which leaves 10.9 M bundles forwards. The kernels are bound by arithmetic: a v5e would need
about 1.2 M cycles for what they read and write forwards. At B 32, T 1024, E 256 they have 0.9 M and 2.7 M, and the cost
model 7.7 M and 32 M for "xla_chunked".
"""

from zoo.ops.selective_scan.tpu.scan import backward, fitted, forward, unsupported

__all__ = ["backward", "fitted", "forward", "unsupported"]
