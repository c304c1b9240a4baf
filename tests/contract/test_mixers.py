"""Every registered mixer keeps the contract; mixers are found, not listed."""

import pytest

from zoo import registry
from zoo.testing import cases, checks

# Their second direction is the first run from the end; it is in the wider sweep, and among the reference arrays.
KIN = ("gated_deltanet", "gla", "linear_attention", "mamba2", "retnet")
CASES = [case for spec in registry.list_specs(kind="mixer") for case in cases(spec.name)]


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(
            case,
            check,
            id=f"{case}-{name}",
            marks=[pytest.mark.slow] if case.spec.name in KIN and not case.causal else [],
        )
        for case in CASES
        for name, check in checks(case).items()
    ],
)
def test_contract(case, check):
    check(case)
