"""Array aliases, written once.

Shapes in signatures are jaxtyping strings over these letters: `B` batch, `T` query or sequence, `S` key, `D` model
width, `H` heads, `K` key head width, `V` value head width, `N` state, `F` feed-forward width, `C` classes.
"""

from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

PyTree = Any
DType = jax.typing.DTypeLike

__all__ = ["Array", "Bool", "DType", "Float", "Int", "Num", "PRNGKeyArray", "PyTree"]
