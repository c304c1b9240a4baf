"""Whether an update fits, what would, and how much memory there is."""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.functional import Functional
from zoo.training import memory
from zoo.training.build import make_task, model_maker
from zoo.training.memory import OutOfMemory, advice, amount, host_memory, is_out_of_memory, out_of_memory, plan_step
from zoo.training.optimizer import make_optimizer
from zoo.training.recipe import recipe_from_dict
from zoo.training.step import init_state, make_train_step

GB = 10**9
# Batch size, parts and length.
PRESENT = {"toy_mean": (16, 1, 96), "softmax": (16, 2, 160)}


def recipe(variant, batch_size, accumulate, max_len):
    return recipe_from_dict(
        {
            "variant": variant,
            "task": {"name": "toy", "source": "last", "max_len": max_len},
            "model": {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 8, "positions": "learned"},
            "train": {"batch_size": batch_size, "accumulate": accumulate, "schedule": "constant"},
        }
    )


def example(batch_size, length):
    return {
        "inputs": np.ones((batch_size, length), np.int32),
        "mask": np.ones((batch_size, length), bool),
        "label": np.zeros(batch_size, np.int32),
        "weight": np.ones(batch_size, np.float32),
    }


def compiled_step(variant, batch_size, accumulate, max_len):
    """The update, compiled for arrays as training does it, and its arguments."""
    settings = recipe(variant, batch_size, accumulate, max_len)
    task = make_task(settings)
    functional, optimizer = Functional(model_maker(settings, task.info)), make_optimizer(settings.train)
    arguments = init_state(functional, optimizer, settings.train), example(batch_size, max_len), jax.random.key(1)
    return make_train_step(functional, task, optimizer, settings.train).lower(*arguments).compile(), arguments


@functools.cache
def planner(variant):
    """A plan that compiles each setting once in all tests."""
    batch_size, _, max_len = PRESENT[variant]
    return functools.cache(plan_step(recipe(variant, *PRESENT[variant]), example(batch_size, max_len), length=max_len))


def settings(batch_size, accumulate, max_len, rows=1):
    return {"batch_size": batch_size, "accumulate": accumulate, "max_len": max_len, "rows": rows}


@pytest.mark.parametrize(
    ("variant", "share"), [("toy_mean", 0.7), pytest.param("softmax", 0.45, marks=pytest.mark.slow)]
)
def test_what_is_advised_fits_and_little_more_would_not(toy, variant, share):
    batch_size, accumulate, max_len = present = PRESENT[variant]
    plan = planner(variant)
    step, arguments = compiled_step(variant, *present)
    planned = plan(*present)
    assert planned == memory.planned_bytes(step)
    assert planned > sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[:2]))
    limit = int(share * planned)
    found = advice(plan, planned=planned, available=limit, **settings(*present))
    advised = {
        "accumulate": (batch_size, found.accumulate, max_len),
        "batch_size": (found.batch_size, accumulate, max_len),
        "max_len": (batch_size, accumulate, found.max_len),
    }
    for name, setting in advised.items():
        assert memory.planned_bytes(compiled_step(variant, *setting)[0]) == found.needs[name] <= limit, name
    assert all(f"={getattr(found, name)} (" in found.text() for name in advised)
    # The next setting does not fit: none in between was passed over.
    fewer = max(parts for parts in range(1, found.accumulate) if batch_size % parts == 0)
    assert fewer == accumulate or plan(batch_size, fewer, max_len) > limit
    assert plan(math.ceil(1.25 * found.batch_size / accumulate) * accumulate, accumulate, max_len) > limit
    assert plan(batch_size, accumulate, math.ceil(1.25 * found.max_len)) > limit


CURVES = {
    "linear": lambda rows, length: 1000 + 30 * rows * length,
    "mostly state": lambda rows, length: 10**6 + 30 * rows * length,
    "quadratic": lambda rows, length: 1000 + 30 * rows * length + rows * length**2,
    # Above a size another algorithm is chosen, which needs less.
    "chunked": lambda rows, length: 1000 + 30 * rows * length + min(rows * length**2, 6_000_000),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2, 0.05])
