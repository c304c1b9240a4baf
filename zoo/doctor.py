"""What `zoo doctor` says."""

import importlib.metadata
import importlib.util
from pathlib import Path

from zoo import registry
from zoo.data.paths import data_dir
from zoo.training.recipe import list_recipes
from zoo.training.run import environment

_EXTRAS = {
    "plot": "matplotlib",
    "pathfinder": "numba",
    "tensorboard": "tensorboardX",
    "hub": "huggingface_hub",
    "wandb": "wandb",
}


def report(folder: Path | None = None) -> str:
    """Versions, devices, extras, data and the next command, as text."""
    lines = [f"{name:18} {value}" for name, value in environment().items() if name not in ("date", "commit")]
    for extra, package in _EXTRAS.items():
        state = "installed" if importlib.util.find_spec(package) else f"missing: pip install 'seqzoo[{extra}]'"
        lines.append(f"{'extra ' + extra:18} {state}")
    lines.append(f"{'data':18} {data_dir(folder)}")
    for spec in registry.list_specs(kind="task"):
        cls = registry.get(spec.name, "task")
        for source in cls.sources:
            ready = cls(source=source, data_dir=folder).is_prepared()
            lines.append(f"  {spec.name + '/' + source:24} {'prepared' if ready else 'not prepared'}")
    lines.append(f"{'recipes':18} {len(list_recipes())} (zoo list --kind recipe)")
    lines.append("next: zoo compare lra/smoke/listops --variants softmax,nystromformer,flowformer --seeds 0,1")
    return "\n".join(lines)
