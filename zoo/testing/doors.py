"""A mixer through its other doors: checkpoints, Linen, plain functions."""

import tempfile
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from zoo.functional import pure_dict
from zoo.interop import to_linen
from zoo.testing.case import Case, assert_close


def check_orbax(case: Case) -> None:
    """Parameters saved and restored by Orbax are the same bits, in the same places."""
    import orbax.checkpoint as ocp

    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder) / "params", case.params)
        checkpointer.wait_until_finished()
        like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), case.params)
        restored = checkpointer.restore(Path(folder) / "params", like)
    assert_close(restored, case.params, "restored parameters", 0)


def check_plain_functions(case: Case) -> None:
    """`zoo.init_apply` makes the parameters and the outputs of the NNX module."""
    x = case.x()
    module = case.cls(**case.options, rngs=nnx.Rngs(jax.random.key(0)))
    module.eval()
    params = case.init(jax.random.key(0))
    assert_close(params, pure_dict(nnx.state(module, nnx.Param)), "parameters of init against the module's", 2e-6)
    assert_close(case.run(params, x), module(x), "apply against the module")


def check_linen(case: Case) -> None:
    """`zoo.to_linen` has the same parameters and outputs as the NNX module, and drops out by Linen's stream."""
    x = case.x()
    options = dict(case.options)
    module = to_linen(case.cls, options.pop("d_model"), **options, dropout=0.5)
    made = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    assert sorted(_paths_and_shapes(made)) == sorted(_paths_and_shapes(case.params)), (
        "Linen's parameters have other paths"
    )
    variables = {"params": case.params}
    quiet = jax.jit(lambda variables, x: module.apply(variables, x, deterministic=True))
    assert_close(quiet(variables, x), case.run(case.params, x), "Linen against NNX", 2e-6)
    run = jax.jit(lambda variables, x, key: module.apply(variables, x, deterministic=False, rngs={"dropout": key}))
    first, same, other = (np.asarray(run(variables, x, jax.random.key(seed))) for seed in (1, 1, 2))
    assert np.array_equal(first, same), "Linen: dropout with the same key differs"
    assert not np.allclose(first, other), "Linen: dropout does not depend on the stream"


def _paths_and_shapes(tree: object) -> list[tuple[str, tuple[int, ...]]]:
    """Paths and shapes."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape) for path, leaf in found]
