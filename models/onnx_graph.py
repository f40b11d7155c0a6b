"""ONNX graphs of a network, or of a whole sampler, checked against torch as they are written.

Precision is part of the graph: convolutions and matrix products of the networks' layers hold half
weights and compute in half, everything else (norms, softmax, code distances, the embedding of the
step, the sampler's own arithmetic, inputs and outputs) stays float32. Strongly typed runtimes need
nothing more.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from difiisr_models.compact import CompactNetwork
from difiisr_models.frame_model import sample_compact
from difiisr_models.precision import PRECISIONS, with_precision
from difiisr_models.published import PublishedModel
from difiisr_models.resample import PHASES, unpack
from difiisr_models.schedule import Schedule
from difiisr_models.swin_unet import SwinUNet
from difiisr_models.vq_autoencoder import VQAutoencoder

TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""Largest difference to torch in float32, for outputs of magnitude 1; see :class:`Exported`."""

QUANTISED_TOLERANCE = 5e-2
"""The mean difference where a codebook turns rounding into jumps, in half precision."""

NETWORK_INPUTS = ("x_t", "y", "lr", "t", "fidelity")
NETWORK_OUTPUT = "x_0"
REQUIRED = ("onnx", "onnxscript", "onnxruntime")

_OPSET = {"fp32": 21, "fp16": 21, "bf16": 22}  # convolutions of bfloat16 begin with opset 22
_TRACED_SIDES = (24, 32)  # where height and width are left open
_CHECKED_SIDES = (20, 36)


@dataclass(frozen=True)
class GraphShape:
    """Sizes of a graph's inputs at low resolution; None leaves a size open.

    Raises:
        ValueError: a size below 1, or only one of height and width left open.
    """

    batch: int | None = 1
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of a graph must be at least 1, got {value}")
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height and width are both open or both fixed, got {self}")

    def __str__(self) -> str:
        return "x".join("?" if n is None else str(n) for n in (self.batch, self.height, self.width))


@dataclass(frozen=True)
class Exported:
    """What the check of a written graph found.

    Attributes:
        path: the file.
        difference: to torch in float32 on a random input.
        quantity: whether that is the ``"largest"`` difference, or the ``"mean"`` where a codebook
            turns rounding into jumps (the published sampler in half precision).
        tolerance: above which the graph would have been refused.
    """

    path: Path
    difference: float
    quantity: str
    tolerance: float


class CompactSampler(nn.Module):
    """The compact model from normalised tile to super-resolved tile, without consistency."""

    def __init__(self, network: CompactNetwork, schedule: Schedule, steps: int) -> None:
        super().__init__()
        self.network, self.schedule, self.steps = network, schedule, steps

    def forward(self, lr: Tensor, noise: Tensor, fidelity: Tensor) -> Tensor:
        """Sample.

        Args:
            lr: (B, 1, h, w) in network units.
            noise: (B, 16 steps, h, w), one standard normal draw after another.
            fidelity: (1,), 1 = posterior mean, 0 = perceptual sample.

        Returns:
            (B, 1, 4h, 4w).
        """
        draws = noise.split(PHASES, dim=1)
        return unpack(
            sample_compact(self.network, self.schedule, lr, draws.__getitem__, self.steps, fidelity)
        )


class PublishedSampler(nn.Module):
    """The published model from normalised tile to super-resolved tile; it has no fidelity."""

    def __init__(
        self, unet: SwinUNet, autoencoder: VQAutoencoder, schedule: Schedule, steps: int
    ) -> None:
        super().__init__()
        self.unet, self.autoencoder, self.steps = unet, autoencoder, steps
        self.model = PublishedModel(unet, autoencoder, schedule)

    def forward(self, lr: Tensor, noise: Tensor) -> Tensor:
        """Sample.

        Args:
            lr: (B, 1, h, w) in [-1, 1], sides multiples of the UNet's stride.
            noise: (B, Z steps, h, w) with the latent's Z channels, one draw after another.

        Returns:
            (B, 1, 4h, 4w).
        """
        draws = noise.split(self.model.noise_channels, dim=1)
        return self.model.generate(lr, draws.__getitem__, self.steps)


def export_network(
    network: CompactNetwork | SwinUNet,
    path: Path,
    shape: GraphShape,
    precision: str = "fp32",
    properties: Mapping[str, str] | None = None,
) -> Exported:
    """Write the bare network.

    Inputs and output are those of its ``forward``: ``x_t, y, lr, t, fidelity -> x_0`` (compact,
    with t and fidelity of shape (1,)), or ``x_t, t, lq -> x_0`` (published).

    Args:
        network: float32, on the CPU; it is not changed.
        path: the file to write; it appears when it has been checked.
        shape: of the inputs.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        properties: further metadata to write into the file.

    Raises:
        ModuleNotFoundError: a package of the extra ``onnx`` is missing.
        ValueError: an unknown precision, or the graph differs from torch by more than
            :data:`TOLERANCES` or :data:`QUANTISED_TOLERANCE`; then no file is left.
    """
    if isinstance(network, SwinUNet):

        def inputs(batch: int, height: int, width: int) -> dict[str, Tensor]:
            x_t, lq = _normal(1, batch, 3, height, width), _normal(2, batch, 3, height, width)
            return {"x_t": x_t, "t": torch.full((batch,), 14), "lq": lq.clamp(-1, 1)}

    else:

        def inputs(batch: int, height: int, width: int) -> dict[str, Tensor]:
            x_t, y = (_normal(seed, batch, PHASES, height, width) for seed in (1, 2))
            lr = _normal(3, batch, 1, height, width)
            t, fidelity = torch.tensor([14]), torch.tensor([0.5])
            return dict(zip(NETWORK_INPUTS, (x_t, y, lr, t, fidelity), strict=True))

    return _export(network, inputs, NETWORK_OUTPUT, path, shape, precision, properties or {})


