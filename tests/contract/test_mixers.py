"""Every registered mixer keeps the contract; mixers are found, not listed."""

import pytest

from zoo import registry
from zoo.testing import cases, checks

CASES = [case for spec in registry.list_specs(kind="mixer") for case in cases(spec.name)]


@pytest.mark.parametrize(
    ("case", "check"),
    [pytest.param(case, check, id=f"{case}-{name}") for case in CASES for name, check in checks(case).items()],
)
def test_contract(case, check):
    check(case)
