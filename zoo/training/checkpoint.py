"""Checkpoints by Orbax: state, data position and bookkeeping in one atomic step, the last and the best kept apart.

A checkpoint is written beside its place and renamed when it is whole. Just before, its manifest goes in: the
bookkeeping, and a list of all files with their checksums, so that one which is later cut short or changed is found
before it is used.
"""

import contextlib
import copy
import errno
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

import zoo
from zoo.data.manifest import NAME, DataError, check_manifest, write_manifest
from zoo.files import remove_partial, seal, unseal, write_json
from zoo.typing import PyTree

FORMAT = 1
_TEMPORARY = ".orbax-checkpoint-tmp"
# Orbax writes these at the very end, after the list.
_AFTERWARDS = ("_CHECKPOINT_METADATA", "commit_success.txt")


class CheckpointError(RuntimeError):
    """There is no checkpoint, it is damaged, does not fit what is restored into it, or cannot be written."""


class Checkpoints:
    """The newest checkpoints of one folder.

    Args:
      folder: is made if missing, by a writer.
      keep: how many of the newest stay; None for all, until `keep_only`.
      write: whether this process may write there. A writer clears what an earlier one left half-written; a reader
        changes nothing, so that it can look into a run that is going on.
      facts: what the manifest of each checkpoint shall hold besides its files, JSON-ready.
    """

    def __init__(self, folder: Path, *, keep: int | None, write: bool = True, facts: dict[str, Any] | None = None):
        self.folder = Path(folder).resolve()
        self._facts = {"format": FORMAT, "zoo": zoo.__version__, **(facts or {})}
        self._saving: int | None = None
        self._meta: dict[str, Any] = {}
        main = jax.process_index() == 0
        if write and main:
            self._clear_leftovers()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep if write else None,
            create=write,
            read_only=not write,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files if main else None),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state",))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self._manager.close()

    def close(self) -> None:
        """Ends the writers in the background; what they could not write is not told."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def steps(self) -> list[int]:
        """All steps, ascending, whole or not."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / str(step)

    def check(self, step: int) -> dict[str, Any]:
        """The manifest of a step, after computing the checksum of every file.

        Raises:
          CheckpointError: it is not whole, or of another format; the message names the file.
        """
        try:
            manifest = check_manifest(self.path(step), verify=True)
        except DataError as error:
            raise CheckpointError(f"The checkpoint cannot be used: {error}") from None
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path(step)} has checkpoint format {manifest.get('format')}, written by zoo "
                f"{manifest.get('zoo')}; this is zoo {zoo.__version__}, which reads format {FORMAT}."
            )
        return manifest

    def set_aside(self, step: int) -> Path:
        """Moves a step that cannot be used to a folder "damaged", and says where it lies now."""
        place = self.folder.parent / "damaged" / f"{self.folder.name}-{step}"
        if jax.process_index() == 0:
            place.parent.mkdir(exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            self.path(step).rename(place)
        self._manager.reload()
        return place

    def save(self, step: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Saves arrays and JSON-ready bookkeeping as `step`; copies to the host now, writes in the background.

        Of a step that is there already only the bookkeeping is renewed: a resumed run repeats the arrays to the bit.

        Raises:
          CheckpointError: it, or an earlier one, could not be written.
        """
        self.wait()
        with self._writing(step):
            # A copy, since it is written when the run has gone on and changed it.
            self._meta = copy.deepcopy(meta)
            if step in self._manager.all_steps():
                self._renew(step)
            else:
                self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), force=True)

    def keep_only(self, steps: Collection[int]) -> None:
        """Deletes all other steps."""
        for step in set(self._manager.all_steps()) - set(steps):
            self._manager.delete(step)

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        with self._writing(self._saving):
            self._manager.wait_until_finished()

    def raise_errors(self) -> None:
        """Raises CheckpointError if what is being written in the background has failed; does not wait for it."""
        with self._writing(self._saving):
            self._manager.check_for_errors()

    def meta(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """The step (None for the newest) and its bookkeeping; the arrays are not looked at, see `check`.

        Raises:
          CheckpointError: there is none, or its manifest is damaged.
        """
        step = self._pick(step)
        try:
            return step, unseal((self.path(step) / NAME).read_bytes())["meta"]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path(step) / NAME} is missing or damaged: {error}.") from error

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
                f"the checkpoint {self.path(step)} does not fit this model: {'; '.join(misfits[:3])}{more}. "
                "Was it made by another recipe or another version?"
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(abstract_leaf, like)))
        return self._manager.restore(step, args=args)["state"]

    def _misfits(self, like: PyTree, step: int) -> list[str]:
        """The arrays in which a checkpoint and `like` differ, with both shapes."""
        try:
            saved = ocp.PyTreeCheckpointHandler().metadata(epath.Path(self.path(step)) / "state").tree
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"the checkpoint {self.path(step)} cannot be read: {error}") from error
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

    def _list_files(self) -> None:
        """Called by Orbax when all files of a step are written and before the step gets its name."""
        places = [*self.folder.glob(f"{self._saving}{_TEMPORARY}*"), self.path(self._saving or 0)]
        folder = next(place for place in places if place.is_dir())
        write_manifest(folder, {**self._facts, "step": self._saving, "meta": self._meta}, leave_out=_AFTERWARDS)

    def _renew(self, step: int) -> None:
        """Puts new bookkeeping into the manifest of a step."""
        path = self.path(step) / NAME
        manifest = unseal(path.read_bytes())
        if jax.process_index() == 0 and manifest["meta"] != self._meta:
            del manifest["digest"]
            write_json(path, seal({**manifest, "meta": self._meta}), sort_keys=True)

    def _clear_leftovers(self) -> None:
        for path in self.folder.glob(f"*{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob("[0-9]*"):
            remove_partial(path)

    @contextlib.contextmanager
    def _writing(self, step: int | None):
        """Says of a failure to write which checkpoint it is about and what to do. Orbax raises several kinds."""
        self._saving = step
        try:
            yield
        except Exception as error:
            self._clear_leftovers()
            full = os.strerror(errno.ENOSPC) in str(error) or getattr(error, "errno", None) == errno.ENOSPC
            why = "there is no space left" if full else f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
            good = [number for number in self.steps() if number != step]
            state = f"The checkpoint of step {good[-1]} is whole" if good else "There is no earlier one"
            raise CheckpointError(
                f"the checkpoint of step {step} cannot be written to {self.folder}: {why}. {state}. "
                "Mend the disk, then the same command goes on."
            ) from error
