"""The contract of a mixer as functions, for the variants of this package and of others.

    from zoo.testing import check_mixer
    check_mixer("my_mixer")                # every check, in every direction that the mixer claims

or, one test per check, in a pytest file of another package::

    from zoo.testing import cases, checks

    @pytest.mark.parametrize(("case", "check"), [(case, check) for case in cases("my_mixer") for check in checks(case)])
    def test_contract(case, check):
        checks(case)[check](case)

Checks raise AssertionError with what differs. They need no test framework.
"""

from collections.abc import Callable

from zoo.testing import behaviour, doors, transforms
from zoo.testing.case import Case, cases

Check = Callable[[Case], None]

__all__ = ["Case", "cases", "check_mixer", "checks"]


def checks(case: Case) -> dict[str, Check]:
    """The checks that apply to a case, by name."""
    found: dict[str, Check] = {}
    for module in (behaviour, transforms, doors):
        found |= {
            name.removeprefix("check_"): function
            for name, function in vars(module).items()
            if name.startswith("check_") and function.__module__ == module.__name__
        }
    if not case.spec.padding_mask:
        del found["padding_content"], found["padding_amount"], found["fully_masked"]
    if case.fixed_length:
        found.pop("padding_amount", None)
    if not (case.causal and case.spec.decode):
        del found["step"], found["chunks"], found["padded_prompt"]
    return found


def check_mixer(name: str) -> None:
    """Runs every check of the mixer `name`, in each direction that it claims.

    Raises:
      AssertionError: the first check that fails; the message starts with its name and direction.
      RegistryError: no mixer has that name.
    """
    for case in cases(name):
        for check_name, check in checks(case).items():
            try:
                check(case)
            except AssertionError as error:
                raise AssertionError(f"{case}, {check_name}: {error}") from error
