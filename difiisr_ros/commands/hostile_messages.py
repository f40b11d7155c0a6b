"""Messages and requests that nobody sends who means well, seeded: for soak and the fuzz tests."""

from __future__ import annotations

import struct
import zlib
from dataclasses import asdict
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetAvailableTransitions, GetState
from PIL import Image as Picture
from rcl_interfaces import srv
from rcl_interfaces.msg import Parameter, ParameterValue

from difiisr_ros.bags import STORE
from difiisr_ros.image_codec import ENCODINGS
from difiisr_ros.parameters import DEFAULTS, NAMES

SIDE = 16  # pixels of the images, mostly: what is computed is cheap
_SIDES = (0, 1, 15, 17, 64, 2**16, 2**31, 2**32 - 1)
_SECONDS = (-(2**31), -1, 0, 1, 2**31 - 1)
_TEXTS = ("", "\0", "mono16\0", "yuv422", "16SC1", "é" * 70, "x" * 20_000, "../../etc", "mono16;")
_FORMATS = ("png", "jpeg", "mono16; png compressed mono16", "16UC1; compressedDepth png", *_TEXTS)
_MARKS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 65535.0, 1e6, 1e10, 9e29, 3e38, 1e-42)
_LIVE = [name for name in NAMES if name not in ("model", "device", "engine", "backend", "compile")]


def _pick(rng: np.random.Generator, values: tuple) -> Any:
    return values[int(rng.integers(len(values)))]


def _header(rng: np.random.Generator) -> SimpleNamespace:
    nanosec = int(rng.integers(2**32)) if rng.random() < 0.5 else _pick(rng, (0, 10**9, 2**32 - 1))
    stamp = SimpleNamespace(sec=_pick(rng, _SECONDS), nanosec=nanosec)
    return SimpleNamespace(stamp=stamp, frame_id=_pick(rng, _TEXTS))


def hostile_image(rng: np.random.Generator) -> SimpleNamespace:
    """The fields of an Image: half of them fit each other, whatever the pixels are."""
    encoding = _pick(rng, tuple(ENCODINGS))
    dtype, channels = ENCODINGS[encoding]
    pixels = rng.normal(300, 3, (SIDE, SIDE, channels)).clip(0, 1e9).astype(dtype)
    kind = rng.integers(4)
    if kind == 0:
        pixels = np.frombuffer(rng.bytes(pixels.nbytes), dtype)
    elif kind == 1:
        marked = rng.random(pixels.shape) < _pick(rng, (0.005, 0.05, 0.5, 1.0))
        with np.errstate(all="ignore"):
            pixels[marked] = np.array(_pick(rng, _MARKS)).astype(dtype)
    step = SIDE * channels * dtype.itemsize
    image = SimpleNamespace(
        header=_header(rng), height=SIDE, width=SIDE, encoding=encoding,
        is_bigendian=int(rng.integers(2)), step=step, data=pixels.tobytes(),
    )  # fmt: skip
    if rng.random() < 0.5:
        for name in rng.choice(["height", "width", "step", "encoding", "data"], rng.integers(1, 3)):
            if name == "data":
                image.data = image.data[: rng.integers(len(image.data) + 1)]
            else:
                setattr(image, name, _pick(rng, _TEXTS if name == "encoding" else _SIDES))
    return image


def hostile_compressed(rng: np.random.Generator) -> SimpleNamespace:
    """The fields of a CompressedImage: PNG, JPEG or TIFF, damaged mostly, or of an absurd size."""
    pixels = (300 + np.add.outer(np.arange(SIDE), np.arange(SIDE))).astype(np.uint16)
    kind, dtype = _pick(rng, (("PNG", "u2"), ("PNG", "u1"), ("JPEG", "u1"), ("TIFF", "u2")))
    file = BytesIO()
    Picture.fromarray((pixels - 290 * (dtype == "u1")).astype(dtype)).save(file, kind)
    data = bytearray(file.getvalue())
    if kind == "PNG" and rng.random() < 0.2:
        data[16:24] = struct.pack(">II", _pick(rng, _SIDES), _pick(rng, _SIDES))
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    damaged = _mutated(rng, bytes(data)) if rng.random() < 0.8 else bytes(data)
    return SimpleNamespace(header=_header(rng), format=_pick(rng, _FORMATS), data=damaged)


