"""What a camera driver says of its shutter, on a topic of whatever type it has."""

from __future__ import annotations

from typing import Any

from std_msgs.msg import Bool, Int8, Int32, String, UInt8, UInt32

_OPEN, _ERROR = 0, 4  # of EnumFlagState in libirimager: open, closed, opening, closing, error, ...

FLAG_TYPES: dict[str, type] = {
    f"std_msgs/msg/{kind.__name__}": kind for kind in (Bool, Int8, Int32, String, UInt8, UInt32)
}
"""Message types of a shutter flag by the name that the ROS graph has for them."""

try:
    from optris_drivers2.msg import Flag  # Optris cameras; where that driver is installed
except ImportError:
    pass
else:
    FLAG_TYPES["optris_drivers2/msg/Flag"] = Flag


def is_closed(message: Any) -> bool:
    """Whether a message of :data:`FLAG_TYPES` says that the shutter is not open.

    Numbers are those of Optris' libirimager (0 open, 1 closed, 2 opening, 3 closing, 4 error); a
    text says ``open`` or another word.
    """
    state = message.flag_state if hasattr(message, "flag_state") else message.data
    if isinstance(state, str):
        return state.strip().lower() not in ("", "open")
    return state if isinstance(state, bool) else _OPEN < state < _ERROR
