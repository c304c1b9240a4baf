"""The list of files of a prepared data set, with sizes and checksums. Written last, so its presence means "whole"."""

import errno
import hashlib
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.files import lock_file, seal, unseal, write_json

NAME = "manifest.json"
# Files up to this size are hashed whenever the data set is opened; larger ones only when asked.
_ALWAYS_HASHED = 1 << 20


class DataError(RuntimeError):
    """Prepared or downloaded data is missing, damaged or cannot be written; the message says how to mend it."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, facts: dict[str, Any], *, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Lists all files of `folder` with size and SHA-256, and writes the list there.

    Nothing of the time, the machine or the path goes in: equal files and facts give equal manifests.

    Args:
      folder: the folder of a data set or a checkpoint; sub-folders count.
      facts: what else is to be kept, JSON-ready.
      leave_out: files that are not listed, by their path below `folder`.

    Returns:
      The manifest: `facts`, "files" and "digest", the SHA-256 of all the rest.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != NAME and name not in leave_out:
            files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = seal({**facts, "files": files})
    write_json(folder / NAME, manifest, sort_keys=True)
    return manifest


def read_manifest(folder: Path, *, mend: str, verify: bool = False) -> dict[str, Any]:
    """The manifest of a data set, after checking the files against it.

    Args:
      folder: the folder of the data set.
      mend: what the user should run after deleting `folder`, for the messages.
      verify: compute the SHA-256 of every file; otherwise sizes are checked, and the sums of files up to 1 MB.

    Raises:
      DataError: a file is missing or damaged; the message names it.
    """
    try:
        return check_manifest(folder, verify=verify)
    except DataError as error:
        raise DataError(f"{error} Delete the folder {folder} and run `{mend}`.") from None


def check_manifest(folder: Path, *, verify: bool) -> dict[str, Any]:
    """The manifest of a folder, after checking the files against it, with `verify` to the last bit.

    Raises:
      DataError: a file is missing or damaged; the message names it, and has no remedy.
    """
    try:
        manifest = unseal((folder / NAME).read_bytes())
    except FileNotFoundError:
        state = f"is not complete (it has no {NAME})" if folder.is_dir() else "does not exist"
        raise DataError(f"{folder} {state}.") from None
    except ValueError as error:
        raise DataError(f"{folder / NAME} is damaged: {error}.") from None
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing.")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DataError(f"{path} is damaged: it has {size:,} bytes instead of {entry['bytes']:,}.")
        if (verify or size <= _ALWAYS_HASHED) and file_sha256(path) != entry["sha256"]:
            raise DataError(f"{path} is damaged: its SHA-256 differs from the one recorded.")
    return manifest


@contextmanager
def clear_disk_errors(folder: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turns "no space" and "no permission" into a `DataError` that says what to do.

    Args:
      folder: where the body writes; it is created.
      needed_bytes: refuse at once if the disk has less room than this.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed_bytes:
            raise OSError(errno.ENOSPC, f"{free / 2**20:,.1f} MB are free, {needed_bytes / 2**20:,.1f} MB are needed")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "the folder is not writable")
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        reason = getattr(error, "strerror", None) or str(error)
        # The ArrayRecord writer is C++ and reports a full disk as a RuntimeError.
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in reason:
            advice = "Free some space and run again (finished parts are kept), or choose another disk with ZOO_DATA."
            raise DataError(f"No space left for {folder}: {reason}. {advice}") from error
        forbidden = number in (errno.EACCES, errno.EPERM, errno.EROFS)
        if forbidden or (isinstance(error, OSError) and not folder.is_dir()):
            raise DataError(f"Cannot write to {folder}: {reason}. Choose another folder with ZOO_DATA.") from error
        raise


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a lock file, so that two processes do not prepare the same data at once; the second waits.

    The system frees the lock when its holder ends, however it ends. Where there are no such locks (Windows, some
    network disks) this does nothing.
    """
    with open(path, "ab") as file:
        lock_file(file, wait=True)
        yield