def hostile_info(rng: np.random.Generator) -> SimpleNamespace:
    """The fields of a CameraInfo, that of a 16x16 image in half of its numbers."""

    def side() -> int:
        return SIDE if rng.random() < 0.6 else int(rng.integers(2**32))

    roi = SimpleNamespace(
        x_offset=side(), y_offset=side(), height=_pick(rng, (0, side())),
        width=_pick(rng, (0, side())), do_rectify=bool(rng.integers(2)),
    )  # fmt: skip
    numbers = {name: np.frombuffer(rng.bytes(8 * n)) for name, n in (("k", 9), ("r", 9), ("p", 12))}
    return SimpleNamespace(
        header=_header(rng), height=side(), width=side(), roi=roi, d=numbers["r"].tolist(),
        binning_x=_pick(rng, (0, 1, side())), binning_y=_pick(rng, (0, 1, side())),
        distortion_model=_pick(rng, _TEXTS), **numbers,
    )  # fmt: skip


def hostile_bytes(
    rng: np.random.Generator, message: SimpleNamespace, kind: str, share: float
) -> bytes:
    """CDR bytes of an image or info, in a ``share`` of the cases damaged, but the first four."""
    kinds: dict[type, Any] = {bytes: lambda raw: np.frombuffer(raw, np.uint8), list: np.array}
    fields = {k: kinds.get(type(v), lambda same: same)(v) for k, v in vars(message).items()}
    raw = bytes(STORE.serialize_cdr(SimpleNamespace(**fields), kind))
    return raw[:4] + _mutated(rng, raw[4:]) if rng.random() < share else raw


def _mutated(rng: np.random.Generator, raw: bytes) -> bytes:
    """``raw`` with some bytes changed, cut or longer."""
    data = np.frombuffer(raw, np.uint8).copy()
    places = rng.integers(0, min(len(data), int(_pick(rng, (60, 200, 10**9)))), rng.integers(1, 9))
    data[places] = np.frombuffer(rng.bytes(len(places)), np.uint8)
    cut = bytes(data[: rng.integers(len(data) + 1)]) if rng.random() < 0.2 else bytes(data)
    return cut + rng.bytes(int(rng.integers(100))) * int(rng.random() < 0.1)


def _parameter(rng: np.random.Generator) -> Parameter:
    """A parameter of any name, type number and value; the value fits the name now and then."""
    name = _pick(rng, (*NAMES, *_LIVE, "use_sim_time", "qos_overrides./a.b.depth", *_TEXTS))
    number = int(rng.integers(256)) if rng.random() < 0.5 else int(rng.integers(10))
    default = asdict(DEFAULTS).get(name)
    value = ParameterValue(
        type=number, bool_value=bool(rng.integers(2)),
        integer_value=int(rng.integers(-(2**63), 2**63 - 1)), double_value=_pick(rng, _MARKS),
        string_value=str(default) if rng.random() < 0.3 else _pick(rng, _TEXTS),
        byte_array_value=[bytes([7])], double_array_value=[float("nan")] * 3,
        string_array_value=[_pick(rng, _TEXTS)],
    )  # fmt: skip
    return Parameter(name=name, value=value)


def hostile_requests(rng: np.random.Generator) -> list[tuple[type, str, Any]]:
    """A request of each service of parameters and transitions: type, name, request.

    None ends the node for good: a shutdown is no fault.
    """
    names, parameters = [_pick(rng, (*NAMES, *_TEXTS))], [_parameter(rng) for _ in range(3)]
    number = _pick(rng, (0, 4, 9, 62, 97, 99, 255))
    forged = Transition(id=number, label=_pick(rng, ("", "", "transition_error", "activat")))
    requests: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("describe_parameters", srv.DescribeParameters, {"names": names}),
        ("get_parameters", srv.GetParameters, {"names": names}),
        ("get_parameter_types", srv.GetParameterTypes, {"names": names}),
        ("list_parameters", srv.ListParameters, {"prefixes": names, "depth": 2**64 - 1}),
        ("set_parameters", srv.SetParameters, {"parameters": parameters}),
        ("set_parameters_atomically", srv.SetParametersAtomically, {"parameters": parameters}),
        ("change_state", ChangeState, {"transition": forged}),
        ("get_state", GetState, {}),
        ("get_available_transitions", GetAvailableTransitions, {}),
    )
    return [(kind, name, kind.Request(**fields)) for name, kind, fields in requests]
