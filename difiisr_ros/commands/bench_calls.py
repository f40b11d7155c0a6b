"""Times bare networks and whole upscalers, in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from difiisr_models import Runtime, load_upscaler
from difiisr_models.backends import NetworkSource, example_inputs
from difiisr_models.backends.selection import select_backend
from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.frame_model import BICUBIC
from difiisr_models.model_loading import load_parts
from difiisr_training.evaluation.peers import PUBLISHED_NAMES, load_peer, load_published_network

_TILE = 16  # networks are timed on tiles of whole multiples, which every peer's graph takes

Row = dict[str, Any]
"""Columns of ``bench.json``: one measurement; with ``no_result``, a reason, where there is none."""

Call = Callable[[], object]
Size = tuple[int, int]  # height, width
Run = TypeVar("Run")


class Bench(NamedTuple):
    """How all that is timed is run; peers always run in float32."""

    models: tuple[str, ...]  # as the option --models has them
    weights: Path | None  # folder of the peers' files
    sizes: tuple[Size, ...]  # of the camera
    device: torch.device
    runtime: Runtime  # of our models
    runs: int  # best and worst are dropped
    seconds: float  # of a run


def timed_rows(bench: Bench, stage: Literal["network", "upscaler"]) -> Iterator[Row]:
    """Bare networks on one tile; or frame in, frame out, in counts, with all that the node does."""
    for size in bench.sizes:
        if stage == "network":
            height, width = (-(-side // _TILE) * _TILE for side in size)
            models = [model for model in bench.models if model not in BICUBIC]
            calls = [
                call for model in models for call in network_calls(bench, model, (height, width))
            ]
        else:
            calls = [call for model in bench.models for call in upscaler_calls(bench, model, size)]
        yield from time_in_turns(calls, bench.runs, bench.seconds / 4)


def size_columns(stage: str, model: str, size: Size) -> Row:
    """What every row begins with."""
    height, width = size
    return {"stage": stage, "size": f"{width}x{height}", "pixels": height * width, "model": model}


def camera_frames(size: Size, count: int) -> np.ndarray:
    """Noise, (count, height, width) uint16 counts."""
    return np.random.default_rng(0).integers(7000, 8000, (count, *size), np.uint16)


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


def network_flop(network: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Of convolutions and matrix products of one call, which is not made; a multiply-add is two."""
    meta = copy.deepcopy(network).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(*(value.to("meta") for value in inputs))
    return counter.get_total_flops()


def network_calls(bench: Bench, model: str, size: Size) -> Iterator[tuple[Row, Call]]:
    """A model's network on random inputs of ``size``: row and call for each of its runtimes."""
    device, precision, runners = bench.device, str(bench.runtime.precision), dict[str, Any]()
    inputs: tuple[Tensor, ...]
    if model in PUBLISHED_NAMES:
        precision, weights_sha256 = "fp32", load_peer(model, bench.weights, "cpu").weights_sha256
        assert bench.weights is not None, "load_peer refuses that"
        network, _ = load_published_network(model, bench.weights, device)
        inputs = (torch.rand(1, 3, *size, device=device).to(memory_format=torch.channels_last),)
        runners["torch"] = network
        if device.type == "cpu":
            runners["onnxruntime"] = _onnx_runner(network, *inputs)
    else:
        parts = load_parts(model)
        network, weights_sha256 = parts.network, parts.weights_sha256
        if not isinstance(network, CompactNetwork):
            raise ValueError(f"{model} is no compact network: time it with --only upscaler")
        examples = example_inputs(1, *size, network.config.recurrent)
        inputs = tuple(value.to(device) for value in examples.values())
        for backend in _backends(bench):
            runtime = replace(bench.runtime, backend=backend)
            source = NetworkSource(network, weights_sha256, device, runtime, model)
            runner, choice = select_backend(source)
            if (shape := getattr(runner, "shape", (1, *size))) == (1, *size):
                runners[choice.name] = runner
            else:
                tqdm.write(f"{model}: {choice.name} takes {shape}, not {(1, *size)}")
    flop, count = network_flop(network, inputs), parameter_count(network)
    for name, runner in runners.items():
        row = size_columns("network", model, size) | {"flop": flop}
        row |= _identity(device, name, precision, count, weights_sha256)
        yield row, partial(runner, *inputs)


def upscaler_calls(bench: Bench, model: str, size: Size) -> Iterator[tuple[Row, Call]]:
    """The same of a model's way from frame to frame."""
    device, described = bench.device, size_columns("upscaler", model, size)
    frames = camera_frames(size, 8)  # in turns: a repeat is not computed
    if model in PUBLISHED_NAMES:
        peer = load_peer(model, bench.weights, str(device))
        told = _identity(device, "torch", "fp32", peer.parameters, peer.weights_sha256)
        yield described | told, _in_turns(peer.upscale, frames)
        return
    if model in BICUBIC:
        loaded = [load_upscaler(model, device=str(device))]
    else:
        runtime = replace(bench.runtime, device=str(device))
        loaded = [load_upscaler(model, runtime=runtime, backend=name) for name in _backends(bench)]
    for up in loaded:
        precision, count = up.runtime.precision, up.parameter_count
        told = _identity(device, up.backend, precision, count, up.weights_sha256)
        yield described | told, _in_turns(up, frames)


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
    return ("torch", "onnxruntime") if bench.runtime.precision == "fp32" else ("torch",)


def _onnx_runner(network: nn.Module, image: Tensor) -> Callable[[Tensor], list[np.ndarray]]:
    """A network of images in ONNX Runtime, with the same session settings as our own backend."""
    import onnxruntime

    program = torch.onnx.export(network, (image,), dynamo=True, opset_version=21, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image.contiguous().numpy()}
    return lambda _: session.run(None, inputs)


def _identity(device: torch.device, *told: object) -> Row:
    names = ("device", "runtime", "precision", "parameters", "weights_sha256")
    return dict(zip(names, (device.type, *told), strict=True))


def _seconds_of(call: Call) -> float:
    started = timer()  # of torch: waits for the GPU
    call()
    return timer() - started
