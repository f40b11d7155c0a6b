"""Which boxes or labels belong to which frame: by the path, or by the file's name where unique."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence


def pair_names(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """The known name that belongs to each name; names without any are left out.

    Names are paths without suffix, joined by ``__``, as those of frames. A name belongs to its
    equal, else to the only one with the same last part: one side may lack folders.

    Raises:
        ValueError: several names have that last part, on either side.
    """
    equal = set(names) & set(known)
    ours, theirs = _by_last_part(names), _by_last_part(known)
    pairs = {}
    for name in names:
        last = _last_part(name)
        candidates = [other for other in theirs[last] if other not in equal]
        if name in equal:
            pairs[name] = name
        elif candidates:
            if len(ours[last]) > 1 or len(theirs[last]) > 1:
                raise ValueError(
                    f"{', '.join(ours[last])} cannot be told apart by the names "
                    f"{', '.join(theirs[last])}: folders and names of both sides must be equal"
                )
            pairs[name] = candidates[0]
    return pairs


def _by_last_part(names: Iterable[str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for name in names:
        found[_last_part(name)].append(name)
    return found


def _last_part(name: str) -> str:
    return name.rpartition("__")[2]
