"""Checkpoints by Orbax: state, data position and bookkeeping in one atomic step, the last and the best kept apart."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from zoo.typing import PyTree


class CheckpointError(RuntimeError):
    """There is no checkpoint, or it does not fit what is restored into it."""


class Checkpoints:
    """The newest checkpoints of one folder.

    Orbax writes into a temporary folder and renames it when it is whole, so a checkpoint that exists is complete.

    Args:
      folder: is made if missing.
      keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, *, keep: int):
        self.folder = Path(folder).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state", "meta"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Saves arrays and JSON-ready bookkeeping as `step`; copies to the host now, writes in the background.

        A step that is there already is left alone: a resumed run repeats it to the bit.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def meta(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """The step (None for the newest) and its bookkeeping.

        Raises:
          CheckpointError: there is none.
        """
        step = self._pick(step)
        return step, self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """The arrays of a step (None for the newest), shaped and placed as in `like` (arrays or shapes).

        Raises:
          CheckpointError: there is none, or its arrays are others than those of `like`.
        """
        step = self._pick(step)
        here = SingleDeviceSharding(jax.local_devices()[0])

        def abstract_leaf(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here)

        abstract = jax.tree.map(abstract_leaf, like)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            return self._manager.restore(step, args=args)["state"]
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"the checkpoint {self.folder / str(step)} does not fit this model; was it made by another recipe or "
                f"another version? ({error})"
            ) from error

    def _pick(self, step: int | None) -> int:
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self.folder}.")
        return step
