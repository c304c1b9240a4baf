"""The README's table of results, from committed records.

    python -m benchmarks.lra.results_table            # writes it into README.md, between its two marks
    python -m benchmarks.lra.results_table --check    # exit code 1 where it is stale

The marks are the lines `<!-- results -->` and `<!-- /results -->`; what is between them is not to be edited.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lra.reporting.forecasting import forecasting_table
from benchmarks.lra.reporting.groups import Group, group
from benchmarks.lra.reporting.reading import read
from benchmarks.lra.reporting.records import RecordError
from benchmarks.lra.reporting.tables import Table, leaderboard
from benchmarks.lra.reporting.text import escape_markdown, table_markdown
from zoo.files import write_text

REPO = Path(__file__).resolve().parents[2]
RECORDS = Path(__file__).parent / "results" / "records"
MARKS = ("<!-- results -->", "<!-- /results -->")
NONE = "There are no records yet."


def results_text(records: Sequence[str | Path] = (RECORDS,)) -> str:
    """A table for each section of the report that has a record, as Markdown.

    Args:
      records: folders or files, see `benchmarks.lra.reporting.reading.read`; folders that do not exist are empty.

    Raises:
      RecordError: a record is not whole, or two different ones are of one recipe, variant and seed.
    """
    found = read([path for path in records if Path(path).exists()])
    if found.refused:
        raise RecordError("; ".join(f"{what}: {why}" for what, why in found.refused))
    if not found.records:
        return NONE
    parts = []
    for section, groups in group(found.records).items():
        table = forecasting_table(groups) if section.key == "forecasting" else leaderboard(section, groups)
        unit = " Accuracy in percent." if any(one.first.task.startswith("lra/") for one in groups) else ""
        parts += [f"**{section.title}.** {section.note}{unit}", table_markdown(_slim(table)), _setting(groups)]
    return "\n\n".join(parts)


def _slim(table: Table) -> Table:
    """The table without its notes, and without the column that says whose a row is."""
    last = len(table.columns) - 1
    rows = tuple(type(row)(row.kind, row.cells[:last], row.badges) for row in table.rows)
    return Table(table.key, table.title, table.columns[:last], rows, table.numeric - {last})


def _setting(groups: Sequence[Group]) -> str:
    records = [record for one in groups for record in one.records]
    devices = sorted({record.device for record in records})
    commits = sorted({record.environment["commit"] for record in records})
    versions = sorted({f"jax {record.environment['jax']}, flax {record.environment['flax']}" for record in records})
    counts = sorted({len(one.records) for one in groups})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = (
        f"Mean ± standard deviation over seeds ({seeds} each); on {'; '.join(devices)}; {'; '.join(versions)}; commits "
        f"{', '.join(commits)}."
    )
    return escape_markdown(" ".join([text, *(f"Note: {caution}." for caution in _cautions(groups))]))


def _cautions(groups: Sequence[Group]) -> list[str]:
    return sorted({text for one in groups for record in one.records for text in record.cautions()})


def put(page: str, text: str) -> str:
    """A page with a text between its marks.

    Raises:
      ValueError: the marks are not there, each once and in order.
    """
    first, last = MARKS
    if page.count(first) != 1 or page.count(last) != 1 or page.index(first) > page.index(last):
        raise ValueError(f"the page must have the lines {first} and {last}, once and in this order.")
    head, tail = page.split(first)[0], page.split(last)[1]
    return f"{head}{first}\n{text}\n{last}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lra.results_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("records", nargs="*", help="folders or JSON files (default: the committed records)")
    parser.add_argument("--page", type=Path, default=REPO / "README.md", help="default: README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page is stale")
    args = parser.parse_args(arguments)
    try:
        page = args.page.read_text(encoding="utf-8")
        fresh = put(page, results_text(args.records or (RECORDS,)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check:
        if fresh != page:
            print(f"{args.page} is stale: python -m benchmarks.lra.results_table writes it anew.", file=sys.stderr)
        return int(fresh != page)
    if fresh != page:
        write_text(args.page, fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
