"""Where data lives on this machine."""

import os
from pathlib import Path


def data_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """The folder of all prepared and downloaded data; it need not exist yet.

    Args:
      path: a folder chosen by the caller; it wins over everything else.

    Returns:
      `path`, or the environment variable ZOO_DATA, or `~/.cache/zoo`, as an absolute path.
    """
    chosen = path if path is not None else os.environ.get("ZOO_DATA") or Path("~/.cache/zoo")
    return Path(chosen).expanduser().absolute()
