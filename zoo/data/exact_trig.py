"""Sine, cosine and arc tangent, rounded correctly: the same on every machine, which the C library does not promise."""

import decimal
from decimal import Decimal

_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
_DIGITS = 50


def sin(x: float) -> float:
    """The sine of `x`, in radians from -10 to 10, to the nearest double."""
    return _series(x, 1)


def cos(x: float) -> float:
    """The cosine of `x`, in radians from -10 to 10, to the nearest double."""
    return _series(x, 0)


def _series(x: float, power: int) -> float:
    with decimal.localcontext() as context:
        context.prec = _DIGITS
        exact = Decimal(x)
        term = exact if power else Decimal(1)
        total = Decimal(0)
        while abs(term) > Decimal(10) ** (5 - _DIGITS):
            total += term
            term *= -exact * exact / ((power + 1) * (power + 2))
            power += 2
        return float(total)


def atan2(y: int, x: int) -> float:
    """The angle of the point (x, y), not the origin, in radians from -pi (without it) to pi, to the nearest double."""
    with decimal.localcontext() as context:
        context.prec = _DIGITS
        small, large = sorted((abs(y), abs(x)))
        tangent = Decimal(small) / Decimal(large)
        for _ in range(3):  # halves the angle, so that the series is short
            tangent = tangent / (1 + (1 + tangent * tangent).sqrt())
        total, term, power = Decimal(0), tangent, 1
        while abs(term) > Decimal(10) ** (5 - _DIGITS):
            total += term / power
            term *= -tangent * tangent
            power += 2
        angle = 8 * total
        if abs(y) > abs(x):
            angle = _PI / 2 - angle
        if x < 0:
            angle = _PI - angle
        return float(-angle if y < 0 else angle)
