"""The ``difiisr`` command: everything that needs no running ROS.

This is the one place that knows robot side, models and training; each subcommand imports only
what it uses.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from difiisr_ros.commands.arguments import image_size, positive, threads
from difiisr_ros.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    from difiisr_models import Upscaler

DEFAULT_MODEL = "difiisr-rt-x4"
EXIT_FAULT = 2  # bad usage, bad input, or a recording that was not readable to its end
EXIT_INTERRUPTED = 130
SHOWN_FRAMES = 10  # refused frames that are listed; all are counted


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    try:
        if arguments and arguments[0] in _DELEGATED:
            return _DELEGATED[arguments[0]](arguments[1:])
        options = _parser().parse_args(arguments)
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _is_users_error(error):
            raise
        print(f"difiisr: {error or type(error).__name__}", file=sys.stderr)
        return EXIT_FAULT


def _is_users_error(error: Exception) -> bool:
    """Whether the text of the error tells the user all there is to know."""
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError, FloatingPointError)):
        return True
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the latter: torch
        return True
    reader = sys.modules.get("rosbags.rosbag2")
    return reader is not None and isinstance(error, (reader.ReaderError, reader.WriterError))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="difiisr", description="Thermal super-resolution x4: recordings, models, training."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    replay = commands.add_parser(
        "replay", help="super-resolve every frame of a rosbag2 recording, without ROS"
    )
    replay.add_argument("source", metavar="IN_BAG", type=Path, help="rosbag2: mcap or sqlite3")
    replay.add_argument("target", metavar="OUT_BAG", type=Path, help="rosbag2 folder to make")
    replay.add_argument("--image-topic", metavar="T", help="default: the only image topic")
    replay.add_argument("--camera-info-topic", metavar="T", help="default: beside the image topic")
    replay.add_argument("--sr-topic", metavar="T", help="default: sr beside the image topic")
    replay.add_argument("--only-sr", action="store_true", help="do not copy the other topics")
    replay.add_argument("--force", action="store_true", help="replace an existing OUT_BAG")
    _add_model_options(replay)
    replay.add_argument("--tile", type=int, default=0, help="side of large frames' tiles (0: own)")
    replay.add_argument("--overlap", type=int, default=32, help="of tiles (%(default)s)")
    replay.add_argument("--tile-batch", type=positive, default=1, help="tiles per call")
    replay.set_defaults(run=_replay)

    scene = commands.add_parser("scene", help="record the procedural thermal scene of the demo")
    scene.add_argument("target", metavar="OUT_BAG", type=Path, help="rosbag2 folder to make")
    scene.add_argument("--frames", type=positive, default=90, help="at 9 Hz (default: 90)")
    scene.add_argument("--seed", type=int, default=0, help="another seed, another scene")
    scene.add_argument("--force", action="store_true", help="replace an existing OUT_BAG")
    scene.set_defaults(run=_scene)

    info = commands.add_parser("info", help="what a model is, and what a frame costs")
    info.add_argument("model", metavar="MODEL", help="model name, or path of weights")
    _add_runtime_options(info)
    info.add_argument(
        "--profile",
        type=image_size,
        metavar="HxW",
        help="also time each stage of mono16 frames of this size, as in 120x160",
    )
    info.add_argument(
        "--parity",
        choices=("tiny", "full"),
        help="also compare the published network of this size with the reference's outputs",
    )
    info.add_argument(
        "--parity-data",
        type=Path,
        metavar="DIR",
        help="the recorded outputs: tiny_expected.safetensors, ...; not part of the package",
    )
    info.set_defaults(run=_info)

    convert = commands.add_parser("convert", help="convert published checkpoints for this package")
    convert.add_argument("unet", metavar="UNET", type=Path)
    convert.add_argument("autoencoder", metavar="AUTOENCODER", type=Path)
    convert.add_argument("target", metavar="OUT_DIR", type=Path)
    convert.add_argument("--force", action="store_true", help="replace an existing OUT_DIR")
    convert.set_defaults(run=_convert)

    for name, text in (
        ("export", "write a model as an ONNX graph"),
        ("build-engine", "build a TensorRT engine for this machine"),
        ("bench", "time network, upscaler and node, beside other models"),
        ("evaluate", "judge models on a recording or images: report.html"),
        ("train", "train a model: difiisr train CONFIG [...]"),
        ("train-ablation", "train and compare the guidance settings of the paper"),
        ("train-detector", "fine-tune the detector that judges super-resolved frames"),
        ("train-segmenter", "fine-tune the segmenter that judges super-resolved frames"),
    ):
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or path (%(default)s)")
    _add_runtime_options(parser)
    parser.add_argument("--steps", type=positive, default=1, help="diffusion steps (%(default)s)")
    parser.add_argument("--fidelity", type=float, default=1.0, help="0 to 1 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; -1: none (%(default)s)")
    parser.add_argument("--consistency", type=float, default=1.0, help="0 to 1 (%(default)s)")


def _add_runtime_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (%(default)s)")
    parser.add_argument(
        "--backend",
        default="auto",
        help="auto, tensorrt, torch_tensorrt, onnxruntime or torch (%(default)s)",
    )
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16 (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile, in backend torch")
    parser.add_argument("--engine", default="", metavar="FILE", help="TensorRT engine to run")
    parser.add_argument("--threads", type=threads, help="CPU threads (default: all cores)")


def _runtime(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of load_upscaler that say where and how; sets torch's threads."""
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    if options.engine and options.backend == "auto":
        options.backend = "tensorrt"
    names = ("device", "backend", "precision", "compile", "engine")
    return {name: getattr(options, name) for name in names} | {"engine_mismatch": "fail"}


