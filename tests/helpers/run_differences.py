"""Two finished runs held against each other, to the bit."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
from toy_runs import arrays

# What result.json tells of time and memory, the commit, and the digest of all.
UNREPEATED = {"steps_per_second", "compile_seconds", "memory", "environment", "digest"}


def run_differences(one: Path, two: Path) -> list[str]:
    """What differs, one difference a line.

    Args:
      one, two: folders with the run directory `run` and the data `data`.
    """
    differences = [text for which in ("best", "last") for text in _checkpoint_differences(one, two, which)]
    names = ("metrics.jsonl", "recipe.yaml")
    differences += [f"{name} differs" for name in names if _read(one / "run" / name) != _read(two / "run" / name)]
    results = [json.loads((folder / "run" / "result.json").read_text()) for folder in (one, two)]
    differences += [f"{name} of result.json" for name in _differing(*results) if name not in UNREPEATED]
    data = [
        {str(path.relative_to(folder)): _read(path) for path in (folder / "data").rglob("*")} for folder in (one, two)
    ]
    differences += [f"{name}: only one has it, or other bytes" for name in _differing(*data)]
    names = [_names(folder / "run") for folder in (one, two)]
    return differences + [f"run/{name}: only one has it" for name in sorted(names[0] ^ names[1])]


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b"a folder"


def _checkpoint_differences(one: Path, two: Path, which: str) -> list[str]:
    logging.getLogger("absl").setLevel(logging.ERROR)
    step, meta, leaves = arrays(one / "run", which)
    other_step, other_meta, other_leaves = arrays(two / "run", which)
    if (step, leaves.keys()) != (other_step, other_leaves.keys()):
        return [f"{which}: step {step} of {len(leaves)} arrays, step {other_step} of {len(other_leaves)}"]
    differences = [f"{which}: {key} of the bookkeeping" for key in _differing(meta, other_meta)]
    facts = [
        json.loads((folder / "run" / "checkpoints" / which / str(step) / "manifest.json").read_text())
        for folder in (one, two)
    ]
    ignored = {"meta", "files", "digest"}  # the first is compared above, and files have random names
    differences += [f"{which}: {key} of the manifest" for key in _differing(*facts) if key not in ignored]
    for name, leaf in leaves.items():
        other = other_leaves[name]
        if (leaf.dtype, leaf.shape) != (other.dtype, other.shape) or leaf.tobytes() != other.tobytes():
            differences.append(f"{which}: array {name}, by up to {np.abs(leaf - other).max()}")
    return differences


def _differing(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))


def _names(run: Path) -> set[str]:
    """Files and folders of a run, but for those with random names and those that each process writes anew."""
    names = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    return {name for name in names if not re.match(r"tensorboard/|checkpoints/\w+/\d+/state/", name)}
