"""Augmentation of whole batches, on the device that holds the images.

Each entry of `AUGMENTATIONS` is built from all training images, uint8 [N, C, H, W], and gives those at an index
[B] as a batch [B, C, H, W], uint8 or float of the same range. Randomness comes from the generator alone.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional

from pipeline.config import Augmentation

Gather = Callable[[Tensor, Generator], Tensor]

_SHIFT = 2  # pixels in each direction
_ROTATION = math.radians(10)
_SCALE = 0.1
_SHEAR = 0.1


def _none(images: Tensor) -> Gather:
    return lambda index, generator: images[index]


def _shift(images: Tensor) -> Gather:
    """By whole pixels. Padded once; a shifted image is then a window of a view, and costs no more than a plain one."""
    height, width = images.shape[2:]
    windows = functional.pad(images, [_SHIFT] * 4).unfold(2, height, 1).unfold(3, width, 1)

    def gather(index: Tensor, generator: Generator) -> Tensor:
        rows, columns = torch.randint(0, 2 * _SHIFT + 1, (2, len(index)), generator=generator).to(images.device)
        return windows[index, :, rows, columns]

    return gather


def _flip(images: Tensor) -> Gather:
    """Left and right, for half of the images."""

    def gather(index: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(index), generator=generator).to(images.device) < 0.5
        batch = images[index]
        return torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)

    return gather


def _affine(images: Tensor) -> Gather:
    """Rotation, scale, shear and shift in one sampling of each image, zero outside of it."""
    height, width = images.shape[2:]

    def gather(index: Tensor, generator: Generator) -> Tensor:
        # [-1, 1) each; affine_grid counts half a side as 1.
        angle, scale, shear, down, right = torch.rand(5, len(index), generator=generator).to(images.device) * 2 - 1
        size = 1 / (1 + _SCALE * scale)
        sine, cosine = (_ROTATION * angle).sin() * size, (_ROTATION * angle).cos() * size
        shear = _SHEAR * shear
        rows = (
            torch.stack([cosine, shear * cosine - sine, 2 * _SHIFT / width * right], dim=1),
            torch.stack([sine, shear * sine + cosine, 2 * _SHIFT / height * down], dim=1),
        )
        batch = images[index].float()
        grid = functional.affine_grid(torch.stack(rows, dim=1), list(batch.shape), align_corners=False)
        return functional.grid_sample(batch, grid, align_corners=False)

    return gather


AUGMENTATIONS: Mapping[Augmentation, Callable[[Tensor], Gather]] = {
    "none": _none,
    "shift": _shift,
    "flip": _flip,
    "affine": _affine,
}