def _replay(options: argparse.Namespace) -> int:
    from difiisr_models import load_upscaler
    from difiisr_ros.replay import replay

    if options.seed < -1:
        raise ValueError(f"--seed must be 0 or more, or -1 for no noise, got {options.seed}")
    upscaler = load_upscaler(
        options.model,
        **_runtime(options),
        steps=options.steps,
        fidelity=options.fidelity,
        seed=None if options.seed < 0 else options.seed,
        consistency=options.consistency,
        tile=options.tile,
        overlap=options.overlap,
        tile_batch=options.tile_batch,
    )
    report = replay(
        options.source,
        options.target,
        upscaler,
        image_topic=options.image_topic,
        info_topic=options.camera_info_topic,
        sr_topic=options.sr_topic,
        only_sr=options.only_sr,
        force=options.force,
    )
    for line in [*report.warnings, *report.malformed[:SHOWN_FRAMES]]:
        print(f"warning: {line}", file=sys.stderr)
    print(
        f"{options.target}: {report.frames_out} of {report.frames_in} frames of "
        f"{report.topics.image} on {report.topics.sr_image}, {len(report.malformed)} refused"
    )
    if report.fault:
        print(
            f"difiisr: {options.source} is damaged; what was readable is in {options.target}: "
            f"{report.fault}",
            file=sys.stderr,
        )
    elif report.frames_out == 0:
        print("difiisr: no frame could be super-resolved", file=sys.stderr)
    return 0 if report.frames_out and not report.fault else EXIT_FAULT


def _scene(options: argparse.Namespace) -> int:
    from difiisr_ros.demo.scene import FRAME_RATE, HEIGHT, KELVIN_PER_COUNT, WIDTH
    from difiisr_ros.demo.scene_bag import IMAGE_TOPIC, write_scene_bag

    write_scene_bag(options.target, options.frames, options.seed, options.force)
    print(
        f"{options.target}: {options.frames} frames, {WIDTH}x{HEIGHT} mono16 at {FRAME_RATE:g} Hz "
        f"on {IMAGE_TOPIC}; kelvin = {KELVIN_PER_COUNT} x counts"
    )
    return 0


