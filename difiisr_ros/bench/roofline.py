"""What a network costs, what a device can give at most, and the share of it that was reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from difiisr_models.precision import PRECISIONS, tf32_products, with_precision

_SECONDS, _CALLS = 0.4, 20  # at least, for each of the two ceilings
# On a CPU short enough that some calls are never interrupted, on a GPU large enough to fill it.
_MATMUL_SIDE = {"cpu": 512, "cuda": 8192}
_COPY_BYTES = {"cpu": 2**26, "cuda": 2**29}


@dataclass(frozen=True)
class Cost:
    """What one call takes at least.

    Attributes:
        flop: of convolutions and matrix products, a multiplication and an addition being two.
        bytes: weights, inputs and outputs, each moved once; nothing between layers is counted.
    """

    flop: float
    bytes: float


@dataclass(frozen=True)
class Ceilings:
    """What a device reached with nothing else to do.

    Attributes:
        flops: FLOP/s of a large matrix product.
        bandwidth: bytes/s of a large copy, read and written.
    """

    flops: float
    bandwidth: float

    def share(self, cost: Cost, seconds: float) -> float:
        """Share of the roofline reached by a call that took ``seconds``."""
        return max(cost.flop / self.flops, cost.bytes / self.bandwidth) / seconds


def network_cost(network: nn.Module, precision: str, inputs: Sequence[Tensor]) -> Cost:
    """Cost of ``network(*inputs)``, found without computing it."""
    shapes = [value.to("meta") for value in inputs]
    network = with_precision(network, precision).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = network(*shapes)
    moved = [*network.parameters(), *shapes, output]
    return Cost(counter.get_total_flops(), sum(value.nbytes for value in moved))


def measure_ceilings(device: torch.device, precision: str) -> Ceilings:
    """Both ceilings of a device; about a second.

    Float32 products of a GPU use TF32, as its convolutions do.
    """
    side = _MATMUL_SIDE[device.type]
    dtype = PRECISIONS[precision] or torch.float32
    factor = torch.randn(side, side, device=device).to(dtype)
    source = torch.zeros(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with tf32_products(True):
        product = _shortest(lambda: factor @ factor, device)
    copy = _shortest(lambda: target.copy_(source), device)
    return Ceilings(2 * side**3 / product, 2 * source.nbytes / copy)


def _shortest(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of many calls, after one to warm up."""
    call()
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(taken) < _CALLS or time.perf_counter() < until:
        _synchronise(device)
        started = time.perf_counter()
        call()
        _synchronise(device)
        taken.append(time.perf_counter() - started)
    return min(taken)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
