"""The data sets of ListOps: what they are made of and where they lie. Nothing here imports TFDS."""

import dataclasses
from pathlib import Path
from typing import Any

from zoo.data.listops import GENERATOR_VERSION, SMOKE_LAW, Law
from zoo.data.manifest import DataError
from zoo.data.paths import data_dir as default_data_dir
from zoo.data.prepared import Prepared

DATASET = "lra_listops"
VERSION = "1.0.0"


@dataclasses.dataclass
class ListopsConfig:
    """One data set of ListOps; a configuration of its TFDS builder, in form.

    Attributes:
      name, description: of the configuration.
      law: the law by which expressions are drawn, or by which published ones are checked.
      train, validation, test: numbers of expressions.
      seed: of the generator.
      published: read the published files instead of drawing.
      chunk_size: expressions drawn per independent stream; part of what a seed means.
    """

    name: str
    description: str = ""
    law: Law = dataclasses.field(default_factory=Law)
    train: int = 96_000
    validation: int = 2_000
    test: int = 2_000
    seed: int = 0
    published: bool = False
    chunk_size: int = 1_000
    # What TFDS asks of a configuration besides; this class is not derived from its own, so that no reader imports it.
    version: None = None
    release_notes: None = None
    supported_versions: tuple[()] = ()
    tags: tuple[()] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Number of expressions by split, in the order in which they are dealt out."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


CONFIGS = (
    ListopsConfig(name="full", description="The size and the law of the Long Range Arena, drawn here."),
    ListopsConfig(
        name="smoke",
        description="Short expressions by the same law, for tests and examples.",
        law=SMOKE_LAW,
        train=6_000,
        validation=500,
        test=500,
    ),
    ListopsConfig(name="published", description="The published basic_{train,val,test}.tsv.", published=True),
)


def get_config(name: str, seed: int = 0) -> ListopsConfig:
    """The configuration of a name; a seed other than 0 is another data set beside it.

    Raises:
      ValueError: unknown name.
    """
    found = next((config for config in CONFIGS if config.name == name), None)
    if found is None:
        raise ValueError(f"ListOps has no source {name!r}; there are {', '.join(config.name for config in CONFIGS)}.")
    if seed == 0 or found.published:
        return found
    return dataclasses.replace(found, name=f"{name}_seed{seed}", seed=seed)


def origin(config: ListopsConfig) -> dict[str, Any]:
    """All that the data depends on."""
    found: dict[str, Any] = {"sizes": config.sizes, "law": dataclasses.asdict(config.law)}
    if config.published:
        return found | {"origin": "published"}
    return found | {
        "origin": "generated",
        "seed": config.seed,
        "chunk_size": config.chunk_size,
        "generator_version": GENERATOR_VERSION,
    }


def prepared(config: ListopsConfig, data_dir: Path | str | None = None) -> Prepared:
    """The prepared data set."""
    return Prepared(default_data_dir(data_dir), f"{DATASET}/{config.name}/{VERSION}", prepare_command(config))


def dataset_folder(config: ListopsConfig, data_dir: Path | str | None = None) -> Path:
    """Where the prepared data set lies."""
    return prepared(config, data_dir).folder


def prepare_command(config: ListopsConfig) -> str:
    """The command that makes the data set, for messages."""
    name, _, seed = config.name.partition("_seed")
    return f"zoo data prepare lra/listops/{name}" + (f" --seed {seed}" if seed else "")


def open_dataset(config: ListopsConfig, data_dir: Path | str | None = None, *, verify: bool = False) -> dict[str, Any]:
    """The manifest of a prepared data set, after checking its files and that they are of this configuration.

    Args:
      config: what is expected.
      data_dir: the folder of all data; None for the default.
      verify: compute the SHA-256 of every file; otherwise sizes are checked, and the sums of small files.

    Raises:
      DataError: it is missing, damaged, or was made from something else.
    """
    data = prepared(config, data_dir)
    manifest = data.manifest(verify=verify)
    for key, value in origin(config).items():
        if manifest.get(key) != value:
            raise DataError(
                f"{data.path} was made with {key} = {manifest.get(key)}, not {value}. "
                f"Delete it and run `{prepare_command(config)}`."
            )
    return manifest
