"""Augmentation of whole batches, on the device that holds the images.

Each entry of `AUGMENTATIONS` makes of a batch uint8 [B, C, H, W] another one, uint8 or float of the same range.
Randomness comes from the generator alone.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional

from pipeline.config import Augmentation

Augment = Callable[[Tensor, Generator], Tensor]

_SHIFT = 1  # pixels in each direction
_ROTATION = math.radians(10)
_SCALE = 0.1
_SHEAR = 0.1
_AFFINE_SHIFT = 2


def _none(batch: Tensor, generator: Generator) -> Tensor:
    return batch


def _shift(batch: Tensor, generator: Generator) -> Tensor:
    """By whole pixels: a shifted image is a window of the padded one, and all windows are a view."""
    count, _, height, width = batch.shape
    rows, columns = _sent(torch.randint(0, 2 * _SHIFT + 1, (2, count), generator=generator), batch.device)
    windows = functional.pad(batch, [_SHIFT] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=batch.device), :, rows, columns]


def _flip(batch: Tensor, generator: Generator) -> Tensor:
    """Left and right, for half of the images."""
    mirrored = _sent(torch.rand(len(batch), generator=generator), batch.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(3), batch)


def _flip_shift(batch: Tensor, generator: Generator) -> Tensor:
    return _shift(_flip(batch, generator), generator)


def _affine(batch: Tensor, generator: Generator) -> Tensor:
    """Rotation, scale, shear and shift in one sampling of each image, zero outside of it."""
    count, _, height, width = batch.shape
    # [-1, 1) each; affine_grid counts half a side as 1.
    angle, scale, shear, down, right = _sent(torch.rand(5, count, generator=generator), batch.device) * 2 - 1
    size = 1 / (1 + _SCALE * scale)
    sine, cosine = (_ROTATION * angle).sin() * size, (_ROTATION * angle).cos() * size
    shear = _SHEAR * shear
    rows = (
        torch.stack([cosine, shear * cosine - sine, 2 * _AFFINE_SHIFT / width * right], dim=1),
        torch.stack([sine, shear * sine + cosine, 2 * _AFFINE_SHIFT / height * down], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(batch.shape), align_corners=False)
    return functional.grid_sample(batch.float(), grid, align_corners=False)


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """On the device. A copy to a GPU waits for all that it has to do, unless it is one of pinned memory."""
    if device.type == "cuda":
        return numbers.pin_memory().to(device, non_blocking=True)
    return numbers.to(device)


AUGMENTATIONS: Mapping[Augmentation, Augment] = {
    "none": _none,
    "shift": _shift,
    "flip": _flip,
    "flip_shift": _flip_shift,
    "affine": _affine,
}
