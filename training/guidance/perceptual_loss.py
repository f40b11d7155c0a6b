"""The first half of L_perceptual (DifIISR, Eq. 12): ||phi_l(HR) - phi_l(SR)||^2 in a frozen VGG.

The networks are built here and filled from a file on disk: ImageNet weights are those that
torchvision saves (``vgg16-397923af.pth``, ``vgg19-dcbb9e9d.pth``), and nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

_BLOCKS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_SCALES = (6, 13, 17)  # relu1_2, relu2_2 and relu3_1 in the normalised VGG-19
_DARK = 1e-4  # squared length below which features are nothing
_WIDTHS = (64, 128, 256, 512, 512)


class PerceptualLoss(nn.Module):
    """Mean squared difference of one feature map, one value per sample.

    ``layer`` is one of

    - ``"vgg16_relu3_3"``: VGG-16, as in the paper (which leaves l open), on images normalised as in
      ImageNet;
    - ``"vgg19_relu5_4"``: VGG-19 layer 35, as in the public reference, which feeds [-1, 1] without
      any further normalisation;
    - ``"vgg19_relu3_1"``: VGG-19 with normalised activations, reflection padding and its own colour
      layer, as published for style transfer; the file holds the network to relu3_1;
    - ``"vgg19_scales"``: relu1_2, relu2_2 and relu3_1 of that network, each place's features
      divided by their length, as LPIPS has it (Zhang et al. 2018); the losses of the three are
      added. Little contrast counts as much as great.
    """

    def __init__(self, layer: str, weights: Path) -> None:
        """Build and fill the network.

        Raises:
            ValueError: unknown layer.
            FileNotFoundError: no such file; the text says where one comes from.
            ValueError: the file holds another network, or no weights.
        """
        super().__init__()
        if layer not in _NETWORKS:
            raise ValueError(f"unknown layer {layer!r}; known are {', '.join(_NETWORKS)}")
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"no weights for {layer} at {weights}; ImageNet weights are the files that "
                "torchvision.models.vgg16 and vgg19 save in torch's hub folder"
            )
        network = _NETWORKS[layer]()
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            names = {name.removeprefix("features."): value for name, value in state.items()}
            wanted = network.state_dict().keys()
            network.load_state_dict({name: names[name] for name in wanted if name in names})
        except (RuntimeError, AttributeError, EOFError, UnpicklingError) as error:
            reason = error or type(error).__name__
            raise ValueError(f"{weights} does not hold the weights of {layer}: {reason}") from error
        self._network = network
        self._imagenet = layer == "vgg16_relu3_3"
        self._unit = layer in ("vgg19_relu3_1", "vgg19_scales")
        self._scales = layer == "vgg19_scales"
        self.eval().requires_grad_(False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """``(B, 1, H, W)`` twice, in [-1, 1] -> ``(B,)``, differentiable with respect to both."""
        pairs = zip(self.features(sr), self.features(hr), strict=True)
        if self._scales:
            return sum((a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs)
        return sum((a - b).square().mean(dim=(1, 2, 3)) for a, b in pairs)

    def features(self, image: Tensor) -> list[Tensor]:
        """phi_l of ``(B, 1, H, W)`` in [-1, 1], fed as three equal channels: ``(B, F, h, w)``."""
        colours = image.expand(-1, 3, -1, -1)
        if self._imagenet or self._unit:
            colours = (colours + 1) / 2
        if self._imagenet:
            mean = colours.new_tensor([0.485, 0.456, 0.406])[:, None, None]
            deviation = colours.new_tensor([0.229, 0.224, 0.225])[:, None, None]
            colours = (colours - mean) / deviation
        if not self._scales:
            return [self._network(colours)]
        found = []
        for index, layer in enumerate(self._network):
            colours = layer(colours)
            if index in _SCALES:
                found.append(colours / (colours.square().sum(1, keepdim=True) + _DARK).sqrt())
        return found


def _imagenet_vgg(depth: str, last: int) -> nn.Sequential:
    """VGG (Simonyan and Zisserman 2015) up to layer ``last``, numbered as in torchvision."""
    layers: list[nn.Module] = []
    channels = 3
    for width, convolutions in zip(_WIDTHS, _BLOCKS[depth], strict=True):
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[: last + 1])


def _normalised_vgg19() -> nn.Sequential:
    """Normalised VGG-19 to relu3_1 (Gatys et al. 2016) with explicit padding layers."""

    def convolution(channels: int, width: int) -> list[nn.Module]:
        return [nn.ReflectionPad2d(1), nn.Conv2d(channels, width, 3), nn.ReLU()]

    pool = nn.MaxPool2d(2)
    return nn.Sequential(
        nn.Conv2d(3, 3, 1), *convolution(3, 64), *convolution(64, 64), pool,
        *convolution(64, 128), *convolution(128, 128), pool, *convolution(128, 256),
    )  # fmt: skip


_NETWORKS = {
    "vgg16_relu3_3": lambda: _imagenet_vgg("vgg16", 15),
    "vgg19_relu5_4": lambda: _imagenet_vgg("vgg19", 35),
    "vgg19_relu3_1": _normalised_vgg19,
    "vgg19_scales": _normalised_vgg19,
}
