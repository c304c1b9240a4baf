"""What a torch peer allocates, in a process of its own: `python -m benchmarks.kernels.memory REQUEST OUT`.

PyTorch's eager mode plans nothing, so its memory is seen from outside: by how much the peak of the process's resident
memory exceeds what was resident with the inputs made and a short sequence computed (Linux only); on a GPU, the peak of
torch's allocator over what it held. Output and gradients count, unlike in a compiled program's temporaries.
"""

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.kernels.cases import Sizes, make_inputs, peers_of
from benchmarks.kernels.prepare import PASSES, TRAINING, prepare, torch_device
from benchmarks.kernels.worker import configure

WARM_UP = 8


def resident_bytes(name: str = "VmRSS") -> int:
    """This process's resident memory now, or with "VmHWM" its peak since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def forget_peak() -> None:
    """Gives freed memory back to the system, so that it does not hide growth, and begins a new peak."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def growth(op: str, peer_name: str, length: int, sizes: Sizes) -> dict[str, int]:
    """Bytes of the forward pass and, where it is measured, of the training step."""
    peer = next(peer for peer in peers_of(op) if peer.name == peer_name)
    skip = peer.backward_up_to is not None and length > peer.backward_up_to
    measured = _cuda_growth if torch_device() == "cuda" else _resident_growth
    found = {}
    for which in PASSES:
        if not (skip and which == TRAINING):
            prepare(peer, which, *make_inputs(op, WARM_UP, sizes)).run()
            found[which] = measured(prepare(peer, which, *make_inputs(op, length, sizes)).run)
    return found


def _resident_growth(run: Callable[[], object]) -> int:
    forget_peak()
    before = resident_bytes()
    result = run()
    peak = resident_bytes("VmHWM")
    del result
    return peak - before


def _cuda_growth(run: Callable[[], object]) -> int:
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    request, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    configure("all")
    with out.open("w", encoding="utf-8") as file:
        for length in request["lengths"]:
            found = growth(request["op"], request["peer"], length, Sizes(**request["sizes"]))
            file.write(json.dumps({"length": length, "bytes": found}) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
