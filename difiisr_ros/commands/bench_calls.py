"""Times bare networks and whole upscalers, in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from annotated_types import Gt, Lt
from cyclopts import Parameter
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from difiisr_models import Runtime, load_upscaler
from difiisr_models.backends import NETWORK_OUTPUT, NetworkSource, example_inputs
from difiisr_models.backends.onnx_graphs import start_in_onnxruntime
from difiisr_models.backends.selection import resolve_device, select_backend
from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.frame_model import BICUBIC
from difiisr_models.model_loading import load_parts
from difiisr_models.resample import SCALE
from difiisr_ros.commands.arguments import CameraSizes, Count, RuntimeOptions
from difiisr_training.evaluation.peers import PUBLISHED_FILES, load_peer, load_published_network

_TILE = 16  # networks are timed on tiles of whole multiples, which every peer's graph takes

Row = dict[str, Any]
"""Columns of ``bench.json``: one measurement; with ``no_result``, a reason, where there is none."""

Call = Callable[[], object]
Size = tuple[int, int]  # height, width
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Run = TypeVar("Run")


@dataclass(frozen=True)
class Bench:
    """What is timed, and how; peers always run in float32.

    Attributes:
        models: comma-separated, the first network is ours: model names or folders, bicubic, safmn,
            rlfn, realesrgan (these three: --weights).
        weights: folder of the peers' files.
        sizes: of the camera, WIDTHxHEIGHT, several.
        runs: of everything; best and worst are dropped.
        seconds: of a run.
        runtime: what runs our models; backend auto compares torch with the fastest that works.
    """

    models: str = "difiisr-rt-x4,bicubic"
    weights: Path | None = None
    sizes: Annotated[CameraSizes, Parameter(name="--size")] = ((120, 160), (256, 320), (512, 640))
    runs: Count = 5
    seconds: Positive = 4.0
    runtime: RuntimeOptions = Runtime()

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return self.models.split(",")

    @property
    def device(self) -> torch.device:
        """That all is run on."""
        return resolve_device(self.runtime.device)


def timed_rows(bench: Bench, stage: Literal["network", "upscaler"]) -> Iterator[Row]:
    """Bare networks on one tile; or frame in, frame out, in counts, with all that the node does."""
    for size in bench.sizes:
        if stage == "network":
            height, width = (-(-side // _TILE) * _TILE for side in size)
            models = [model for model in bench.names if model not in BICUBIC]
            calls = [
                call for model in models for call in network_calls(bench, model, (height, width))
            ]
        else:
            calls = [call for model in bench.names for call in upscaler_calls(bench, model, size)]
        yield from time_in_turns(calls, bench.runs, bench.seconds / 4)


def described(stage: str, model: str, size: Size, **more: object) -> Row:
    """What every row begins with, and ``more``."""
    height, width = size
    row = {"stage": stage, "size": f"{width}x{height}", "pixels": height * width, "model": model}
    return row | more


def camera_frames(size: Size, count: int, noise: float = 15) -> np.ndarray:
    """A pan there and back, (count, height, width) uint16 counts; noise 15 is 1 % of the span."""
    (height, width), rng = size, np.random.default_rng(0)
    scene = gaussian_filter(rng.normal(size=(height + count, width + count)), 2.0)
    places = (min(k, count - k) for k in range(count))
    seen = np.stack([scene[k : k + height, k : k + width] for k in places]) / scene.std()
    return (7500 + 250 * seen + rng.normal(0, noise, seen.shape)).astype(np.uint16)


def kept_runs(runs: Sequence[Run], value: Callable[..., Any] = np.mean) -> list[Run]:
    """Without the best and the worst run by ``value``, where three or more were made."""
    ordered = sorted(runs, key=value)
    return ordered[1:-1] if len(ordered) > 2 else ordered


def percentiles(samples: Sequence[float] | np.ndarray) -> Row:
    """p50, p90 and p99 by nearest rank."""
    found = np.percentile(samples, (50, 90, 99), method="inverted_cdf")
    return dict(zip(("p50", "p90", "p99"), found.tolist(), strict=True))


@torch.inference_mode()
def time_in_turns(calls: Sequence[tuple[Row, Call]], runs: int, seconds: float) -> list[Row]:
    """Time functions in turns, A B C A B C, so that whatever else the machine does hits all alike.

    Best and worst of the ``runs``, of about ``seconds`` each, are dropped, as ros2_benchmark does;
    a GPU is waited for. Returns the rows of the calls with ``calls`` that are kept, ``fps``, in
    seconds ``p50`` to ``p99`` and ``jitter``, and ``flops`` where they know their ``flop``.
    """
    counts = []
    for _, call in calls:
        call()  # loads, allocates, compiles
        counts.append(max(1, int(seconds / _seconds_of(call))))
    samples: list[list[list[float]]] = [[] for _ in calls]
    for _ in tqdm(range(runs), unit="turn"):
        for (_, call), count, made in zip(calls, counts, samples, strict=True):
            made.append([_seconds_of(call) for _ in range(count)])
    rows = []
    for (row, _), made in zip(calls, samples, strict=True):
        kept = np.concatenate(kept_runs(made))
        times = {"calls": len(kept), "fps": 1 / float(kept.mean()), "jitter": float(kept.std())}
        row = row | times | percentiles(kept)
        rows.append(row | {"flops": row["flop"] / row["p50"]} if "flop" in row else row)
    return rows


def network_calls(bench: Bench, model: str, size: Size) -> Iterator[tuple[Row, Call]]:
    """A model's network on random inputs of ``size``: row and call for each of its runtimes.

    ``flop``: of convolutions and matrix products of one call, a multiply-add being two.
    """
    device, runners = bench.device, dict[str, Any]()
    network: nn.Module
    seen: tuple[Tensor, ...]
    if model in PUBLISHED_FILES:
        precision, sha256 = "fp32", load_peer(model, bench.weights, "cpu").weights_sha256
        assert bench.weights is not None, "load_peer refuses that"
        network, _ = load_published_network(model, bench.weights, device)
        seen = (torch.rand(1, 3, *size, device=device).to(memory_format=torch.channels_last),)
        runners["torch"] = network
        if device.type == "cpu":
            runners["onnxruntime"] = _in_onnxruntime(network, *seen)
    else:
        parts, precision = load_parts(model), str(bench.runtime.precision)
        if not isinstance(parts.network, CompactNetwork):
            raise ValueError(f"{model} is no compact network: time it with --only upscaler")
        network, sha256 = parts.network, parts.weights_sha256
        seen = tuple(example_inputs(1, *size, parts.network.config.recurrent).values())
        for backend in _backends(bench):
            runtime = replace(bench.runtime, backend=backend)
            source = NetworkSource(parts.network, sha256, device, runtime, model, parts.int8)
            runner, choice = select_backend(source)
            if (shape := getattr(runner, "shape", (1, *size))) == (1, *size):
                runners[choice.name] = runner
            else:
                tqdm.write(f"{model}: {choice.name} takes {shape}, not {(1, *size)}")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*seen)
    inputs = [value.to(device) for value in seen]
    for name, runner in runners.items():
        row = described(
            "network", model, size, flop=counter.get_total_flops(), device=device.type,
            runtime=name, precision=precision, parameters=parameter_count(network),
            weights_sha256=sha256,
        )  # fmt: skip
        yield row, partial(runner, *inputs)


def upscaler_calls(bench: Bench, model: str, size: Size) -> Iterator[tuple[Row, Call]]:
    """The same of a model's way from frame to frame."""
    device, frames = str(bench.device), camera_frames(size, 8)  # in turns: no frame is a repeat
    loaded: list[tuple[str, str, int | None, Any]]  # backend, precision, weights, what upscales
    if model in PUBLISHED_FILES:
        peer = load_peer(model, bench.weights, device)
        loaded = [("torch", "fp32", peer.parameters, peer)]
    else:
        plain = model in BICUBIC
        runtime = Runtime(device=device) if plain else replace(bench.runtime, device=device)
        backends = ("torch",) if plain else _backends(bench)
        ups = [load_upscaler(model, runtime=runtime, backend=name) for name in backends]
        loaded = [(up.backend, up.runtime.precision, up.parameter_count, up) for up in ups]
    for backend, precision, count, found in loaded:
        row = described(
            "upscaler", model, size, device=bench.device.type, runtime=backend,
            precision=precision, parameters=count, weights_sha256=found.weights_sha256,
        )  # fmt: skip
        yield row, _in_turns(getattr(found, "upscale", found), frames)