def _info(options: argparse.Namespace) -> int:
    if options.parity and options.parity_data is None:
        raise ValueError("--parity needs --parity-data DIR, the reference's recorded outputs")
    import numpy as np
    from torch.utils.flop_counter import FlopCounterMode

    from difiisr_models import load_upscaler

    upscaler = load_upscaler(options.model, **_runtime(options))
    # Operations are counted in plain torch: other backends hide them, CUDA graphs repeat them.
    in_torch = upscaler
    if (upscaler.backend, upscaler.device, options.compile) != ("torch", "cpu", False):
        in_torch = load_upscaler(options.model, device="cpu", backend="torch")
    frame = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    with FlopCounterMode(display=False) as counter:
        in_torch(frame)
    print(f"name        {upscaler.name}")
    print(f"scale       {upscaler.scale}")
    print(f"parameters  {upscaler.parameter_count:,}")
    print(f"sha256      {upscaler.weights_sha256 or '(no weights)'}")
    print(f"cost        {counter.get_total_flops() / 1e9:.2f} GFLOP for a 64x64 frame")
    print(f"backend     {upscaler.backend} on {upscaler.device}")
    for backend, reason in upscaler.passed_over:
        print(f"            not {backend}: {reason}")
    if options.profile:
        _profile(upscaler, *options.profile)
    return _parity(options.parity, options.parity_data) if options.parity else 0


def _profile(upscaler: Upscaler, height: int, width: int) -> None:
    from difiisr_models.frame_profile import profile_stages

    stages = profile_stages(upscaler, height, width)
    print(f"profile     {height}x{width} mono16, median ms per frame with the profiler running")
    print(f"            {'stage':<12} {'CPU':>8} {'GPU':>8}")
    for stage in stages:
        device = f"{stage.device_ms:8.2f}" if stage.device_ms else f"{'-':>8}"
        name = "  network" if stage.name == "network" else stage.name  # a part of the tiles
        print(f"            {name:<12} {stage.host_ms:8.2f} {device}")


def _parity(size: str, folder: Path) -> int:
    from difiisr_models.parity import TOLERANCE, run_parity

    rows = run_parity(size, folder, lambda name: print(f"parity      {name} ...", file=sys.stderr))
    for row in rows:
        ties = f", {row.ties_settled} ties settled as recorded" if row.ties_settled else ""
        verdict = "ok" if row.passed else "FAILED"
        print(f"parity      {row.name}: {row.max_abs_diff:.1e} {verdict}{ties}")
    print(f"            largest absolute difference allowed: {TOLERANCE:.0e}")
    return 0 if all(row.passed for row in rows) else 1


def _convert(options: argparse.Namespace) -> int:
    from difiisr_models.checkpoint import convert

    convert(options.unet, options.autoencoder, options.target, overwrite=options.force)
    print(f"{options.target}: converted; use it as a model: --model {options.target}")
    return 0


def _export(arguments: list[str]) -> int:
    from difiisr_ros.commands.export import main as export

    return export(arguments)


def _build_engine(arguments: list[str]) -> int:
    from difiisr_ros.commands.build_engine import main as build_engine

    return build_engine(arguments)


def _bench(arguments: list[str]) -> int:
    from difiisr_ros.bench.cli import main as bench

    return bench(arguments)


def _evaluate(arguments: list[str]) -> int:
    from difiisr_training.evaluation.cli import main as evaluate

    return evaluate(arguments)


def _train(arguments: list[str]) -> int:
    from difiisr_training.cli import main as train

    return train(arguments)


def _train_ablation(arguments: list[str]) -> int:
    from difiisr_training.ablation import main as train_ablation

    return train_ablation(arguments)


def _train_detector(arguments: list[str]) -> int:
    from difiisr_training.detection.cli import main as train_detector

    return train_detector(arguments)


def _train_segmenter(arguments: list[str]) -> int:
    from difiisr_training.segmentation.cli import main as train_segmenter

    return train_segmenter(arguments)


# Commands with a parser of their own, beside what they run.
_DELEGATED = {
    "export": _export,
    "build-engine": _build_engine,
    "bench": _bench,
    "evaluate": _evaluate,
    "train": _train,
    "train-ablation": _train_ablation,
    "train-detector": _train_detector,
    "train-segmenter": _train_segmenter,
}


if __name__ == "__main__":
    sys.exit(main())
