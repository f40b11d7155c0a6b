"""Ranges to draw from, and the checks that settings classes make of their own."""

from __future__ import annotations

import typing
from collections.abc import Sequence

Range = tuple[float, float]
IntRange = tuple[int, int]


def check_ranges(settings: object) -> None:
    """Raise ValueError, with the name, unless every range of a dataclass is ``[low, high]``."""
    for name, kind in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if kind in (Range, IntRange) and not (len(value) == 2 and value[0] <= value[1]):
            raise ValueError(f"{name} must be a range [low, high], got {list(value)}")


def require(settings: object, **bounds: Range) -> None:
    """Raise ValueError, with the name, unless each named number lies in ``(low, high)``, both ends
    included.
    """
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            wanted = f"at least {low:g}" if high == float("inf") else f"in {low:g}..{high:g}"
            raise ValueError(f"{name} must be {wanted}, got {value}")


def check_shares(name: str, shares: Sequence[float], kinds: Sequence[str]) -> None:
    """Raise ValueError unless there is a share of each of ``kinds``, 1 in all."""
    if len(shares) != len(kinds) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"{name} must be {len(kinds)} numbers that add up to 1 ({', '.join(kinds)}), got "
            f"{list(shares)}"
        )
