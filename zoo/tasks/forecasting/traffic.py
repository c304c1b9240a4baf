"""Traffic: hourly occupancy of 862 road sensors in California."""

from typing import ClassVar

from zoo.registry import register_task
from zoo.tasks.series import PublishedSeries


@register_task(
    "forecasting/traffic",
    title="Traffic: hourly occupancy of 862 road sensors",
    inputs=("series",),
    notes="Source: traffic, 17,544 rows, 862 columns.",
)
class Traffic(PublishedSeries):
    """Hourly occupancy of the roads around San Francisco, 2016 to 2018. 70, 10 and 20 % of the rows."""

    name = "forecasting/traffic"
    sources = ("traffic",)
    files: ClassVar = {"traffic": ("traffic/traffic.csv", "traffic.csv")}
    origin = "It is in the archive that https://github.com/thuml/iTransformer links to."
