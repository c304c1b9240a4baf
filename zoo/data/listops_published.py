"""Reads the published ListOps files, `basic_{train,val,test}.tsv`, and checks every row of them."""

from collections.abc import Mapping
from pathlib import Path

from zoo.data.listops import Law, evaluate, tokenize
from zoo.data.manifest import DataError
from zoo.data.progress import Progress

FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
HEADER = b"Source\tTarget"
# Where the release's archive may have been unpacked, below the folder of manual downloads.
FOLDERS = ("listops-1000", "lra_release/listops-1000", "lra_release/lra_release/listops-1000")
_MAX_SHOWN = 10
_REPORT_EVERY = 200


def find_published(manual_dir: Path) -> Path:
    """The folder with the published files.

    Raises:
      DataError: there is none, or a file is missing; the message says what to put where.
    """
    how = (
        "Unpack lra_release.gz (https://storage.googleapis.com/long-range-arena/lra_release.gz, a gzipped tar) and "
        f"put {', '.join(FILES.values())} of its folder listops-1000 into {manual_dir / FOLDERS[0]}."
    )
    for name in FOLDERS:
        folder = manual_dir / name
        if folder.is_dir():
            missing = [file for file in FILES.values() if not (folder / file).is_file()]
            if missing:
                raise DataError(f"{folder} lacks {', '.join(missing)}. {how}")
            return folder
    raise DataError(f"The published ListOps files are not below {manual_dir}. {how}")


def read_published(
    folder: Path, sizes: Mapping[str, int], law: Law, *, progress: bool = False
) -> dict[str, list[tuple[bytes, int]]]:
    """Reads and checks all files: header, form, length, the value of every expression, and the number of rows.

    Args:
      folder: where the files are.
      sizes: the number of expressions that each split must have.
      law: whose bounds on the length must hold.
      progress: whether to report progress.

    Returns:
      Tokens and label of each expression in order, by split.

    Raises:
      DataError: anything is wrong; the message names file and line.
    """
    splits = {}
    with Progress("published ListOps", sum(sizes.values()), "expressions", enabled=progress) as bar:
        for split, size in sizes.items():
            splits[split] = _read_file(folder / FILES[split], size, law, bar)
    return splits


def _read_file(path: Path, size: int, law: Law, bar: Progress) -> list[tuple[bytes, int]]:
    rows: list[tuple[bytes, int]] = []
    problems: list[str] = []
    wrong = 0
    with open(path, "rb") as file:
        header = file.readline().rstrip(b"\r\n")
        if header != HEADER:
            raise DataError(f"{path}, line 1: the header is {header[:40]!r} instead of {HEADER!r}.")
        for line, row in enumerate(file, 2):
            try:
                rows.append(_read_row(row.rstrip(b"\r\n"), law))
            except ValueError as error:
                wrong += 1
                if wrong <= _MAX_SHOWN:
                    problems.append(f"line {line}: {error}")
            if line % _REPORT_EVERY == 0:
                bar.advance(_REPORT_EVERY)
    if len(rows) + wrong != size:
        problems.append(f"it has {len(rows) + wrong:,} rows after the header instead of {size:,}")
    if problems:
        more = f"; and {wrong - _MAX_SHOWN:,} more lines" if wrong > _MAX_SHOWN else ""
        raise DataError(f"{path} is not the published file: {'; '.join(problems)}{more}. Unpack the release again.")
    return rows


def _read_row(row: bytes, law: Law) -> tuple[bytes, int]:
    source, tab, target = row.partition(b"\t")
    if not tab:
        raise ValueError("there is no tab between expression and label")
    if len(target) != 1 or not target.isdigit():
        raise ValueError(f"the label is {target[:20]!r} instead of one digit")
    text = source.decode("ascii", errors="replace")
    value = evaluate(text)
    if value != int(target):
        raise ValueError(f"the label is {int(target)} but the expression's value is {value}")
    if text[:1] != "(":
        raise ValueError("the expression is not in the parenthesised form")
    tokens = tokenize(text).tobytes()
    if not law.min_length < len(tokens) < law.max_length:
        bounds = f"{law.min_length + 1} to {law.max_length - 1}"
        raise ValueError(f"the expression has {len(tokens)} tokens instead of {bounds}")
    return tokens, value
