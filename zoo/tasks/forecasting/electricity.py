"""Electricity (ECL): hourly consumption of 321 clients."""

from typing import ClassVar

from zoo.registry import register_task
from zoo.tasks.series import PublishedSeries


@register_task(
    "forecasting/electricity",
    title="Electricity: hourly consumption of 321 clients",
    inputs=("series",),
    notes="Source: electricity (ECL), 26,304 rows, 321 columns.",
)
class Electricity(PublishedSeries):
    """Hourly consumption of 321 clients, 2016 to 2019 in the file's times. 70, 10 and 20 % of the rows."""

    name = "forecasting/electricity"
    sources = ("electricity",)
    files: ClassVar = {"electricity": ("electricity/electricity.csv", "electricity.csv")}
    origin = "It is in the archive that https://github.com/thuml/iTransformer links to."
