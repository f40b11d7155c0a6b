"""From a configuration to network, space and objective; from a checkpoint to weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from difiisr_models.compact import CompactConfig, CompactNetwork, embed, parameter_count
from difiisr_models.schedule import exponential_schedule
from difiisr_models.swin_unet import SwinUNet, SwinUNetConfig
from difiisr_models.vq_autoencoder import VQAutoencoder
from difiisr_training.config import TrainConfig
from difiisr_training.data.crops import open_crops
from difiisr_training.evaluation.peers import load_image_teacher, load_published_network
from difiisr_training.guidance.loss import build_guidance_loss
from difiisr_training.objectives import Objective
from difiisr_training.space import LatentSpace, PackedSpace
from difiisr_training.transfer import begin_as_rlfn

_FITTED_ON = 96  # crops; of 48x48 they give 500 equations for each of the unknowns


@dataclass(frozen=True)
class TrainingFiles:
    """Weights of frozen networks that a run may need; ``None`` where it has none.

    Attributes:
        autoencoder: the published VQ autoencoder, to train the published network.
        vgg: weights of the configured VGG.
        sam: checkpoint of a Segment Anything model.
        peers: folder with the weights of published networks, to imitate or to begin as.
    """

    autoencoder: VQAutoencoder | None = None
    vgg: Path | None = None
    sam: Path | None = None
    peers: Path | None = None


def build_network(config: TrainConfig) -> nn.Module:
    """A network with fresh weights: the compact one, or the published UNet if configured."""
    if config.published is not None:
        return SwinUNet(config.published)
    return CompactNetwork(config.network)


def build_objective(config: TrainConfig, files: TrainingFiles, device: torch.device) -> Objective:
    """What the run minimises.

    Raises:
        ValueError: the configuration needs a file that is not given; the text names the option.
    """
    if config.published is None:
        space = PackedSpace()
    elif files.autoencoder is not None:
        space = LatentSpace(files.autoencoder.to(device))
    else:
        raise ValueError("the published network is trained in latents: --autoencoder DIR is needed")
    teacher = None
    if config.image_teacher != "none":
        if files.peers is None:
            raise ValueError(f"image_teacher {config.image_teacher!r} needs --peers DIR")
        teacher = load_image_teacher(config.image_teacher, files.peers, device)
    return Objective(
        space,
        exponential_schedule(),
        config.guidance,
        build_guidance_loss(config.guidance, files.vgg, files.sam, device),
        config.perceptual_weight,
        config.norm,
        teacher,
        config.teacher_weight,
    )


def begin(config: TrainConfig, files: TrainingFiles, data: Path) -> CompactNetwork:
    """The configured network with weights made of those that ``config.begin_as`` names.

    Raises:
        ValueError: the published weights are not given, or do not fit the configured network.
    """
    if files.peers is None:
        raise ValueError(f"begin_as {config.begin_as!r} needs --peers DIR")
    torch.manual_seed(config.seed)
    network = CompactNetwork(config.network)
    rlfn, _ = load_published_network(config.begin_as, files.peers, "cpu")
    samples = open_crops(config.sources, data, config.crops, config.seed, _FITTED_ON)
    begin_as_rlfn(network, rlfn, torch.stack([samples[i][0] for i in range(_FITTED_ON)]))
    return network


def start_from(network: nn.Module, initial: nn.Module) -> None:
    """Give ``network`` the weights of ``initial``, in place.

    A compact network may be wider and have more blocks than ``initial``: until it is trained it
    computes what ``initial`` does, which never reads the added channels and passes the added blocks
    unchanged (Net2Net; Chen et al., ICLR 2016).

    Raises:
        ValueError: any other difference in names or shapes.
    """
    if isinstance(network, CompactNetwork) and isinstance(initial, CompactNetwork):
        ours, theirs = network.config, initial.config
        larger = ours.channels >= theirs.channels and ours.blocks >= theirs.blocks
        if larger and ours.time_features == theirs.time_features:
            return _grow_from(network, initial)
    try:
        network.load_state_dict(initial.state_dict())
    except RuntimeError as error:
        ours, theirs = (
            f"{type(x).__name__} of {parameter_count(x):,} parameters" for x in (network, initial)
        )
        raise ValueError(
            f"the weights to start from, a {theirs}, are not those of the configured network, a "
            f"{ours}; --init DIR names those of another"
        ) from error


@torch.no_grad()
def _grow_from(network: CompactNetwork, initial: CompactNetwork) -> None:
    for block in network.blocks:
        nn.init.dirac_(block.mix.weight)
        nn.init.zeros_(block.mix.bias)
    for block in network.blocks[initial.config.blocks :]:
        nn.init.zeros_(block.conv3.weight)
        nn.init.zeros_(block.conv3.bias)
    embed(initial, network)


def read_checkpoint(path: Path) -> dict:
    """What ``loop.save_checkpoint`` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]  # further lines are advice to programmers
        raise ValueError(f"{path} is damaged: {reason}") from error


def load_average(path: Path) -> tuple[dict, nn.Module, int]:
    """Settings, moving average and iteration of a run's checkpoint.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    saved = read_checkpoint(path)
    settings = saved["config"]
    if settings.get("published"):
        network: nn.Module = SwinUNet(SwinUNetConfig(**settings["published"]))
    else:
        network = CompactNetwork(CompactConfig(**settings["network"]))
    network.load_state_dict(saved["ema"])
    return settings, network.requires_grad_(False), saved["iteration"]
