"""The sources of the running Python's standard library: text that is on every machine."""

import hashlib
import sysconfig
from collections.abc import Collection
from pathlib import Path

# Some installations leave out the tests, and site-packages are no part of the library.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_HELD_OUT = {0: "test", 1: "validation"}


def library_folder() -> Path:
    """Where the library lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def read_library(
    folder: Path, seed: int, *, parts: int = 20, leave_out: Collection[str] = ()
) -> dict[str, list[bytes]]:
    """Its .py files without its tests, in order of their names.

    A file goes to "test", "validation" or "train" by a hash of the seed and its name, so nearly alike under every
    Python.

    Args:
      folder: see `library_folder`.
      seed: of the hash.
      parts: one in so many files is for test, another for validation.
      leave_out: names of folders that are left out besides.

    Raises:
      OSError: a file cannot be read.
    """
    left_out = _LEFT_OUT | set(leave_out)
    documents: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if left_out & set(name.split("/")) or path.name.startswith("_sysconfigdata"):  # of this machine
            continue
        part = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") % parts
        if text := path.read_bytes():
            documents[_HELD_OUT.get(part, "train")].append(text)
    return documents
