"""Solar: power of 137 photovoltaic plants in Alabama every 10 minutes of the year 2006."""

from typing import Any, ClassVar

from zoo.registry import register_task
from zoo.tasks.series import PublishedSeries


@register_task(
    "forecasting/solar",
    title="Solar: power of 137 plants every 10 minutes of 2006",
    inputs=("series",),
    notes="Source: solar_AL, 52,560 rows, 137 columns; the file has neither names nor times, so there are no features.",
)
class Solar(PublishedSeries):
    """Solar power in Alabama (Lai et al. 2018, arXiv:1703.07015). 70, 10 and 20 % of the rows. Models get no times."""

    name = "forecasting/solar"
    sources = ("solar_AL",)
    files: ClassVar = {"solar_AL": ("Solar/solar_AL.txt", "solar/solar_AL.txt", "solar_AL.txt")}
    origin = "It is in the archive that https://github.com/thuml/iTransformer links to."

    def __init__(self, source=None, max_len=None, data_dir=None, seed=0, *, horizon=96, target=None, units="scaled",
                 drop_last=None):  # fmt: skip
        options: Any = {"target": target, "units": units, "drop_last": drop_last}
        super().__init__(source, max_len, data_dir, seed, horizon=horizon, time_features="none", **options)

    def _has_header(self) -> bool:
        return False

    def season(self) -> int:
        """A day of steps of 10 minutes, which the file does not say."""
        return 144
