"""The recurrent ops of `zoo.ops` against named peers, in one run: `python -m benchmarks.kernels` (see README.md)."""
