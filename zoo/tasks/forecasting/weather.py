"""Weather: 21 measurements every 10 minutes of the year 2020."""

from typing import ClassVar

from zoo.registry import register_task
from zoo.tasks.series import PublishedSeries


@register_task(
    "forecasting/weather",
    title="Weather: 21 measurements every 10 minutes of 2020",
    inputs=("series",),
    notes="Source: weather, 52,696 rows; the 81 cells of -9999 are left in it, as in the published figures.",
)
class Weather(PublishedSeries):
    """Weather of 2020 at the Max Planck Institute for Biogeochemistry, Jena. 70, 10 and 20 % of the rows."""

    name = "forecasting/weather"
    sources = ("weather",)
    files: ClassVar = {"weather": ("weather/weather.csv", "weather.csv")}
    origin = "It is in the archive that https://github.com/thuml/iTransformer links to."
