"""LRA Path-X: Pathfinder of 16,384 pixels."""

from zoo.registry import register_task
from zoo.tasks.lra.pathfinder import Pathfinder


@register_task(
    "lra/pathx",
    title="Are two discs on the same dashed curve, over 16,384 pixels (LRA Path-X)",
    paper="2011.04006",
    inputs=("tokens", "scalars"),
    test_args={"source": "smoke"},
    notes="lra/pathfinder with size=128: the same data, sources and options.",
)
class PathX(Pathfinder):
    """LRA's Path-X: `lra/pathfinder` of 128 x 128 pixels, the same data under another name."""

    name = "lra/pathx"
    default_size = 128
