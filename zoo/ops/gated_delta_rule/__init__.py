"""The gated delta rule: the recurrence of DeltaNet (without decay) and of Gated DeltaNet."""

from zoo.ops.gated_delta_rule.api import gated_delta_rule, gated_delta_rule_step

__all__ = ["gated_delta_rule", "gated_delta_rule_step"]
