"""From a configuration to a network and its objective; from a run to weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from difiisr_models.compact import CompactConfig, CompactNetwork, parameter_count
from difiisr_models.diffusion import exponential_schedule
from difiisr_models.model_loading import load_parts, save_compact, save_published_unet
from difiisr_models.published.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.published.vq_autoencoder import VQAutoencoder
from difiisr_training.checkpoints import CHECKPOINT_NAME, read_checkpoint
from difiisr_training.config import TrainConfig
from difiisr_training.guidance import GuidanceLoss
from difiisr_training.losses import LatentSpace, Objective, PackedSpace


def build_network(config: TrainConfig) -> nn.Module:
    """A network with fresh weights: the compact one, or the published UNet if configured."""
    return SwinUNet(config.published) if config.published else CompactNetwork(config.network)


def build_objective(
    config: TrainConfig,
    device: torch.device,
    *,
    autoencoder: VQAutoencoder | None = None,
    vgg: Path | None = None,
    sam: Path | None = None,
) -> Objective:
    """What the run minimises; ValueError that names the option if it needs what is not given.

    ``vgg`` and ``sam`` are files, see :class:`difiisr_training.guidance.GuidanceLoss`.
    """
    space: PackedSpace | LatentSpace = PackedSpace()
    if config.published is not None:
        if autoencoder is None:
            raise ValueError("the published network needs --autoencoder DIR: it works in latents")
        space = LatentSpace(autoencoder.to(device))
    is_guided = config.guidance.kind != "none"
    loss = GuidanceLoss(config.guidance, vgg, sam).to(device) if is_guided else None
    return Objective(config, space, loss)


def start_from(network: nn.Module, initial: nn.Module) -> None:
    """Give ``network`` the weights of ``initial``, in place.

    A recurrent network keeps its own weights for the past, which are 0 at first. ValueError: the
    two differ in anything else.
    """
    own = {n: value for n, value in network.state_dict().items() if n.startswith("stem_past")}
    try:
        network.load_state_dict(own | initial.state_dict())
    except RuntimeError as error:
        wanted, given = (
            f"{type(x).__name__} of {parameter_count(x):,} parameters" for x in (network, initial)
        )
        raise ValueError(
            f"the weights to start from, a {given}, are not those of the configured network, a "
            f"{wanted}; --init DIR names those of another"
        ) from error


def load_average(path: Path) -> tuple[dict[str, Any], nn.Module, int]:
    """Settings, moving average and iteration of a run's checkpoint, read as ``read_checkpoint``."""
    saved = read_checkpoint(path)
    settings = saved["config"]
    if settings.get("published"):
        network: nn.Module = SwinUNet(SwinUNetConfig(**settings["published"]))
    else:
        network = CompactNetwork(CompactConfig(**settings["network"]))
    network.load_state_dict(saved["ema"])
    return settings, network.requires_grad_(False), saved["iteration"]


def starting_weights(folder: Path) -> Any:
    """Network of a run folder (its moving average) or of a weights folder of the same schedule."""
    if (folder / CHECKPOINT_NAME).is_file():
        return load_average(folder / CHECKPOINT_NAME)[1]
    parts, own = load_parts(str(folder)), exponential_schedule()
    if not np.array_equal(parts.schedule.eta, own.eta):
        raise ValueError(
            f"{folder} was trained with {parts.schedule.steps} other noise levels than the "
            f"{own.steps} of a run here: its steps mean something else"
        )
    return parts.network


def export_run(
    run: Path,
    folder: Path,
    published: Path | None = None,
    refine: Callable[[Any], object] = lambda network: None,
) -> None:
    """Write the moving average of a run's checkpoint as a weights folder.

    ``published``: where a published network's autoencoder comes from; ``refine``: is called on the
    network before.
    """
    settings, network, iteration = load_average(run / CHECKPOINT_NAME)
    refine(network)
    name, *_ = (settings.pop(key, None) for key in ("name", "network", "published"))
    card = {"name": name, "training": settings | {"iterations": iteration}}
    if isinstance(network, CompactNetwork):
        save_compact(network, folder, card)
    else:
        assert isinstance(network, SwinUNet), type(network)
        assert published is not None, "its autoencoder is not trained"
        save_published_unet(network, published, folder, card)
