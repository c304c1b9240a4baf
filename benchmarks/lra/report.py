"""A report of results: one self-contained HTML page, and the same tables as Markdown and CSV.

    python -m benchmarks.lra.report DIR_OR_RECORDS... --out report.html

Reads folders and files: matrices, runs, records, comparisons, and results of `benchmarks.lra.efficiency` and
`benchmarks.lra.recipes`. A number enters only with its whole record (recipe hash, commit, versions, device, seed,
data); what is refused is named, on the page too, and the exit code is then 1. Equal input gives equal bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lra.reporting.contents import make_contents
from benchmarks.lra.reporting.page import to_html
from benchmarks.lra.reporting.pictures import write_pictures
from benchmarks.lra.reporting.reading import read
from benchmarks.lra.reporting.records import RecordError
from benchmarks.lra.reporting.text import to_csv, to_markdown
from zoo.files import write_text


def report(
    paths: Sequence[str | Path], out: Path, *, allow_old: bool = False, pictures: Path | None = None
) -> list[tuple[str, str]]:
    """Writes `out`, and beside it the same with .md and .csv.

    Args:
      paths: folders or JSON files, see `benchmarks.lra.reporting.reading.read`.
      out: the page; its name ends in .html.
      allow_old: take records without a recipe hash too, and mark their numbers.
      pictures: a folder for each plot as an SVG file; None for none.

    Returns:
      (what, why) of everything that was left out.

    Raises:
      FileNotFoundError: one of the paths does not exist.
      RecordError: nothing was found, or two different results are of one recipe, variant and seed.
      ValueError: `out` does not end in .html.
    """
    if out.suffix != ".html":
        raise ValueError(f"the report is a page: --out must end in .html, got {out}.")
    found = read(paths, allow_old=allow_old)
    if not (found.records or found.efficiency or found.failures or found.waiting):
        reasons = "".join(f"\n  {what}: {why}" for what, why in found.refused)
        raise RecordError(f"there is no record in {', '.join(map(str, paths))}.{reasons}")
    contents = make_contents(found)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out.with_suffix(".csv"), to_csv(contents.groups))
    write_text(out.with_suffix(".md"), to_markdown(contents))
    write_text(out, to_html(contents))
    if pictures is not None:
        write_pictures(contents, pictures)
    return list(contents.left_out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lra.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="DIR_OR_RECORDS", help="folders, or JSON files")
    parser.add_argument("--out", type=Path, required=True, help="the page; .md and .csv are written beside it")
    parser.add_argument("--allow-old", action="store_true", help="take records without a recipe hash, and mark them")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also write each plot as an SVG file")
    args = parser.parse_args(arguments)
    try:
        left_out = report(args.paths, args.out, allow_old=args.allow_old, pictures=args.pictures)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for what, why in left_out:
        print(f"left out: {what}: {why}", file=sys.stderr)
    print(args.out)
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
