"""ILI: weekly counts of influenza-like illness in the USA."""

from typing import ClassVar

from zoo.registry import register_task
from zoo.tasks.series import PublishedSeries


@register_task(
    "forecasting/ili",
    title="Influenza-like illness in the USA, weekly, 2002 to 2020",
    inputs=("series",),
    notes="Source: national_illness, 966 rows; the usual lookback is 36, the horizons are 24, 36, 48 and 60.",
)
class ILI(PublishedSeries):
    """Weekly counts of the Centers for Disease Control. 70, 10 and 20 % of the rows."""

    name = "forecasting/ili"
    sources = ("national_illness",)
    files: ClassVar = {"national_illness": ("illness/national_illness.csv", "national_illness.csv")}
    origin = "It is in the archive that https://github.com/thuml/iTransformer links to."
