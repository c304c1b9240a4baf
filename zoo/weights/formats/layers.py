"""Attention layers of code bases that publish no whole model: Flowformer, and lucidrains' axial-attention."""

from zoo.mixers.axial import Axial
from zoo.mixers.flowformer import Flowformer
from zoo.weights.formats.base import Format, require
from zoo.weights.tables import TWO_LINEARS, Entry, Table, linear


def flowformer_table(mixer: Flowformer) -> Table:
    """Of one layer, in the names of Flow_Attention.py."""
    table: Table = []
    for part in ("query", "key", "value", "out"):
        biased = getattr(mixer.projections, part).bias is not None
        table += linear(f"{part}_projection", f"projections.{part}", bias=biased)
    return table


def axial_table(mixer: Axial) -> Table:
    """Of one layer; keys lie above values in `to_kv`."""
    require(mixer.axes[0].projections.query.bias is None, "its queries, keys and values have biases (use_bias)")
    require(mixer.axes[0].projections.out.bias is not None, "its output has no bias (out_bias)")
    table: Table = []
    for i in range(len(mixer.axes)):
        theirs, ours = f"axial_attentions.{i}.fn", f"axes.{i}.projections"
        table += linear(f"{theirs}.to_q", f"{ours}.query", bias=False)
        table.append(Entry(f"{theirs}.to_kv.weight", (f"{ours}.key.kernel", f"{ours}.value.kernel"), TWO_LINEARS))
        table += linear(f"{theirs}.to_out", f"{ours}.out")
    return table


FORMATS = (
    Format(
        "flowformer-layer",
        "the authors' Flow_Attention.py",
        "mixer `flowformer`",
        lambda module: isinstance(module, Flowformer),
        flowformer_table,
    ),
    Format(
        "axial-attention",
        "lucidrains' axial-attention, AxialAttention",
        "mixer `axial`",
        lambda module: isinstance(module, Axial),
        axial_table,
    ),
)
