"""How much memory the system can still give to this process."""

import re
from pathlib import Path


def host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process can come to hold; None where the system does not tell (macOS, Windows).

    That is what it holds in anonymous memory now (the state is in there, and the plan counts the state), and what the
    system could still find: available memory and free swap. A control group's limit caps all but the swap. The rule
    errs by what this process needs for itself and others of its group hold, towards letting a run pass; never against
    one that fits. Mapped files are left out: their pages are among the available memory already.

    Args:
      proc: where procfs is mounted.
      cgroups: where control groups are mounted, version 1 or 2.
    """
    system, own = _sizes(proc / "meminfo"), _sizes(proc / "self" / "status")
    limits = _group_limits(proc / "self" / "cgroup", cgroups)
    if "MemAvailable" in system:
        limits.append(system["MemAvailable"] + own.get("RssAnon", own.get("VmRSS", 0)))
    return min(limits) + system.get("SwapFree", 0) if limits else None


def _sizes(path: Path) -> dict[str, int]:
    """The lines "name: number kB" of a file, in bytes; nothing where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return {name: int(number) * 1024 for name, number in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}


def _group_limits(path: Path, mount: Path) -> list[int]:
    """The memory limits of this process's control group and of those above it, as far as they can be seen."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
        # In a container the path may be the host's, of which only the top is there, so those missing are passed over.
        inner = top / group.lstrip("/")
        folders = [inner, *inner.parents]
        found += [_limit(folder / name) for folder in folders[: folders.index(top) + 1]]
    return [limit for limit in found if limit is not None]


def _limit(path: Path) -> int | None:
    try:
        value = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # version 2 writes "max" for none
        return None
    return value if value < 2**60 else None  # version 1 writes the largest number of pages for none
