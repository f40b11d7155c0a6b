"""What is timed: our models in each runtime, and peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from difiisr_models import Upscaler, UpscalerSettings, load_upscaler
from difiisr_models.backends import NetworkSource
from difiisr_models.backends.selection import select_backend
from difiisr_models.compact import CompactNetwork, parameter_count
from difiisr_models.model_loading import load_parts
from difiisr_models.published import PublishedModel
from difiisr_models.resample import PHASES
from difiisr_models.schedule import exponential_schedule
from difiisr_models.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_ros.bench.roofline import Cost, network_cost
from difiisr_training.evaluation.peers import load_contestant, load_published_network

PEERS = ("safmn", "rlfn", "realesrgan")
PUBLISHED = "published (random weights)"
RUNTIMES = ("torch", "onnxruntime")

Call = Callable[[], object]


@dataclass(frozen=True)
class Running:
    """What runs our own models; peers run in float32, in torch and in ONNX Runtime.

    Attributes:
        backend: one of ``selection.BACKENDS``; ``"auto"`` compares all that is compared on the
            device: see :func:`own_backends`.
        precision: one of ``PRECISIONS``.
        engine: TensorRT engine file, "" for none.
        compile: whether torch compiles the network.
    """

    backend: str = "auto"
    precision: str = "fp32"
    engine: str = ""
    compile: bool = False


@dataclass(frozen=True)
class Contender:
    """A model in a runtime, ready to be called.

    Attributes:
        model: its name.
        runtime: what runs its network.
        call: one frame.
        weights_sha256: hash of its weights, "" without any.
        parameters: trained values.
        precision: of its convolutions and matrix products.
        cost: of its network, None where it is not known.
        no_result: why it cannot be timed, "" where it can.
    """

    model: str
    runtime: str
    call: Call
    weights_sha256: str = ""
    parameters: int = 0
    precision: str = "fp32"
    cost: Cost | None = None
    no_result: str = ""


def network_contenders(
    models: list[str],
    size: tuple[int, int],
    weights: Path | None,
    device: torch.device,
    running: Running,
) -> list[Contender]:
    """The bare networks on one tile ``size`` (height, width), each in every runtime it has.

    bicubic has no network and the published one is timed as an upscaler only.
    """
    found = []
    for model in models:
        if model in PEERS:
            found += _peer_networks(model, size, weights, device)
        elif model not in ("bicubic", PUBLISHED):
            found += _own_networks(model, size, device, running)
    return found


def upscaler_contenders(
    models: list[str],
    frame: np.ndarray,
    weights: Path | None,
    device: torch.device,
    running: Running,
) -> list[Contender]:
    """Frame in, frame out, in counts, with everything that the node does to a frame."""
    found = []
    for model in models:
        if model == PUBLISHED:
            network = published_model(device)
            up = Upscaler(PUBLISHED, network, "", device, "torch", UpscalerSettings())
            found.append(_frame_contender(model, up, frame))
        elif model in PEERS:
            peer = load_contestant(model, weights, str(device))
            call = _bound(peer.upscale, frame)
            found.append(Contender(model, "torch", call, peer.weights_sha256, peer.parameter_count))
        elif model == "bicubic":
            up = load_upscaler(model, device=str(device))
            found.append(_frame_contender(model, up, frame))
        else:
            for backend in own_backends(running, device):
                how = asdict(running) | {"backend": backend}
                up = load_upscaler(model, device=str(device), **how)
                found.append(_frame_contender(model, up, frame, running.precision))
    return found


def published_model(device: torch.device) -> PublishedModel:
    """The published network with random weights: they do not change what it costs."""
    torch.manual_seed(0)
    unet = SwinUNet(SwinUNetConfig()).eval().requires_grad_(False).to(device)
    coder = VQAutoencoder(VQConfig()).eval().requires_grad_(False).to(device)
    return PublishedModel(unet, coder, exponential_schedule())


def own_backends(running: Running, device: torch.device) -> tuple[str, ...]:
    """The one asked for; else both runtimes on a CPU, torch and the fastest that works on a GPU.

    In half precision a CPU has torch alone.
    """
    if running.backend != "auto":
        return (running.backend,)
    if device.type == "cpu":
        return RUNTIMES if running.precision == "fp32" else ("torch",)
    return "torch", "auto"


def _frame_contender(
    model: str, up: Upscaler, frame: np.ndarray, precision: str = "fp32"
) -> Contender:
    call = _bound(up, frame)
    return Contender(model, up.backend, call, up.weights_sha256, up.parameter_count, precision)


def _own_networks(
    model: str, size: tuple[int, int], device: torch.device, running: Running
) -> list[Contender]:
    parts = load_parts(model)
    network = parts.network
    if not isinstance(network, CompactNetwork):
        raise ValueError(f"{model} is no compact network: time it with --only upscaler")
    source = NetworkSource(
        network, parts.weights_sha256, device, running.precision, running.compile,
        tile=max(size), model=model,
        engine=Path(running.engine).expanduser() if running.engine else None,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    packed = [torch.randn(1, PHASES, *size, generator=rng).to(device) for _ in range(2)]
    lr = torch.randn(1, 1, *size, generator=rng).to(device)
    step = torch.full((1,), exponential_schedule().steps - 1, device=device)
    inputs = (*packed, lr, step, torch.ones(1, device=device))
    cost, count = network_cost(network, running.precision, inputs), parameter_count(network)
    found = []
    for backend in own_backends(running, device):
        runner, choice = select_backend(backend, source)
        fits = runner.shape in (None, (1, *size))
        found.append(
            Contender(
                model,
                choice.name,
                _synchronised(_bound(runner, *inputs), device),
                parts.weights_sha256,
                count,
                running.precision,
                cost,
                "" if fits else f"the engine takes {runner.shape}, not {(1, *size)}",
            )
        )
    return found


def _peer_networks(
    model: str, size: tuple[int, int], weights: Path | None, device: torch.device
) -> list[Contender]:
    if weights is None:
        raise ValueError(f"{model} needs --weights, the folder that holds its file")
    sha256 = load_contestant(model, weights, str(device)).weights_sha256
    network, _ = load_published_network(model, weights, device)
    image = torch.rand(1, 3, *size, device=device)
    cost, count = network_cost(network, "fp32", (image,)), parameter_count(network)
    calls = {}
    if device.type == "cpu":
        calls["onnxruntime"] = _onnx_call(network, image)
    network, image = (part.to(memory_format=torch.channels_last) for part in (network, image))
    calls["torch"] = _synchronised(_bound(network, image), device)
    return [
        Contender(model, runtime, calls[runtime], sha256, count, cost=cost)
        for runtime in RUNTIMES
        if runtime in calls
    ]


def _onnx_call(network: nn.Module, image: Tensor) -> Call:
    """The peer in ONNX Runtime, with the same session settings as our own backend."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.onnx"
        torch.onnx.export(
            network, (image,), path, dynamo=True, opset_version=21, verbose=False,
            external_data=False,
        )  # fmt: skip
        graph = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, inputs)


def _bound(function: Callable[..., object], *arguments: object) -> Call:
    return lambda: function(*arguments)


def _synchronised(call: Call, device: torch.device) -> Call:
    """A GPU's call is over when its result is there."""
    if device.type != "cuda":
        return torch.inference_mode()(call)

    def wait() -> None:
        with torch.inference_mode():
            call()
        torch.cuda.synchronize(device)

    return wait
