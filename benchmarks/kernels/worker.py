"""A process of its own for each op and number of threads: `python -m benchmarks.kernels.worker REQUEST OUT`.

REQUEST is JSON: `{"about": true}`, or the arguments of `measure.measure` with several lengths. OUT receives lines of
JSON. Threads are set before JAX or torch is imported.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
from pathlib import Path

from benchmarks.kernels.cases import Sizes, peers_of

PACKAGES = ("torch", "transformers", "mambapy", "mamba-ssm", "flash-linear-attention", "causal-conv1d", "triton")


def environment(threads: str) -> dict[str, str]:
    """The environment variables of a worker."""
    variables = dict(os.environ, JAX_ENABLE_COMPILATION_CACHE="false", TOKENIZERS_PARALLELISM="false")
    variables.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if threads == "one":
        flags = variables.get("XLA_FLAGS", "")
        variables["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return variables


def limit_threads(threads: str) -> int:
    """Binds the process to one core where `threads` is "one" and the system can; returns the cores it has."""
    if not hasattr(os, "sched_setaffinity"):
        return 1 if threads == "one" else os.cpu_count() or 1
    cores = os.sched_getaffinity(0)
    if threads == "one":
        os.sched_setaffinity(0, {max(cores)})
        return 1
    return len(cores)


def about() -> dict:
    """Device, processor, cores, commit and versions."""
    from zoo.training.run import environment

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {**environment(), "cores": limit_threads("all"), "packages": versions}


def configure(threads: str) -> str:
    """Equal terms: float32 products in float32, torch with as many threads as JAX; returns JAX's platform."""
    cores = limit_threads(threads)
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.set_num_threads(cores)
        torch.backends.cudnn.allow_tf32 = False
    return jax.default_backend()


def main() -> None:
    request, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    if request.get("about"):
        out.write_text(json.dumps(about()))
        return
    platform = configure(request["threads"])
    from benchmarks.kernels.measure import measure

    peers = peers_of(request["op"], request["implementations"])
    with out.open("w", encoding="utf-8") as file:
        for length in request["lengths"]:
            records = measure(
                request["op"],
                length,
                peers,
                Sizes(**request["sizes"]),
                threads=request["threads"],
                repeats=request["repeats"],
                platform=platform,
                say=lambda line: print(line, flush=True),
            )
            file.writelines(json.dumps(dataclasses.asdict(record)) + "\n" for record in records)
            file.flush()


if __name__ == "__main__":
    main()
