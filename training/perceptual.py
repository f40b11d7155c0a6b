"""L_perceptual of DifIISR (Eq. 12): ||phi_l(HR) - phi_l(SR)||^2 in a frozen VGG, and in a SAM.

The networks are filled from files on disk, and nothing is downloaded. ImageNet weights are those
that torchvision saves (``vgg16-397923af.pth``, ``vgg19-dcbb9e9d.pth``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difiisr_training.checkpoints import read_checkpoint

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

_VGG16, _VGG19 = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
_LAYERS = {
    # layer -> convolutions of each block; indices of the feature maps; the input is
    "vgg16_relu3_3": (_VGG16, (15,), "imagenet"),
    "vgg19_relu5_4": (_VGG19, (35,), "as it is"),
    "vgg19_relu3_1": (_VGG19, (17,), "unit"),
    "vgg19_scales": (_VGG19, (6, 13, 17), "unit"),  # relu1_2, relu2_2 and relu3_1
}
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DARK = 1e-4  # squared length below which features are nothing
_ENCODER_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}


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
        """Fill the network from the file ``weights``; ValueError if that holds another one."""
        super().__init__()
        blocks, self._taps, self._normalised = _LAYERS[layer]
        layers = list(_vgg(blocks, self._normalised == "unit"))
        self._network = nn.Sequential(*layers[: self._taps[-1] + 1])
        names = read_features(weights)
        wanted = self._network.state_dict().keys()
        try:
            self._network.load_state_dict({name: names[name] for name in wanted & names.keys()})
        except RuntimeError as error:
            raise ValueError(f"{weights} does not hold the weights of {layer}: {error}") from error
        self.eval().requires_grad_(False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """``(B, 1, H, W)`` twice, in [-1, 1] -> ``(B,)``, differentiable with respect to both."""
        pairs = zip(self.features(sr), self.features(hr), strict=True)
        if len(self._taps) > 1:
            parts = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs]
        else:
            parts = [(a - b).square().mean(dim=(1, 2, 3)) for a, b in pairs]
        return sum(parts[1:], parts[0])

    def features(self, image: Tensor) -> list[Tensor]:
        """phi_l of ``(B, 1, H, W)`` in [-1, 1], fed as three equal channels: ``(B, F, h, w)``."""
        x = image.expand(-1, 3, -1, -1)
        if self._normalised != "as it is":
            x = (x + 1) / 2
        if self._normalised == "imagenet":
            mean, deviation = x.new_tensor([_IMAGENET_MEAN, _IMAGENET_DEVIATION])[..., None, None]
            x = (x - mean) / deviation
        found = []
        for index, layer in enumerate(self._network):
            x = layer(x)
            if index in self._taps:
                found.append(x)
        if len(found) == 1:
            return found
        return [x / (x.square().sum(1, keepdim=True) + _DARK).sqrt() for x in found]


def read_features(path: Path) -> dict[str, Tensor]:
    """The convolutions of a classifier whose weights torchvision saved."""
    state = read_checkpoint(path)
    names = {name.removeprefix("features."): value for name, value in state.items()}
    return {name: value for name, value in names.items() if not name.startswith("classifier")}


def _vgg(blocks: tuple[int, ...], is_normalised: bool) -> nn.Sequential:
    """VGG, numbered as in torchvision; normalised, it begins with colours and pads by layers."""
    layers, channels = list[nn.Module]([nn.Conv2d(3, 3, 1)] if is_normalised else []), 3
    for width, convolutions in zip((64, 128, 256, 512, 512), blocks, strict=True):
        for _ in range(convolutions):
            padding = [nn.ReflectionPad2d(1)] if is_normalised else []
            layers += [*padding, nn.Conv2d(channels, width, 3, padding=1 - len(padding)), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class SamLoss(nn.Module):
    """||S_HR - S_SR||^2: squared difference of what SAM sees in two images, one mean per sample.

    SAM comes from the ``segment-anything`` package (Kirillov et al., ICCV 2023). ``output`` is
    ``"masks"`` (the paper's S: mask probabilities at a regular grid of prompt points) or
    ``"features"`` (the image encoder's embedding) or ``"raw_features"`` (the same of images in
    [-1, 1] stretched to SAM's square, without SAM's own normalisation: the public reference).
    """

    def __init__(self, sam: Sam, output: str, points_per_side: int = 4) -> None:
        """Freeze ``sam``, whose prompt points are a grid of ``points_per_side`` squared."""
        super().__init__()
        from segment_anything.utils.transforms import ResizeLongestSide

        self._sam, self._resize = sam, ResizeLongestSide(sam.image_encoder.img_size)
        describe = {"features": self.features, "raw_features": self.raw_features}
        self._describe = describe.get(output, self.masks)
        self._points_per_side = points_per_side
        self.eval().requires_grad_(False)

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """``(B, 1, H, W)`` twice, in [-1, 1] -> ``(B,)``; the gradient reaches ``sr`` alone."""
        with torch.no_grad():
            wanted = self._describe(hr)
        return (self._describe(sr) - wanted).square().flatten(1).mean(dim=1)

    def features(self, image: Tensor) -> Tensor:
        """Image embedding ``(B, F, s, s)`` of ``(B, 1, H, W)`` in [-1, 1]."""
        return self._sam.image_encoder(self.preprocess(image))

    def raw_features(self, image: Tensor) -> Tensor:
        """Embedding ``(B, F, s, s)`` of ``(B, 1, H, W)`` as it is, stretched to a square."""
        side = self._sam.image_encoder.img_size
        square = F.interpolate(image, (side, side), mode="bilinear", align_corners=False)
        return self._sam.image_encoder(square.expand(-1, 3, -1, -1))

    def masks(self, image: Tensor) -> Tensor:
        """Mask probabilities ``(B, points, 4s, 4s)`` of ``(B, 1, H, W)`` in [-1, 1]."""
        sam, embeddings = self._sam, self.features(image)
        n, size = self._points_per_side, image.shape[-2:]
        centres = (torch.arange(n, device=image.device) + 0.5) / n
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        grid = torch.stack([x * size[1], y * size[0]], dim=-1).reshape(n * n, 1, 2)
        points = self._resize.apply_coords_torch(grid, size)
        labels = torch.ones(points.shape[:2], device=points.device)  # 1 = foreground
        sparse, dense = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
        prompts = [p.to(embeddings) for p in (sam.prompt_encoder.get_dense_pe(), sparse, dense)]
        logits = [
            sam.mask_decoder(embedding[None], *prompts, multimask_output=False)[0]
            for embedding in embeddings
        ]
        return torch.stack(logits)[:, :, 0].sigmoid()

    def preprocess(self, image: Tensor) -> Tensor:
        """SAM's own, with gradient: longest side to ``img_size``, normalised, zeros to a square."""
        size = self._resize.get_preprocess_shape(*image.shape[-2:], self._resize.target_length)
        grey = F.interpolate((image + 1) * 127.5, size, mode="bilinear", antialias=True)
        return self._sam.preprocess(grey)


def load_sam(checkpoint: Path) -> Sam:
    """Build the SAM that a checkpoint belongs to (ViT-B, -L or -H, told by its width) and fill it.

    ModuleNotFoundError: ``segment-anything`` or torchvision is absent or does not fit torch.
    """
    with with_torchvision("segment-anything"):
        from segment_anything import sam_model_registry
    state = read_checkpoint(checkpoint)
    width = len(state.get("image_encoder.patch_embed.proj.weight", ()))
    if width not in _ENCODER_WIDTHS:
        raise ValueError(
            f"{checkpoint} is no SAM checkpoint: its image encoder has width {width}, "
            f"known are {', '.join(map(str, _ENCODER_WIDTHS))}"
        )
    sam = sam_model_registry[_ENCODER_WIDTHS[width]](checkpoint=None)
    sam.load_state_dict(state)
    return sam


@contextmanager
def with_torchvision(package: str) -> Iterator[None]:
    """Where a package that needs torchvision is imported: ModuleNotFoundError says what to do."""
    try:
        yield
    except (ModuleNotFoundError, RuntimeError) as error:  # its operators are of another torch
        raise ModuleNotFoundError(
            f"{package} cannot be imported ({error}): pip install {package}, and a torchvision "
            f"that fits torch {torch.__version__}, both for CPUs or both for CUDA"
        ) from error
