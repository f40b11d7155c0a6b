"""Random VGG networks in files, for tests of what reads and uses them."""

import torch

WIDTHS = {
    "vgg16": (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
    "vgg19": (64, 64, 0, 128, 128, 0, *[256] * 4, 0, *[512] * 4, 0, *[512] * 4, 0),
}


def random_vgg(arch, path):
    """A whole random VGG, named as torchvision names it, with activations of unit size."""
    rng, state, index, channels = torch.Generator().manual_seed(4), {}, 0, 3
    for width in WIDTHS[arch]:
        if width:
            weight = torch.randn(width, channels, 3, 3, generator=rng)
            state[f"features.{index}.weight"] = weight * (2 / (9 * channels)) ** 0.5
            state[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=rng)
            channels = width
        index += 2 if width else 1
    state["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(state, path)
    return path
