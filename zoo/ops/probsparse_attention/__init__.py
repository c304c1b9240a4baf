"""ProbSparse attention: softmax attention for the few queries that need it (Informer, arXiv:2012.07436)."""

from zoo.ops.probsparse_attention.api import probsparse_attention
from zoo.ops.probsparse_attention.common import CausalContext, Sample, Selection, budget

__all__ = ["CausalContext", "Sample", "Selection", "budget", "probsparse_attention"]
