"""The data sets of Pathfinder: what they are made of and where they lie. Nothing here imports TFDS."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from zoo.data.manifest import DataError
from zoo.data.pathfinder import DIFFICULTIES, GENERATOR_VERSION, Difficulty, law
from zoo.data.pathfinder_published import EXAMPLES
from zoo.data.paths import data_dir as default_data_dir
from zoo.data.prepared import Prepared

VERSION = "1.0.0"
Origin = Literal["full", "smoke", "published"]
ORIGINS: tuple[Origin, ...] = ("full", "smoke", "published")
_SMOKE = {32: 5_000, 64: 1_000, 128: 1_000, 256: 1_000}


@dataclasses.dataclass
class PathfinderConfig:
    """One data set of Pathfinder; a configuration of its TFDS builder, in form.

    Attributes:
      name, description: of the configuration.
      difficulty: "easy", "intermediate" or "hard", which is the Long Range Arena's.
      origin: "full" (200,000 images, drawn here), "smoke" (a few of the same), or "published" (the release's files).
      examples: how many images are drawn; 80 % of them are for training, 10 % for validation and for test.
      seed: of the generator.
      chunk_size: images that are drawn, and kept when the work is interrupted, at once.
    """

    name: str
    description: str = ""
    difficulty: Difficulty = "hard"
    origin: Origin = "full"
    examples: int = EXAMPLES
    seed: int = 0
    chunk_size: int = 250
    # What TFDS asks of a configuration besides; this class is not derived from its own, so that no reader imports it.
    version: None = None
    release_notes: None = None
    supported_versions: tuple[()] = ()
    tags: tuple[()] = ()

    @property
    def published(self) -> bool:
        """Whether the release is read."""
        return self.origin == "published"


def get_config(size: int, difficulty: Difficulty = "hard", origin: str = "full", seed: int = 0) -> PathfinderConfig:
    """The configuration of a set; a seed other than 0 is another data set beside it.

    Raises:
      ValueError: there is no such set.
    """
    law(size, difficulty)
    if origin not in ORIGINS:
        raise ValueError(f"Pathfinder has no source {origin!r}; there are {', '.join(ORIGINS)}.")
    return _config(size, difficulty, origin, seed)


@functools.cache  # TFDS wants its own configurations back, not equal ones
def _config(size: int, difficulty: Difficulty, origin: Any, seed: int) -> PathfinderConfig:
    name = difficulty if origin == "full" else f"{difficulty}_{origin}"
    if seed and origin != "published":
        name += f"_seed{seed}"
    return PathfinderConfig(
        name=name,
        description=f"Curves of {DIFFICULTIES[difficulty]} paddles, {origin}.",
        difficulty=difficulty,
        origin=origin,
        examples=_SMOKE[size] if origin == "smoke" else EXAMPLES,
        seed=0 if origin == "published" else seed,
    )


def configs(size: int) -> list[PathfinderConfig]:
    """The sets of one size that are TFDS' configurations."""
    return [
        get_config(size, difficulty, origin) for difficulty in ("hard", "intermediate", "easy") for origin in ORIGINS
    ]


def labels_path(folder: Path, split: str) -> Path:
    """The file with the labels of a split alone, uint8 [N], so that they can be had without the images."""
    return folder / f"labels-{split}.npy"


def split_bounds(examples: int) -> dict[str, tuple[int, int]]:
    """First and one past the last example of each split: 80, 10 and 10 %, as TFDS cuts."""
    first, second = round(0.8 * examples), round(0.9 * examples)
    return {"train": (0, first), "validation": (first, second), "test": (second, examples)}


def origin_facts(size: int, config: PathfinderConfig) -> dict[str, Any]:
    """All that the data depends on."""
    if config.published:
        return {"origin": "published", "difficulty": config.difficulty}
    return {
        "origin": "generated",
        "difficulty": config.difficulty,
        "law": {
            **dataclasses.asdict(law(size, config.difficulty)),
            "margins": list(law(size, config.difficulty).margins),
        },
        "examples": config.examples,
        "seed": config.seed,
        "generator_version": GENERATOR_VERSION,
    }


def prepared(size: int, config: PathfinderConfig, data_dir: Path | str | None = None) -> Prepared:
    """The prepared data set."""
    name = f"lra_pathfinder{size}/{config.name}/{VERSION}"
    return Prepared(default_data_dir(data_dir), name, prepare_command(size, config), feature="image")


def prepare_command(size: int, config: PathfinderConfig) -> str:
    """The command that makes the data set, for messages."""
    command = f"zoo data prepare lra/pathfinder/{config.origin} size={size}"
    if config.difficulty != "hard":
        command += f" difficulty={config.difficulty}"
    return command + (f" --seed {config.seed}" if config.seed else "")


def open_dataset(
    size: int, config: PathfinderConfig, data_dir: Path | str | None = None, *, verify: bool = False
) -> dict[str, Any]:
    """The manifest of a prepared data set, after checking its files and that they are of this configuration.

    Args:
      size: of the images.
      config: what is expected.
      data_dir: the folder of all data; None for the default.
      verify: compute the SHA-256 of every file; otherwise sizes are checked, and the sums of small files.

    Raises:
      DataError: it is missing, damaged, or was made from something else.
    """
    data = prepared(size, config, data_dir)
    manifest = data.manifest(verify=verify)
    for key, value in origin_facts(size, config).items():
        if manifest.get(key) != value:
            raise DataError(
                f"{data.path} was made with {key} = {manifest.get(key)}, not {value}. Delete it and run `{data.mend}`."
            )
    return manifest
