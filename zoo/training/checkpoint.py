"""Checkpoints by Orbax: state, data position and bookkeeping in one atomic step, the last and the best kept apart."""

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from zoo.typing import PyTree


class CheckpointError(RuntimeError):
    """There is no checkpoint, or it does not fit what is restored into it."""


class Checkpoints:
    """The newest checkpoints of one folder.

    Orbax writes into a temporary folder and renames it when it is whole, so a checkpoint that exists is complete.

    Args:
      folder: is made if missing.
      keep: how many of the newest stay; None for all, until `keep_only`.
    """

    def __init__(self, folder: Path, *, keep: int | None):
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
        # Orbax writes the bookkeeping in the background, when the run may have changed it.
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(copy.deepcopy(meta)))
        self._manager.save(step, args=args, force=True)

    def keep_only(self, steps: Collection[int]) -> None:
        """Deletes all other steps."""
        for step in set(self._manager.all_steps()) - set(steps):
            self._manager.delete(step)

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

        # Asked first: an Orbax restore that fails half-way leaves reads behind, which fail later and elsewhere.
        if misfits := self._misfits(like, step):
            more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
            raise CheckpointError(
                f"the checkpoint {self.folder / str(step)} does not fit this model: {'; '.join(misfits[:3])}{more}. "
                "Was it made by another recipe or another version?"
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(abstract_leaf, like)))
        return self._manager.restore(step, args=args)["state"]

    def _misfits(self, like: PyTree, step: int) -> list[str]:
        """The arrays in which a checkpoint and `like` differ, with both shapes."""
        try:
            saved = ocp.PyTreeCheckpointHandler().metadata(epath.Path(self.folder) / str(step) / "state").tree
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"the checkpoint {self.folder / str(step)} cannot be read: {error}") from error
        here = {
            jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
            for path, leaf in jax.tree.leaves_with_path(like)
        }
        there = {leaf.name: tuple(leaf.shape) for leaf in jax.tree.leaves(saved)}
        return [
            f"{name} is {list(there[name]) if name in there else 'missing'} there, "
            f"{list(here[name]) if name in here else 'missing'} here"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]

    def _pick(self, step: int | None) -> int:
        step = self.latest() if step is None else step
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self.folder}.")
        return step
