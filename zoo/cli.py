"""The `zoo` command. `list`, `describe` and `--help` answer without importing JAX."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo import __version__, registry


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line; exits with 2 and one line on a wrong request, 1 on a run that failed."""
    args = _parse(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        again = "the same command with --resume goes on" if args.run is _train else "the same command goes on"
        raise SystemExit(f"zoo: interrupted; {again}.") from None
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
    ):
        sub = data.add_parser(name, help=text, description=text, parents=[data_dir])
        sub.add_argument("task", help="TASK or TASK/SOURCE, for example lra/listops/smoke")
        sub.set_defaults(run=run)
        if name == "prepare":
            sub.add_argument("--workers", type=int, help="processes (default: one for each core)")
        else:
            sub.add_argument("--verify", action="store_true", help="compute the checksum of every file")
        sub.add_argument("--seed", type=int, default=0, help="of data that is drawn")

    sub = command("train", _train, "Train a variant by a recipe.", [recipe, data_dir])
    sub.add_argument("--variant", help="a registered variant, or a .py file that registers one")
    sub.add_argument("--run-dir", type=Path, help="default: runs/RECIPE/VARIANT-sSEED")
    sub.add_argument("--resume", action="store_true", help="go on with what the run directory holds")

    sub = command("evaluate", _evaluate, "Evaluate a run's parameters.", [data_dir])
    sub.add_argument("run_dir", type=Path)
    sub.add_argument("--which", choices=["best", "last"], default="best")
    sub.add_argument("--split", choices=["train", "validation", "test"], default="test")

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
            return registry.get(name, "task")(data_dir=args.data_dir, **source, **options)
    raise registry.RegistryError(f"There is no task named {args.task!r}. {registry.did_you_mean(args.task, names)}")


def _data_prepare(args: argparse.Namespace) -> None:
    task = _task(args, seed=args.seed)
    print(task.prepare(workers=args.workers))


def _data_info(args: argparse.Namespace) -> None:
    task = _task(args, seed=args.seed)
    if not task.is_prepared():
        raise FileNotFoundError(f"{args.task} is not prepared; run: zoo data prepare {args.task}")
    if args.verify:
        task.verify()
    print(json.dumps(task.describe(), indent=2))


def _train(args: argparse.Namespace) -> None:
    from zoo.training.recipe import load_recipe
    from zoo.training.run import default_run_dir, train

    recipe = load_recipe(args.recipe, args.overrides, variant=args.variant)
    folder = args.run_dir or default_run_dir(recipe)
    result = train(recipe, folder, resume=args.resume, data_dir=args.data_dir)
    chosen = result[result["select"]]
    baselines = ", ".join(f"{name} {value:.2%}" for name, value in result["baselines"]["test"].items())
    print(
        f"{result['variant']} on {result['task']}/{result['source']} ({result['protocol']}), seed {result['seed']}: "
        f"test accuracy {chosen['test']['accuracy']:.2%} ({result['select']}, step {chosen['step']}); "
        f"baselines: {baselines}; {result['parameters']:,} parameters; {folder / 'result.json'}"
    )


def _evaluate(args: argparse.Namespace) -> None:
    from zoo.training.run import evaluate_run

    result = evaluate_run(args.run_dir, which=args.which, split=args.split, data_dir=args.data_dir)
    print(json.dumps(result, indent=2))


def _compare(args: argparse.Namespace) -> None:
    from zoo.compare import compare
    from zoo.training.run import recipe_path

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
