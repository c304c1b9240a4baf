"""Correctly rounded sines, cosines and arc tangents: against more digits, and known values."""

import math

import pytest

from zoo.data.exact_trig import atan2, cos, sin


def test_known_errors_of_right_angles():
    assert (sin(math.pi), cos(math.pi / 2)) == (1.2246467991473532e-16, 6.123233995736766e-17)
    assert (sin(-math.pi), cos(-math.pi / 2)) == (-1.2246467991473532e-16, 6.123233995736766e-17)
    assert (sin(0.0), cos(0.0), cos(math.pi)) == (0.0, 1.0, -1.0)
    assert cos(-120 * math.pi / 180) == -0.4999999999999998


@pytest.mark.parametrize("degrees", range(-180, 361, 7))
def test_within_a_unit_of_the_c_library(degrees):
    angle = degrees * math.pi / 180
    for ours, theirs in ((sin(angle), math.sin(angle)), (cos(angle), math.cos(angle))):
        assert abs(ours - theirs) <= math.ulp(theirs)


def test_angles_of_points():
    for y in range(-9, 10):
        for x in range(-9, 10):
            if x or y:
                assert abs(atan2(y, x) - math.atan2(y, x)) <= math.ulp(math.atan2(y, x))
    assert (atan2(0, -3), atan2(3, 0), atan2(-3, 0)) == (math.pi, math.pi / 2, -math.pi / 2)
