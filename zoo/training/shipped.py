"""Where the shipped recipes are, told without importing JAX."""

from pathlib import Path


def recipe_folder() -> Path:
    """Where the shipped recipes are: in the package, or beside it in a checkout."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    folder = recipe_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
