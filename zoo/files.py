"""Files that are whole or not there, and that tell when they were changed."""

import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that is either there in full or not at all, whenever the process or the machine stops."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Removes what a process that was killed in `write_bytes` left in a folder, to which nobody writes now."""
    for path in folder.glob("*.[0-9]*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of a text, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, values: Any, *, sort_keys: bool = False) -> None:
    """`write_bytes` of JSON, indented."""
    write_text(path, json.dumps(values, indent=2, sort_keys=sort_keys) + "\n")


def seal(body: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready values with "digest", the SHA-256 of all the rest: `unseal` then finds any damage."""
    return {**body, "digest": _digest(body)}


def unseal(data: bytes) -> dict[str, Any]:
    """The values of a file that holds sealed JSON, "digest" included.

    Raises:
      ValueError: it is not JSON, or not what was written; says which.
    """
    try:
        values = json.loads(data)
    except json.JSONDecodeError as error:
        raise ValueError(f"it breaks off, or is no JSON, at line {error.lineno}") from error
    if not isinstance(values, dict) or "digest" not in values:
        raise ValueError("it has no digest")
    if values["digest"] != _digest({key: value for key, value in values.items() if key != "digest"}):
        raise ValueError("its digest does not fit")
    return values


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def lock_file(file: IO[bytes], *, wait: bool) -> bool:
    """Locks an open file for this process alone, until it is closed; True also where the disk knows no locks.

    Returns:
      False where another process holds the lock and `wait` is off.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True
