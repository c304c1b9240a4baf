"""Many runs by one command: variants x tasks x protocols x seeds, and the points of a grid.

    python -m benchmarks.lra.matrix run --variants softmax,mamba --tasks listops --protocols smoke --seeds 0,1 --out DIR
    python -m benchmarks.lra.matrix run ... --grid train.lr=1e-3,3e-3 --grid model.num_layers=2,4
    python -m benchmarks.lra.matrix run ... --dry-run
    python -m benchmarks.lra.matrix records DIR
    python -m benchmarks.lra.matrix sensitivity DIR

The same command goes on: what is done is kept, what was interrupted continues, what failed is tried again. `run` leaves
in DIR matrix.json, matrix.md with a table for each task, sensitivity.md where there is a grid, a run directory for each
cell below cells/, and what each run said below logs/.

Exit codes: 0 all done, 1 some failed or were refused, 2 it cannot be run as asked, 130 or 143 told to end.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.lra import dry_run, records, runner
from benchmarks.lra.cells import MatrixError, Request, look_at_runs, parse_grid, plan
from benchmarks.lra.recipes import variants as all_variants
from benchmarks.lra.sensitivity import sensitivity
from zoo.compare import summarise, to_markdown
from zoo.files import write_text
from zoo.training.folder import RunError, hold, read_result
from zoo.training.signals import Interrupted, signals_raise


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    args = _parse(argv)
    # A process that has looked at a GPU holds its memory, and the GPUs are for the runs.
    jax.config.update("jax_platforms", "cpu")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells how each folder is opened
    try:
        with signals_raise():
            return args.run(args)
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        print(f"matrix: {stopped}; the same command goes on.", file=sys.stderr)
        return stopped.exit_code
    except (ValueError, OSError, RunError) as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sub = commands.add_parser("run", help="run what is not done yet")
    sub.set_defaults(run=_run)
    sub.add_argument("--variants", required=True, help="comma separated, or `all`; .py files too")
    sub.add_argument("--tasks", required=True, help="comma separated, as in listops,text")
    sub.add_argument("--protocols", required=True, help="comma separated, as in smoke,small")
    sub.add_argument("--seeds", default="0", help="comma separated (default: 0)")
    sub.add_argument("--grid", action="append", default=[], metavar="key=value,value", help="an axis; may be repeated")
    sub.add_argument("--out", type=Path, required=True, help="folder of the matrix")
    sub.add_argument("--recipes", default="lra", help="RECIPES/PROTOCOL/TASK are the recipes; may be a folder")
    sub.add_argument("--devices", type=int, help="GPUs to use, one run on each (default: all)")
    sub.add_argument("--workers", type=int, help="runs at a time on a CPU, each on cores of its own (default: 1)")
    sub.add_argument("--data-dir", type=Path, help="where data lives (default: $ZOO_DATA or ~/.cache/zoo)")
    sub.add_argument("--dry-run", action="store_true", help="show the cells and what they would cost; run nothing")
    sub.add_argument("--memory", action="store_true", help="with --dry-run: compile what no result tells the memory of")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="of all recipes")
    sub = commands.add_parser("records", help="keep the results of finished cells as records")
    sub.set_defaults(run=_records)
    sub.add_argument("out", type=Path, metavar="DIR", help="folder of the matrix")
    sub.add_argument("--into", type=Path, default=records.RECORDS, help="folder of the records")
    sub.add_argument("--force", action="store_true", help="also results of a changed checkout")
    sub.add_argument(
        "--data-dir", type=Path, help="where data lives, for forecasts (default: $ZOO_DATA or ~/.cache/zoo)"
    )
    sub = commands.add_parser("sensitivity", help="sum up a grid")
    sub.set_defaults(run=_sensitivity)
    sub.add_argument("out", type=Path, metavar="DIR", help="folder of the matrix")
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _request(args: argparse.Namespace) -> Request:
    names = {
        name: tuple(text.strip() for text in getattr(args, name).split(",") if text.strip())
        for name in ("variants", "tasks", "protocols")
    }
    if names["variants"] == ("all",):
        names["variants"] = tuple(all_variants())
    # By its absolute path, so that its recipe is the same from anywhere.
    names["variants"] = tuple(str(Path(name).resolve()) if name.endswith(".py") else name for name in names["variants"])
    try:
        seeds = tuple(int(seed) for seed in args.seeds.split(","))
    except ValueError:
        raise MatrixError(f"--seeds takes whole numbers with commas between, got {args.seeds!r}.") from None
    return Request(
        **names, seeds=seeds, overrides=tuple(args.overrides), grid=parse_grid(args.grid), recipes=args.recipes
    )


def _run(args: argparse.Namespace) -> int:
    request = _request(args)
    print("building each recipe's model from shapes", file=sys.stderr, flush=True)
    cells = plan(request, args.data_dir)
    environment, present = runner.device_facts(runner.shares(args.workers)[0])
    places = runner.slots(environment["platform"], present, devices=args.devices, workers=args.workers)
    if args.dry_run:
        look_at_runs(cells, args.out)
        print(dry_run.table(cells, args.out, environment, workers=len(places), compiles=args.memory))
        return int(any(cell.state == "failed" for cell in cells))
    with hold(args.out, "--out"):
        look_at_runs(cells, args.out)
        options = {"environment": environment, "places": places, "data_dir": args.data_dir}
        running = runner.Runner(cells, request, args.out, **options)
        running.prepare()
        running.run()
        print(_sum_up(args.out))
    return int(any(cell.state == "failed" for cell in cells))


def _sum_up(out: Path) -> str:
    """Tables of all that is done in a folder, which are also written there, and what failed."""
    cells = runner.load_matrix(out)["cells"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["state"] == "done" and (result := read_result(out / cell["folder"])) is not None:
            point = cell["folder"].rpartition("/")[2].partition(f"-s{cell['seed']}")[2].lstrip("-")
            named = {**result, "variant": f"{cell['variant']} {point}".strip()}
            groups.setdefault(f"{cell['protocol']}/{cell['task']}", []).append(named)
    parts = [f"## {name}\n\n{to_markdown(summarise(results), results[0])}" for name, results in groups.items()]
    if found := sensitivity(out):
        write_text(out / "sensitivity.md", found + "\n")
        parts.append(f"## Sensitivity\n\n{found}")
    if failed := [cell for cell in cells if cell["state"] == "failed"]:
        parts.append("\n".join(["## Failed", "", *(f"* {cell['id']}: {cell['reason']}" for cell in failed)]))
    text = "\n\n".join(parts)
    write_text(out / "matrix.md", text + "\n")
    return text


def _records(args: argparse.Namespace) -> int:
    kept, refused = records.keep_records(args.out, args.into, force=args.force, data_dir=args.data_dir)
    for path in kept:
        print(path)
    for name, reason in refused.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(f"{len(kept)} records, {len(refused)} refused", file=sys.stderr)
    return int(bool(refused))


def _sensitivity(args: argparse.Namespace) -> int:
    found = sensitivity(args.out)
    if not found:
        raise MatrixError(f"{args.out} has no grid: give --grid to `run`.")
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
