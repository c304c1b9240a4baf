"""Whether the first of two ACL papers cites the second: a small stand-in for LRA's Retrieval."""

from pathlib import Path

from zoo.registry import register_task
from zoo.tasks.archives import Part
from zoo.tasks.lra.retrieval import PairTask


@register_task(
    "pairs/acl",
    title="Whether the first of two ACL papers cites the second, byte by byte (a stand-in for LRA Retrieval)",
    inputs=("tokens",),
    test_args={"source": "smoke"},
    notes="Reads a folder acl_citation_pairs with docs.jsonl.gz and citations.tsv. Sources: full, smoke (a part).",
)
class Acl(PairTask):
    """Citations among papers of the ACL Anthology, and as many pairs that are none.

    The same kind of task as `lra/retrieval` at a thirtieth of its size, on other papers and with negatives of another
    making: its figures are not those of Retrieval. Papers are split by the citing one, 80, 10 and 10 %; a cited paper
    may be in all splits. Negatives deal a split's cited papers out anew among its citing ones, so that neither paper
    alone tells the label (`zoo.data.pairs.split_citations`).

    Args:
      source: "full", or "smoke" (a fifth of it).
      max_len: bytes that are read of each paper, up to 10,000; None for 4,000.
      data_dir: where the folder and the prepared data lie; None for the default.
      seed: unused: there is one split.
      archive: the path of the folder, where it lies elsewhere.

    Raises:
      ValueError: unknown source, or `max_len` is out of range.
    """

    name = "pairs/acl"
    dataset = "acl_pairs/1.0.0"
    sources = ("full", "smoke")
    parts = {  # noqa: RUF012
        "full": {name: Part(name) for name in ("train", "validation", "test")},
        "smoke": {name: Part(name, 0, 20) for name in ("train", "validation", "test")},
    }

    def __init__(
        self,
        source: str = "full",
        max_len: int | None = None,
        data_dir: str | Path | None = None,
        seed: int = 0,
        *,
        archive: str | Path | None = None,
    ):
        del seed
        super().__init__(source, max_len, data_dir, archive)

    def cautions(self) -> list[str]:
        """That these are not the pairs of LRA's Retrieval."""
        return ["a stand-in for LRA Retrieval on other papers: not to be held against its figures"]

    def _builder(self):
        from zoo.data.builders.pairs import AclPairs

        return AclPairs

    def _published(self):
        from zoo.data.pairs import ACL

        return ACL