def _in_turns(up: Callable[[np.ndarray], np.ndarray], frames: np.ndarray) -> Call:
    """A call that super-resolves the next of the frames, round and round."""
    following = cycle(frames)
    return lambda: up(next(following))


def _backends(bench: Bench) -> tuple[Any, ...]:
    """The one asked for; else both runtimes on a CPU, torch and the fastest that works on a GPU."""
    if bench.runtime.backend != "auto":
        return (bench.runtime.backend,)
    if bench.device.type != "cpu":
        return "torch", "auto"
    both: dict[str, tuple[Any, ...]] = {"fp32": ("torch", "onnxruntime"), "int8": ("onnxruntime",)}
    return both.get(bench.runtime.precision, ("torch",))


def _in_onnxruntime(network: nn.Module, image: Tensor) -> Callable[[Tensor], Tensor]:
    """A network of images in the same session as our own backend."""
    names = {"input_names": ["lr"], "output_names": [NETWORK_OUTPUT]}
    program = torch.onnx.export(network, (image,), **names, dynamo=True, opset_version=21)
    run = start_in_onnxruntime(program.model_proto.SerializeToString())
    result = torch.empty(1, image.shape[1], *(SCALE * side for side in image.shape[2:]))

    def upscale(image: Tensor) -> Tensor:
        run({"lr": image.contiguous()}, result)
        return result

    return upscale


def _seconds_of(call: Call) -> float:
    started = timer()  # of torch: waits for the GPU
    call()
    return timer() - started
