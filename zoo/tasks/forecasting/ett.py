"""ETT: temperature and load of two electricity transformers over two years, hourly and every 15 minutes."""

from typing import ClassVar

from zoo.registry import register_task
from zoo.tasks.series import PublishedSeries

_MONTH = 30 * 24
_NAMES = ("ETTh1", "ETTh2", "ETTm1", "ETTm2")


@register_task(
    "forecasting/ett",
    title="Electricity transformer temperature (ETTh1, ETTh2, ETTm1, ETTm2)",
    paper="arXiv:2012.07436 (AAAI 2021)",
    inputs=("series",),
    notes="Sources: ETTh1, ETTh2 (17,420 hours), ETTm1, ETTm2 (69,680 quarters of an hour); 7 columns.",
)
class ETT(PublishedSeries):
    """ETT (Zhou et al. 2021). 12, 4 and 4 months of 30 days for training, validation and test; the rest is not used."""

    name = "forecasting/ett"
    sources = _NAMES
    files: ClassVar = {name: (f"ETT-small/{name}.csv", f"ett/{name}.csv", f"{name}.csv") for name in _NAMES}
    origin = "It is in https://github.com/zhouhaoyi/ETDataset, folder ETT-small."

    def _bounds(self, rows: int) -> tuple[int, int, int]:
        month = _MONTH * (4 if self.source.startswith("ETTm") else 1)
        return 12 * month, 16 * month, 20 * month
