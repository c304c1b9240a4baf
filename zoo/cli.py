"""The `zoo` command. `list`, `describe` and `--help` answer without importing JAX."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import __version__, registry
from zoo.training.signals import Interrupted, signals_raise


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Exit codes: 0 done, 1 a run that failed, 2 a request that cannot be met, 130 stopped by SIGINT, 143 by SIGTERM.
    """
    args = _parse(argv)
    if not os.environ.get("ZOO_TRACEBACK"):
        # Orbax logs the whole traceback of an error that it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
    try:
        with signals_raise():
            args.run(args)
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        print(f"zoo: {stopped}; the same command goes on.", file=sys.stderr)
        raise SystemExit(stopped.exit_code) from None
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
        if os.environ.get("ZOO_TRACEBACK"):
            raise
        print(f"zoo: {error}", file=sys.stderr)
        # A RuntimeError is one of ours or JAX's: the request was right and the run failed.
        raise SystemExit(1 if isinstance(error, RuntimeError) else 2) from None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with overrides before and after options: argparse takes only the first group for `overrides`."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zoo", description="Efficient sequence models in JAX and Flax NNX.")
    parser.add_argument("--version", action="version", version=f"zoo {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, parents: Sequence[argparse.ArgumentParser] = ()):
        sub = commands.add_parser(name, help=text, description=text, parents=parents)
        sub.set_defaults(run=run)
        return sub

    data_dir = argparse.ArgumentParser(add_help=False)
    data_dir.add_argument("--data-dir", type=Path, help="where data lives (default: $ZOO_DATA or ~/.cache/zoo)")
    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument("recipe", help="a shipped recipe (`zoo list --kind recipe`) or a YAML file")
    recipe.add_argument("overrides", nargs="*", metavar="key=value", help="for example train.lr=3e-3")

    devices = argparse.ArgumentParser(add_help=False)
    group = devices.add_argument_group("devices")
    group.add_argument("--devices", type=int, help="use that many of each process (default: all; a CPU simulates them)")
    group.add_argument("--mesh", help="how they are laid out, as in data=4,fsdp=2 (default: all on data)")
    group.add_argument("--distributed", action="store_true", help="several processes, found through SLURM, MPI or TPU")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="or: where process 0 is, the same in every process,")
    group.add_argument("--num-processes", type=int, help="how many there are,")
    group.add_argument("--process-id", type=int, help="and which this is, from 0")

    command("doctor", _doctor, "Show versions, devices, data and what to type next.", [data_dir])

    sub = command("list", _list, "List what is registered.")
    sub.add_argument("pattern", nargs="?", default="*", help="shell wildcards over the name")
    sub.add_argument("--kind", choices=["variant", "mixer", "model", "task", "recipe"], default="variant")
    for fact in ("causal", "bidirectional", "decode", "padding_mask", "fixed_length"):
        flag = "--" + fact.replace("_", "-")
        sub.add_argument(flag, action=argparse.BooleanOptionalAction, help=f"only those with {fact} true (or false)")
    sub.add_argument("--json", action="store_true")

    sub = command("describe", _describe, "Show the facts of one variant or task.")
    sub.add_argument("name")
    sub.add_argument("--json", action="store_true")

    data = command("data", None, "Prepare and inspect data.").add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("prepare", _data_prepare, "Make or fetch a task's data."),
        ("info", _data_info, "Show sizes, lengths, labels and origin of a task's data."),
        ("pack", _data_pack, "Write a task's prepared data as one file, for a machine without it."),
        ("show", _data_show, "Draw some images of a task into a PNG, and print their labels."),
    ):
        sub = data.add_parser(name, help=text, description=text, parents=[data_dir])
        sub.add_argument("task", help="TASK or TASK/SOURCE, for example lra/listops/smoke")
        sub.set_defaults(run=run)
        if name == "prepare":
            sub.add_argument("--workers", type=int, help="processes (default: one for each core)")
        elif name == "show":
            sub.add_argument("--split", choices=["train", "validation", "test"], default="train")
            sub.add_argument("--count", type=int, default=20, help="images (default: 20)")
            sub.add_argument("--first", type=int, default=0, help="number of the first one (default: 0)")
            sub.add_argument("--out", type=Path, default=Path("images.png"), help="PNG file (default: images.png)")
        elif name == "info":
            sub.add_argument("--verify", action="store_true", help="compute the checksum of every file")
        else:
            sub.add_argument("--out", type=Path, default=Path(), help="a folder, or the file (default: here)")
            sub.add_argument("--examples", type=int, help="only so many training examples")
            sub.add_argument("--max-len", type=int, help="only so many bytes of each row")
        sub.add_argument("overrides", nargs="*", metavar="option=value", help="the task's own, as in horizon=96")
        sub.add_argument("--seed", type=int, default=0, help="of data that is drawn")

    sub = command("train", _train, "Train a variant by a recipe.", [recipe, data_dir, devices])
    sub.add_argument("--variant", help="a registered variant, or a .py file that registers one")
    sub.add_argument("--run-dir", type=Path, help="default: runs/RECIPE/VARIANT-sSEED")
    text = "go on with what the run directory holds (the default), or refuse a directory that holds a run"
    sub.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=text)
    sub.add_argument("--profile", metavar="steps=FIRST:LAST", help="trace these updates into RUN_DIR/profile")
    sub.add_argument("--dry-run", action="store_true", help="check everything, show what would run, compute nothing")

    sub = command("evaluate", _evaluate, "Evaluate a run's parameters.", [data_dir, devices])
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--which", choices=["best", "last"], default="best")
    sub.add_argument("--split", choices=["train", "validation", "test"], default="test")

    sub.add_argument("overrides", nargs="*", metavar="option=value", help="of the task, as in units=original")

    sub = command("generate", _generate, "Continue a text by a run of a byte language model.")
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--prompt", default="", help="the text to go on with")
    sub.add_argument("--tokens", type=int, default=200, help="bytes to make (default: 200)")
    sub.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest (default: 0.8)")
    sub.add_argument("--top-k", type=int, help="draw from the k likeliest only")
    sub.add_argument("--top-p", type=float, help="draw from the likeliest that make up p of the probability")
    sub.add_argument("--seed", type=int, default=0, help="of the draws")
    sub.add_argument("--which", choices=["best", "last"], default="best")

    sub = command("sample", _sample, "Draw images from a run of a density model, into a PNG.")
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--count", type=int, default=16, help="images (default: 16)")
    sub.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest (default: 1)")
    sub.add_argument("--seed", type=int, default=0, help="of the draws")
    sub.add_argument("--which", choices=["best", "last"], default="best")
    sub.add_argument("--out", type=Path, help="PNG file to write (default: RUN_DIR/samples.png)")

    sub = command("forecast", _forecast, "Predict how a table of measurements goes on, by a forecasting run.")
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("table", type=Path, help="a csv file with the run's columns")
    sub.add_argument("--start", metavar="TIME", help="first row to predict (default: the one after the last)")
    sub.add_argument("--holdout", type=int, metavar="ROWS", help="predict the last ROWS of the table instead")
    sub.add_argument("--steps", type=int, help="rows to predict (default: the horizon); beyond it from predictions")
    sub.add_argument("--which", choices=["best", "last"], default="best")
    sub.add_argument(
        "--out", type=Path, help="csv file to write (default: RUN_DIR/forecast.csv); the plot lies beside it"
    )
    sub.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="draw it (needs matplotlib)")

    sub = command("compare", _compare, "Train several variants by one recipe and compare them.", [recipe, data_dir])
    sub.add_argument("--variants", required=True, help="comma separated")
    sub.add_argument("--seeds", default="0", help="comma separated (default: 0)")
    sub.add_argument("--out", type=Path, help="default: runs/compare/RECIPE; finished runs in it are kept")
    return parser


