"""Random VGG networks in files, for tests of what reads and uses them."""

import torch
from torch import nn

WIDTHS = {
    "vgg16": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
    "vgg19": (64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0),
}


def random_vgg(arch, path):
    """A whole random VGG, saved at ``path`` under torchvision's names; its layers."""
    torch.manual_seed(4)
    layers, channels = [], 3
    for width in WIDTHS[arch]:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else []
        layers += [] if width else [nn.MaxPool2d(2)]
        channels = width or channels
    network = nn.Sequential(*layers)
    for layer in network:
        if isinstance(layer, nn.Conv2d):  # activations of unit size
            nn.init.kaiming_normal_(layer.weight)
    torch.save({f"features.{k}": v for k, v in network.state_dict().items()}, path)
    return network
