"""``difiisr build-engine``: a TensorRT engine for this machine and one size of tiles."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from difiisr_models.backends.engine_build import EngineSettings, build_engine, build_from_network
from difiisr_models.backends.engine_file import this_machine
from difiisr_models.backends.selection import resolve_device
from difiisr_models.model_loading import load_parts
from difiisr_models.onnx_graph import require_packages
from difiisr_models.precision import PRECISIONS
from difiisr_ros.commands.arguments import check_target, cuda_device, image_size, positive


def main(argv: Sequence[str]) -> int:
    """Run ``difiisr build-engine`` with the arguments after that word; returns the exit code.

    Raises:
        ModuleNotFoundError: no TensorRT, or a package of the extra ``onnx`` is missing.
        OSError, ValueError: no such model or graph, a graph of something else, a device that is
            not there, or TensorRT cannot build the engine.
    """
    options = _parser().parse_args(argv)
    check_target(options.target, options.force)
    parts = load_parts(options.model)
    if parts.kind != "compact":
        raise ValueError(
            f"{options.model} is a {parts.kind} model, which always runs in torch; engines are "
            "for compact models"
        )
    gpu = _gpu(options.device)
    machine = this_machine(gpu)
    if gpu is None:
        print(
            "warning: no GPU here; this shows that the graph builds, but the engine will be "
            "refused: build it on the machine that will run it",
            file=sys.stderr,
        )
    settings = EngineSettings(
        options.model,
        parts.weights_sha256,
        options.batch,
        *options.input_size,
        options.precision,
        options.workspace << 20,
    )
    with torch.cuda.device(gpu) if gpu else nullcontext(), _progress_bar() as report:
        if options.onnx is None:
            built = build_from_network(parts.network, options.target, settings, machine, report)
        else:
            _check_graph(options.onnx, settings)
            built = build_engine(options.onnx, options.target, settings, machine, report)
    size = options.target.stat().st_size
    print(
        f"{options.target}: {size / 1e6:.2f} MB in {built.build_seconds:.1f} s, {built.precision}"
    )
    print(f"            per call {built.batch} x {built.height}x{built.width}")
    where = "no GPU" if gpu is None else f"{machine.gpu} ({machine.compute_capability})"
    print(f"            {machine.tensorrt}, {where}")
    return 0


def _gpu(name: str) -> torch.device | None:
    if not torch.cuda.is_available():
        return None
    return resolve_device(name)


def _check_graph(path: Path, settings: EngineSettings) -> None:
    """Raise ValueError unless the graph is of these weights and this precision."""
    require_packages(("onnx",))
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        size = path.stat().st_size
        raise ValueError(f"{path} ({size} bytes) is no ONNX graph: {error}") from error
    found = {entry.key: entry.value for entry in graph.metadata_props}
    wanted = {
        "what": "network",
        "weights_sha256": settings.weights_sha256,
        "precision": settings.precision,
    }
    wrong = [
        f"its {key} is {found.get(key)}, {value} is needed"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if wrong:
        raise ValueError(f"{path} is another graph: {'; '.join(wrong)}. See `difiisr export`")


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """One line that shows the phase which moved last; nothing where no one looks."""
    with tqdm(bar_format="{desc} [{elapsed}]", leave=False, disable=None) as line:

        def report(phase: str, done: int, steps: int) -> None:
            line.set_description_str(f"{phase} {done}/{steps}", refresh=False)
            line.update()

        yield report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="difiisr build-engine",
        description="Build a TensorRT engine. Do it on the machine that will run it: engines are "
        "bound to their GPU and their TensorRT.",
    )
    parser.add_argument("model", metavar="MODEL", help="model name, or path of weights")
    parser.add_argument("target", metavar="OUT", type=Path, help="as in model.plan")
    parser.add_argument(
        "--input-size",
        type=image_size,
        required=True,
        metavar="HxW",
        help="of a low-resolution tile, best the camera's frame, as in 120x160",
    )
    parser.add_argument("--batch", type=positive, default=1, help="tiles per call (%(default)s)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32")
    parser.add_argument(
        "--onnx",
        type=Path,
        metavar="FILE",
        help="graph that difiisr export wrote elsewhere from the same weights",
    )
    parser.add_argument(
        "--device", type=cuda_device, default="cuda", help="cuda or cuda:N (%(default)s)"
    )
    parser.add_argument(
        "--workspace",
        type=positive,
        default=1024,
        metavar="MIB",
        help="GPU memory for a layer's scratch (%(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing OUT")
    return parser