def _list(args: argparse.Namespace) -> None:
    if args.kind == "recipe":
        from fnmatch import fnmatchcase

        from zoo.training.shipped import list_recipes

        names = [name for name in list_recipes() if fnmatchcase(name, args.pattern)]
        print(json.dumps(names) if args.json else "\n".join(names))
        return
    facts = ("causal", "bidirectional", "decode", "padding_mask", "fixed_length")
    filters = {fact: getattr(args, fact) for fact in facts if getattr(args, fact) is not None}
    if args.kind != "variant":
        filters["kind"] = args.kind
    specs = registry.list_specs(args.pattern, **filters)
    if args.kind == "variant":
        specs = [spec for spec in specs if spec.kind != "task"]
    if args.json:
        print(json.dumps([spec.to_dict() for spec in specs], indent=2))
    elif not specs:
        print("nothing fits.", file=sys.stderr)
    elif args.kind == "task":
        _print_table(["name", "inputs", "title"], [[spec.name, "/".join(spec.inputs), spec.title] for spec in specs])
    else:
        yes = {True: "yes", False: "-"}
        head = ["name", "kind", "time", "memory", "causal", "bidir.", "mask", "decode", "title"]
        flags = ("causal", "bidirectional", "padding_mask", "decode")
        rows = [
            [spec.name, spec.kind, spec.time, spec.memory, *[yes[getattr(spec, flag)] for flag in flags], spec.title]
            for spec in specs
        ]
        _print_table(head, rows)


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _describe(args: argparse.Namespace) -> None:
    facts = registry.spec(args.name).to_dict()
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    facts.pop("test_args")
    for name, value in facts.items():
        if value not in ("", []):
            print(f"{name:14} {', '.join(value) if isinstance(value, list) else value}")