@pytest.mark.parametrize(("rows", "accumulate"), [(1, 1), (4, 2)])
def test_the_search_is_near_the_best_in_few_compilations(curve, share, rows, accumulate):
    batch_size, max_len = 64, 1000
    calls = []

    def need(size, parts, length):
        assert size % (rows * parts) == 0
        return CURVES[curve](size // parts // rows, length)

    def plan(*setting):
        calls.append(setting)
        return need(*setting)

    planned = need(batch_size, accumulate, max_len)
    limit = int(share * planned)
    found = advice(plan, planned=planned, available=limit, **settings(batch_size, accumulate, max_len, rows))
    assert len(calls) <= 12
    assert len(set(calls)) == len(calls)
    lengths = [length for length in range(16, max_len) if length <= 64 or length % 16 == 0]
    unit = rows * accumulate
    best = {
        "accumulate": [
            part for part in range(accumulate + 1, 65) if 64 % (rows * part) == 0 and need(64, part, 1000) <= limit
        ][:1],
        "batch_size": [size for size in range(unit, 64, unit) if need(size, accumulate, 1000) <= limit][-1:],
        "max_len": [length for length in lengths if need(64, accumulate, length) <= limit][-1:],
    }
    for name, values in best.items():
        value = getattr(found, name)
        assert (value is None) == (not values), name
        if value is None:
            continue
        advised = {**settings(batch_size, accumulate, max_len), name: value}
        assert need(advised["batch_size"], advised["accumulate"], advised["max_len"]) == found.needs[name] <= limit
        if name == "accumulate":
            assert values[0] <= value <= 2 * values[0]
        else:
            assert values[0] >= value >= min(0.7 * values[0], values[0] - 2 * unit), name
        if name == "max_len":
            assert value in lengths


def test_the_text_names_what_fits():
    need = {(32, 4, 2048): 5.3e9, (8, 1, 2048): 5.2e9, (32, 1, 896): 7.9e9}
    advised = memory.Advice(
        planned=int(19.6e9),
        available=8 * GB,
        accumulate=4,
        batch_size=8,
        max_len=896,
        present=(32, 1, 2048),
        needs=dict(zip(("accumulate", "batch_size", "max_len"), map(int, need.values()), strict=True)),
    )
    assert advised.text() == (
        "one update of batch 32 x 2048 needs 19.6 GB of memory by the compiler's plan, 8.0 GB are available. These "
        "fit: train.accumulate=4 (the same update in 4 parts, 5.3 GB), or train.batch_size=8 (5.2 GB), or "
        "task.max_len=896 (7.9 GB). model.remat=full and a mixer of linear memory may help as well."
    )
    alone = dataclasses.replace(
        advised, accumulate=None, batch_size=None, needs={"max_len": 10**6}, present=(32, 2, 2048), devices=4
    )
    assert alone.text().startswith(
        "one update of batch 32 x 2048 in 2 parts needs 19.6 GB of memory on each device by the compiler's plan, "
        "8.0 GB are available. This fits: task.max_len=896 (1.0 MB). model"
    )


def test_where_nothing_fits_the_least_is_named():
    found = advice(lambda b, a, n: 5 * GB + b // a * n, planned=6 * GB, available=GB, **settings(32, 1, 2048))
    assert (found.accumulate, found.batch_size, found.max_len) == (None, None, None)
    assert "was found to fit; the least is 5.0 GB, with train.batch_size=1." in found.text() or (
        "was found to fit; the least is 5.0 GB, with task.max_len=32." in found.text()
    )
    # Nothing smaller exists, or it cannot be compiled: no least either.
    for plan, present in ((lambda *_: 1 / 0, (4, 1, 64)), (lambda *_: 5 * GB, (1, 1, 1))):
        text = advice(plan, planned=6 * GB, available=GB, **settings(*present)).text()
        assert text.endswith("was found to fit. model.remat=full and a mixer of linear memory may help.")


def test_lengths_that_a_model_cannot_have_are_passed_over(toy, monkeypatch):
    class Fixed(toy):
        def __init__(self, max_len=None, **options):
            super().__init__(max_len=8, **options)

    monkeypatch.setattr(memory, "make_task", lambda recipe, _: Fixed(max_len=recipe.task.max_len))
    with pytest.raises(ValueError, match="toy cannot have max_len=4, only 8"):
        plan_step(recipe("toy_mean", 16, 1, 8), example(16, 8), length=8)(16, 1, 4)

    def plan(batch_size, accumulate, max_len):
        if max_len != 100:
            raise ValueError("only 100")
        return batch_size // accumulate * 1000

    found = advice(plan, planned=16000, available=9000, **settings(16, 1, 100))
    assert (found.accumulate, found.batch_size, found.max_len) == (2, 9, None)


def test_a_step_that_does_not_fit_is_refused(toy, monkeypatch):
    step, arguments = compiled_step("softmax", *PRESENT["softmax"])
    planned = memory.planned_bytes(step)

    def never(*_):
        raise AssertionError("nothing is compiled for a step that fits")

    for enough in (None, planned, 10 * planned):
        monkeypatch.setattr(memory, "device_memory", lambda enough=enough: enough)
        memory.require_memory(step, never, **settings(*PRESENT["softmax"]))
    monkeypatch.setattr(memory, "device_memory", lambda: int(0.45 * planned))
    with pytest.raises(OutOfMemory, match=r"These fit: train.accumulate=\d+ .*train.batch_size=.*task.max_len="):
        memory.require_memory(step, planner("softmax"), **settings(*PRESENT["softmax"]))
    monkeypatch.undo()
    memory.require_memory(step, never, **settings(*PRESENT["softmax"]))
    step(*arguments)  # it did fit


def test_an_error_of_xla_is_explained(monkeypatch):
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jnp.zeros(2**60, jnp.int8).block_until_ready()
    too_much = caught.value
    assert is_out_of_memory(too_much)
    others = [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: of a queue"),
        jax.errors.JaxRuntimeError("INTERNAL: a bug"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 250000"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem."),
    ]
    plan = lambda batch_size, accumulate, max_len: batch_size // accumulate * max_len * 10**6  # noqa: E731
    present = settings(8, 1, 64)
    for error in others:
        assert not is_out_of_memory(error)
        assert out_of_memory(error, plan, **present) is None
    hbm = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 16G hbm.\nProgram vmem requirement 1K"
    assert is_out_of_memory(jax.errors.JaxRuntimeError(hbm))

    monkeypatch.setattr(memory, "device_memory", lambda: 300 * 10**6)
    text = str(out_of_memory(too_much, plan, **present))
    assert "needs 512.0 MB" in text
    assert "300.0 MB are available. These fit: train.accumulate=2 (" in text
    assert text.endswith("(XLA: RESOURCE_EXHAUSTED: Out of memory allocating 1152921504606846976 bytes.)")
    # It should have fitted: then half of it is looked for.
    for available, said in (
        (GB, "; 1.0 GB are there, but other arrays or processes hold too much of them."),
        (None, "."),
    ):
        monkeypatch.setattr(memory, "device_memory", lambda available=available: available)
        text = str(out_of_memory(too_much, plan, **present))
        assert f"needs 512.0 MB of memory by the compiler's plan{said} These need at most half of it: " in text
        assert "train.accumulate=2 (the same update in 2 parts, 256.0 MB), or train.batch_size=4 (256.0 MB)" in text

    # The compiler itself may run out of memory: whatever compiles is worth trying where no limit is known.
    def compiles(batch_size, accumulate, max_len):
        if plan(batch_size, accumulate, max_len) > 200 * 10**6:
            raise too_much
        return plan(batch_size, accumulate, max_len)

    text = str(out_of_memory(too_much, compiles, **present))
    assert (
        "one update of batch 8 x 64 needs more memory than the compiler can plan with. These fit: train.accum" in text
    )


def system(folder, *, available=None, own=None, cgroup="", limits=()):
    """Files as Linux has them; sizes in kB."""
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    if available is not None:
        lines = (
            "MemTotal:       24684084 kB",
            f"MemAvailable:   {available} kB",
            "SwapFree:  500 kB",
            "HugePages_Free:   0",
        )
        (proc / "meminfo").write_text("\n".join(lines))
    if own is not None:
        (proc / "self" / "status").write_text(f"Name:\tpython\nVmRSS:\t  9999 kB\nRssAnon:\t    {own} kB\n")
    (proc / "self" / "cgroup").write_text(cgroup)
    for path, text in dict(limits).items():
        (groups / path).parent.mkdir(parents=True, exist_ok=True)
        (groups / path).write_text(f"{text}\n")
    return {"proc": proc, "cgroups": groups}


V1 = "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"available": 7000, "own": 1000}, 8500),
        ({"available": 7000}, 7500),
        # Version 2: the group's own limit, one above it, none.
        ({"available": 7000, "own": 0, "cgroup": "0::/a/b\n", "limits": {"a/b/memory.max": 4096000}}, 4500),
        (
            {
                "available": 7000,
                "own": 0,
                "cgroup": "0::/a/b\n",
                "limits": {"a/b/memory.max": "max", "a/memory.max": 2048},
            },
            502,
        ),
        ({"available": 7000, "own": 0, "cgroup": "0::/\n", "limits": {"memory.max": "max"}}, 7500),
        ({"cgroup": "0::/\n", "limits": {"memory.max": 1024}}, 1),
        # Version 1: in a container the path is the host's, and only the top is there.
        ({"available": 7000, "own": 0, "cgroup": V1, "limits": {"memory/memory.limit_in_bytes": 4096000}}, 4500),
        ({"available": 7000, "own": 0, "cgroup": V1, "limits": {"memory/memory.limit_in_bytes": 2**63 - 4096}}, 7500),
        ({"cgroup": V1, "limits": {"memory/docker/abc/memory.limit_in_bytes": 2**63 - 4096}}, None),
    ],
)
def test_memory_of_the_host(tmp_path, files, expected):
    found = host_memory(**system(tmp_path, **files))
    assert found == (None if expected is None else expected * 1024)


