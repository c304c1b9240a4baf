"""The one check of what a module is called with: every mixer, the embedding and the encoder begin with it."""

from collections.abc import Mapping

from zoo.typing import Array


def check_shapes(
    owner: str, what: str, array: Array, mask: Array | None = None, *, allow_empty: bool = False, **sizes: int
) -> None:
    """Raises unless `array`, and `mask` where there is one, have the shapes that `owner` takes.

    One line at the start of a call, and of a step::

        check_shapes("flowformer", "x [B, T, D]", x, mask, D=self.d_model)
        check_shapes("flowformer", "x_t [B, D]", x_t, D=self.d_model)

    Shapes and dtypes are known while a function is traced, so this leaves nothing in the compiled program, and sees
    under `vmap` and `scan` what the module sees.

    Args:
      owner: who takes the array, for the message.
      what: the array's name and the letters of its axes.
      array: the array.
      mask: bool [B, T], with the B and T of `array`; None where there is none.
      allow_empty: T may be 0.
      **sizes: of the axes that must have one size, by letter.

    Raises:
      ValueError: another number of axes, another size, or T = 0; names the argument, the axis, what is due and what
        came.
      TypeError: `mask` is not boolean.
    """
    name, _, letters = what.partition(" ")
    axes = letters.strip("[]").split(", ")
    _check(owner, name, axes, array, sizes)
    if "T" in axes and not allow_empty and not array.shape[axes.index("T")]:
        axis = axes.index("T")
        raise ValueError(
            f"{owner} needs at least one token; axis {axis} (T) of {name} is 0 (its shape is {array.shape})."
        )
    if mask is None:
        return
    _check(owner, "mask", ["B", "T"], mask, dict(zip(axes, array.shape, strict=True)), f", as in {name}")
    if mask.dtype != bool:
        raise TypeError(
            f"{owner} takes mask [B, T] of booleans, True at real tokens; the dtype of mask is {mask.dtype}."
        )


def _check(owner: str, name: str, axes: list[str], array: Array, sizes: Mapping[str, int], why: str = "") -> None:
    due = ", ".join(f"{letter} = {sizes[letter]}" for letter in axes if letter in sizes)
    takes = f"{owner} takes {name} [{', '.join(axes)}]" + (f" with {due}{why}" if due else "")
    if array.ndim != len(axes):
        named = ", ".join(f"{axis} ({letter})" for axis, letter in enumerate(axes))
        raise ValueError(f"{takes}; {name} has {array.ndim} axes instead of {named} (its shape is {array.shape}).")
    for axis, (letter, size) in enumerate(zip(axes, array.shape, strict=True)):
        if size != sizes.get(letter, size):
            raise ValueError(f"{takes}; axis {axis} ({letter}) of {name} is {size} (its shape is {array.shape}).")