def export_sampler(
    sampler: CompactSampler | PublishedSampler,
    path: Path,
    shape: GraphShape,
    precision: str = "fp32",
    properties: Mapping[str, str] | None = None,
) -> Exported:
    """Write a whole sampler: ``lr, noise, fidelity -> sr`` (the published one: ``lr, noise``).

    Height and width must be fixed; the other arguments and errors are those of
    :func:`export_network`.
    """
    if shape.height is None:
        raise ValueError("a sampler's graph needs a fixed height and width; leave open the batch")
    compact = isinstance(sampler, CompactSampler)
    channels = PHASES if compact else sampler.model.noise_channels

    def inputs(batch: int, height: int, width: int) -> dict[str, Tensor]:
        tensors = {
            "lr": 0.5 * _normal(1, batch, 1, height, width).clamp(-2, 2),
            "noise": _normal(2, batch, channels * sampler.steps, height, width),
        }
        return tensors | ({"fidelity": torch.tensor([0.5])} if compact else {})

    return _export(sampler, inputs, "sr", path, shape, precision, properties or {})


def with_constants(graph: bytes, t: int, fidelity: float) -> bytes:
    """The graph of a compact network at one step and one fidelity, which are no inputs any more.

    A runtime then folds what depends on them alone into the convolutions.

    Args:
        graph: as :func:`export_network` writes it.
        t: the step, counted from 0.
        fidelity: 0..1.
    """
    import onnx
    from onnx import numpy_helper

    constants = {"t": np.array([t]), "fidelity": np.array([fidelity], np.float32)}
    model = onnx.load_from_string(graph)
    inputs = [value for value in model.graph.input if value.name not in constants]
    assert len(inputs) + len(constants) == len(model.graph.input), "not a compact network's graph"
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model.SerializeToString()


def require_packages(packages: tuple[str, ...] = REQUIRED) -> None:
    """Raise ModuleNotFoundError, saying what to install, unless all ``packages`` are there."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"{', '.join(missing)} not installed: pip install {' '.join(REQUIRED)}"
        )


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _export(
    module: nn.Module,
    inputs: Callable[[int, int, int], dict[str, Tensor]],
    output: str,
    path: Path,
    shape: GraphShape,
    precision: str,
    properties: Mapping[str, str],
) -> Exported:
    import torch._dynamo  # here, where an interrupt passes: the exporter makes an error of it

    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    require_packages()
    sides = (shape.height, shape.width)
    traced = inputs(shape.batch or 2, *(_TRACED_SIDES if None in sides else sides))
    checked = inputs(shape.batch or 3, *(_CHECKED_SIDES if None in sides else sides))
    expected = module(*checked.values())  # first: fills the caches that a traced call must not
    open_dims = {
        dim: name
        for dim, name, size in ((0, "batch", shape.batch), (2, "height", sides[0]),
                                (3, "width", sides[1]))
        if size is None
    }  # fmt: skip
    # The step of a SwinUNet has one value per image; those of shape (1,) are for the whole batch.
    batched = {name for name, value in traced.items() if value.shape[0] == (shape.batch or 2)}
    dynamic = {
        name: {dim: label for dim, label in open_dims.items() if dim < value.ndim}
        if name in batched
        else None
        for name, value in traced.items()
    }
    with _quiet_exporter():
        program = torch.onnx.export(
            with_precision(module, precision).eval(),
            tuple(traced.values()),
            dynamo=True,
            opset_version=_OPSET[precision],
            input_names=list(traced),
            output_names=[output],
            dynamic_shapes=tuple(dynamic.values()) if open_dims else None,
            verbose=False,
        )
    program.model.metadata_props.update(
        {"precision": precision, "shape": str(shape), "torch": torch.__version__, **properties}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export") as folder:
        written = Path(folder) / path.name
        program.save(written, external_data=False)
        difference = (_run(written, precision, checked) - expected).abs()
        quantised = isinstance(module, PublishedSampler) and precision != "fp32"
        quantity = "mean" if quantised else "largest"
        found = float(difference.mean() if quantised else difference.max())
        tolerance = QUANTISED_TOLERANCE if quantised else TOLERANCES[precision]
        tolerance *= max(1.0, float(expected.abs().max()))
        if not found <= tolerance:
            raise ValueError(
                f"the exported graph differs from torch by {found:.1e}, more than {tolerance:.1e}; "
                f"nothing was written to {path}. Another precision may serve, or another torch."
            )
        os.replace(written, path)
    return Exported(path, found, quantity, tolerance)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep what the exporter says about itself from the user."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _run(path: Path, precision: str, inputs: Mapping[str, Tensor]) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    graph = _widened(path) if precision == "bf16" else str(path)
    session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in inputs.items()}
    return torch.from_numpy(session.run(None, feeds)[0])


def _widened(path: Path) -> bytes:
    """The graph with float32 for bfloat16, in which ONNX Runtime has no convolution on the CPU.

    The weights keep the values that bfloat16 left them.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    del graph.value_info[:]
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    for attribute in attributes:
        if attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
            attribute.i = TensorProto.FLOAT
    for tensor in (*graph.initializer, *(a.t for a in attributes if a.HasField("t"))):
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()