def _task(args: argparse.Namespace, **options: Any) -> Any:
    """The task that "TASK" or "TASK/SOURCE" names."""
    parts = args.task.split("/")
    names = [spec.name for spec in registry.list_specs(kind="task")]
    for count in range(len(parts), 0, -1):
        name = "/".join(parts[:count])
        if name in names:
            source = {"source": "/".join(parts[count:])} if count < len(parts) else {}
            cls = registry.get(name, "task")
            known = registry.option_names(cls)
            for option in options:
                if option not in known:
                    raise ValueError(f"{name} has no option {option!r}. {registry.did_you_mean(option, known)}")
            return cls(data_dir=args.data_dir, **source, **options)
    raise registry.RegistryError(f"There is no task named {args.task!r}. {registry.did_you_mean(args.task, names)}")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of a task, given as name=value."""
    from zoo.training.recipe import parse_options

    return parse_options(args.overrides)


def _data_prepare(args: argparse.Namespace) -> None:
    task = _task(args, seed=args.seed, **_options(args))
    print(task.prepare(workers=args.workers))


def _prepared_task(args: argparse.Namespace) -> Any:
    task = _task(args, seed=args.seed, **_options(args))
    if not task.is_prepared():
        raise FileNotFoundError(f"{args.task} is not prepared; run: zoo data prepare {args.task}")
    return task


def _data_show(args: argparse.Namespace) -> None:
    from zoo.pictures import show

    print(show(_prepared_task(args), args.out, args.split, count=args.count, first=args.first))


def _data_info(args: argparse.Namespace) -> None:
    task = _prepared_task(args)
    if args.verify:
        task.verify()
    print(json.dumps(task.describe(), indent=2))


def _data_pack(args: argparse.Namespace) -> None:
    from zoo.tasks.packing import pack

    task = _task(args, seed=args.seed, **_options(args))
    if not task.is_prepared() and hasattr(task, "prepared"):
        raise FileNotFoundError(f"{args.task} is not prepared; run: zoo data prepare {args.task}")
    path, size = pack(task, args.out, examples=args.examples, max_len=args.max_len)
    print(f"{path}: {size / 2**20:.1f} MiB. Put it, under the name {task.prepared.pack.name}, into the data folder")
    print("of the other machine ($ZOO_DATA, or --data-dir); training there needs nothing else.")


def _layout(args: argparse.Namespace) -> Any:
    """The devices asked for, after the other processes have been found."""
    from zoo.training import processes
    from zoo.training.sharding import Layout, parse_mesh

    mesh = {} if args.mesh is None else parse_mesh(args.mesh)
    processes.start(
        coordinator=args.coordinator,
        num_processes=args.num_processes,
        process_id=args.process_id,
        detect=args.distributed,
        devices=args.devices,
    )
    return Layout(args.devices, mesh)


def _train(args: argparse.Namespace) -> None:
    from zoo.compare import published_text
    from zoo.training.budget import Budget
    from zoo.training.folder import default_run_dir
    from zoo.training.processes import is_main
    from zoo.training.profiling import parse_profile
    from zoo.training.recipe import load_recipe
    from zoo.training.run import check, train

    recipe = load_recipe(args.recipe, args.overrides, variant=args.variant)
    profile = None if args.profile is None else parse_profile(args.profile)
    layout = _layout(args)
    folder = args.run_dir or default_run_dir(recipe)
    if args.dry_run:
        print(_plan_text(recipe, folder, check(recipe, data_dir=args.data_dir, layout=layout, profile=profile)))
        return
    result = train(recipe, folder, resume=args.resume, data_dir=args.data_dir, layout=layout, profile=profile)
    if not is_main():
        return
    chosen = result[result["select"]]
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in chosen["test"].items() if name != "examples")
    baselines = ", ".join(f"{name} {value:.4g}" for name, value in result["baselines"]["test"].items())
    published = published_text(result["published"], [result["variant"]])
    cautions = list(result.get("cautions", ()))
    if size := result.get("budget"):
        size = Budget(size["parameters"], size["base"])
        cautions += [] if size.within else [f"{size.parameters:,} parameters are {size.text()}"]
    print(
        f"{result['variant']} on {result['task']}/{result['source']} ({result['protocol']}), seed {result['seed']}: "
        f"test {metrics} ({result['select']}, step {chosen['step']}); "
        f"baselines: {baselines}; {published and published + '; '}"
        f"{result['parameters']:,} parameters; {folder / 'result.json'}"
        + "".join(f"\nNote: {caution}." for caution in cautions)
    )


def _plan_text(recipe: Any, folder: Path, plan: Any) -> str:
    """What `--dry-run` shows: the resolved recipe, and what it amounts to."""
    import math

    import jax

    from zoo.functional import count_parameters
    from zoo.training.budget import budget
    from zoo.training.sharding import describe

    parameters = count_parameters(plan.functional.abstract_params)
    size = budget(recipe, plan.task.info, parameters)
    leaves = jax.tree.leaves(plan.state)
    here = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    facts = {
        "run directory": folder,
        "data": "prepared" if plan.task.is_prepared() else "to be prepared first",
        "parameters": f"{parameters:,}" + (f", {size.text()}" if size else ""),
        "devices": f"{plan.mesh.size} ({plan.mesh.devices.flat[0].device_kind}), {describe(plan.mesh)}",
        "state": f"{here / 1e6:,.1f} MB on each device (parameters, optimizer and moving average)",
    }
    return recipe.to_yaml() + "\n".join(f"# {name + ':':15} {value}" for name, value in facts.items())


def _evaluate(args: argparse.Namespace) -> None:
    from zoo.training.run import evaluate_run

    layout = _layout(args)
    where = {"data_dir": args.data_dir, "layout": layout}
    result = evaluate_run(args.run_dir, which=args.which, split=args.split, options=_options(args), **where)
    print(json.dumps(result, indent=2))


def _generate(args: argparse.Namespace) -> None:
    from zoo.generation import generate_text

    options = {name: getattr(args, name) for name in ("tokens", "temperature", "top_k", "top_p", "seed", "which")}
    print(args.prompt + generate_text(args.run_dir, args.prompt, **options))


def _sample(args: argparse.Namespace) -> None:
    from zoo.sampling import sample_png

    options = {name: getattr(args, name) for name in ("count", "temperature", "seed", "which")}
    print(sample_png(args.run_dir, args.out or args.run_dir / "samples.png", **options))


def _forecast(args: argparse.Namespace) -> None:
    from zoo.forecasting import forecast

    options = {name: getattr(args, name) for name in ("start", "holdout", "steps", "which")}
    found = forecast(args.run_dir, args.table, **options)
    out = args.out or args.run_dir / "forecast.csv"
    found.to_csv(out)
    said = f"{len(found.values)} rows of {len(found.columns)} columns: {out}"
    if args.plot:
        try:
            found.plot(out.with_suffix(".png"))
            said += f", plot: {out.with_suffix('.png')}"
        except ModuleNotFoundError as error:
            said += f"; {error}"
    if errors := found.errors():
        mean = {name: sum(row[name] for row in errors.values()) / len(errors) for name in ("mse", "mae")}
        said += f"; against the table's own rows, in its units: mse {mean['mse']:.4g}, mae {mean['mae']:.4g}"
    print(said)


def _compare(args: argparse.Namespace) -> None:
    from zoo.compare import compare
    from zoo.training.folder import recipe_path

    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds takes whole numbers with commas between, got {args.seeds!r}.") from None
    out = args.out or Path("runs", "compare", recipe_path(args.recipe))
    variants = [name.strip() for name in args.variants.split(",") if name.strip()]
    print(compare(args.recipe, variants, seeds, out, overrides=args.overrides, data_dir=args.data_dir))


def _doctor(args: argparse.Namespace) -> None:
    from zoo.doctor import report

    print(report(args.data_dir))
