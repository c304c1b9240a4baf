"""Exchange: daily exchange rates of 8 countries from 1990 to 2010."""

from typing import ClassVar

from zoo.registry import register_task
from zoo.tasks.series import PublishedSeries


@register_task(
    "forecasting/exchange",
    title="Exchange rates of 8 countries, daily, 1990 to 2010",
    inputs=("series",),
    notes="Source: exchange_rate, 7,588 rows.",
)
class Exchange(PublishedSeries):
    """Daily rates of 8 currencies to the US dollar (Lai et al. 2018, arXiv:1703.07015). 70, 10 and 20 % of the rows."""

    name = "forecasting/exchange"
    sources = ("exchange_rate",)
    files: ClassVar = {"exchange_rate": ("exchange_rate/exchange_rate.csv", "exchange_rate.csv")}
    origin = "It is in the archive that https://github.com/thuml/iTransformer links to."
