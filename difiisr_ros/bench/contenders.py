"""What is timed: our models in each runtime, and peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from difiisr_models import Upscaler, UpscalerSettings, load_upscaler
from difiisr_models.backends import NetworkSource, onnxruntime_runner, torch_runner
from difiisr_models.compact import CompactNetwork
from difiisr_models.model_loading import load_network
from difiisr_models.published import PublishedModel
from difiisr_models.resample import PHASES
from difiisr_models.schedule import exponential_schedule
from difiisr_models.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.vq_autoencoder import VQAutoencoder, VQConfig
from difiisr_models.weights import find_weights_folder
from difiisr_training.evaluation.peers import load_contestant, load_published_network

PEERS = ("safmn", "rlfn", "realesrgan")
PUBLISHED = "published (random weights)"
RUNTIMES = ("torch", "onnxruntime")

Call = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """A model in a runtime, ready to be called.

    Attributes:
        model: its name.
        runtime: what runs its network.
        call: one frame.
        weights_sha256: hash of its weights, "" without any.
        parameters: trained values.
    """

    model: str
    runtime: str
    call: Call
    weights_sha256: str = ""
    parameters: int = 0


def network_contenders(
    models: list[str], size: tuple[int, int], weights: Path | None, device: torch.device
) -> list[Contender]:
    """The bare networks on one tile ``size`` (height, width), each in every runtime it has.

    bicubic has no network and the published one is timed as an upscaler only.
    """
    found = []
    for model in models:
        if model in PEERS:
            found += _peer_networks(model, size, weights, device)
        elif model not in ("bicubic", PUBLISHED):
            found += _own_networks(model, size, device)
    return found


def upscaler_contenders(
    models: list[str], frame: np.ndarray, weights: Path | None, device: torch.device
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
        else:
            runtimes = ("torch",) if model == "bicubic" else runtimes_on(device)
            for runtime in runtimes:
                up = load_upscaler(model, device=str(device), backend=runtime)
                found.append(_frame_contender(model, up, frame))
    return found


def published_model(device: torch.device) -> PublishedModel:
    """The published network with random weights: they do not change what it costs."""
    torch.manual_seed(0)
    unet = SwinUNet(SwinUNetConfig()).eval().requires_grad_(False).to(device)
    coder = VQAutoencoder(VQConfig()).eval().requires_grad_(False).to(device)
    return PublishedModel(unet, coder, exponential_schedule())


def runtimes_on(device: torch.device) -> tuple[str, ...]:
    """What can be compared on a device: both runtimes on a CPU, torch on a GPU."""
    return RUNTIMES if device.type == "cpu" else ("torch",)


def _frame_contender(model: str, up: Upscaler, frame: np.ndarray) -> Contender:
    return Contender(model, up.backend, _bound(up, frame), up.weights_sha256, up.parameter_count)


def _own_networks(model: str, size: tuple[int, int], device: torch.device) -> list[Contender]:
    network = load_network(find_weights_folder(model))
    if not isinstance(network, CompactNetwork):
        raise ValueError(f"{model} is no compact network: time it with --only upscaler")
    up = load_upscaler(model, device=str(device), backend="torch")
    source = NetworkSource(network, up.weights_sha256, device)
    rng = torch.Generator().manual_seed(0)
    packed = [torch.randn(1, PHASES, *size, generator=rng).to(device) for _ in range(2)]
    lr = torch.randn(1, 1, *size, generator=rng).to(device)
    step = torch.full((1,), exponential_schedule().steps - 1, device=device)
    inputs = (*packed, lr, step, torch.ones(1, device=device))
    builders = {"torch": torch_runner.build_runner, "onnxruntime": onnxruntime_runner.build_runner}
    return [
        Contender(
            model,
            runtime,
            _synchronised(_bound(builders[runtime](source), *inputs), device),
            up.weights_sha256,
            up.parameter_count,
        )
        for runtime in runtimes_on(device)
    ]


def _peer_networks(
    model: str, size: tuple[int, int], weights: Path | None, device: torch.device
) -> list[Contender]:
    if weights is None:
        raise ValueError(f"{model} needs --weights, the folder that holds its file")
    network, _ = load_published_network(model, weights, device)
    parameters = sum(p.numel() for p in network.parameters())
    image = torch.rand(1, 3, *size, device=device)
    calls = {"torch": _synchronised(_bound(torch.inference_mode()(network), image), device)}
    if "onnxruntime" in runtimes_on(device):
        calls["onnxruntime"] = _onnx_call(network, image)
    return [Contender(model, runtime, call, "", parameters) for runtime, call in calls.items()]


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