def test_memory_of_this_machine():
    total = host_memory()
    if total is None:
        pytest.skip("the system does not tell")
    assert memory.device_memory() == pytest.approx(total / jax.local_device_count(), rel=0.2)
    assert total > 10**8


def test_an_accelerator_has_its_allocators_limit(monkeypatch):
    class Device:
        platform = "gpu"
        stats = {"bytes_limit": 7 * GB, "bytes_in_use": 3 * GB}  # noqa: RUF012

        def memory_stats(self):
            return self.stats

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert memory.device_memory() == 7 * GB
    for unknown in ({}, None):
        monkeypatch.setattr(Device, "stats", unknown)
        assert memory.device_memory() is None


def test_amounts():
    assert [amount(count) for count in (19.6e9, 350e6, 1500, 0)] == ["19.6 GB", "350.0 MB", "1.5 kB", "0.0 kB"]


EIGHT = """
import jax, numpy as np, test_memory as t
from zoo.training import memory
from zoo.training.sharding import Layout, make_mesh, put_batch
recipe = t.recipe("toy_mean", 64, 1, 128)
layout = Layout(mesh={"data": 4, "fsdp": 2})
mesh = make_mesh(layout, 64)
task = t.make_task(recipe)
functional, optimizer = t.Functional(t.model_maker(recipe, task.info)), t.make_optimizer(recipe.train)
state = t.init_state(functional, optimizer, recipe.train, mesh)
batch = put_batch(mesh)(t.example(64, 128))
step = t.make_train_step(functional, task, optimizer, recipe.train, mesh)
compiled = step.lower(state, batch, jax.random.key(1)).compile()
assert memory.plan_step(recipe, batch, length=128, mesh=mesh)(64, 1, 128) == memory.planned_bytes(compiled)
each = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves((state, batch)))
whole = sum(leaf.nbytes for leaf in jax.tree.leaves((state, batch)))
print(each, compiled.memory_analysis().argument_size_in_bytes, whole)
print(memory.host_memory() or 8, memory.device_memory() or 1, memory._available(2) or 4)
"""


def test_the_plan_is_for_each_of_several_devices(run_python):
    flags = "--xla_force_host_platform_device_count=8"
    done = run_python("-c", EIGHT, XLA_FLAGS=flags, PYTHONPATH=str(Path(__file__).parent))
    (each, argument, whole), (host, device, available) = (map(int, line.split()) for line in done.stdout.splitlines())
    # The key and the padding of small arrays are extra.
    assert each <= argument < each + 4096 < whole
    assert device == pytest.approx(host / 8, rel=0.1)
    assert available == pytest.approx(host / 2, rel=0.1)


@pytest.mark.parametrize("name", ["inputs", "pair", "label", "features"])
def test_axes_that_change_with_the_settings(name):
    shapes = {"inputs": (8, 100), "pair": (8, 2, 100), "label": (8,), "features": (8, 100, 100)}
    resized = {"inputs": (4, 50), "pair": (4, 2, 50), "label": (4,), "features": (4, 50, 100)}
    assert memory.resized(np.zeros(shapes[name], np.int8), 4, 100, 50).shape == resized[name]
