"""Batches are index gathers from one uint8 tensor on the device; augmentation works on whole batches."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import Augmentation
from pipeline.specs import Split

_SHIFT = 2  # pixels in each direction


class Normalise(torch.nn.Module):
    """uint8 [N, C, H, W] to float with mean 0 and deviation 1 per channel over the training images."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        shape = (1, -1, 1, 1)
        # A channel that never changes has deviation 0 and stays 0.
        self.register_buffer("mean", torch.tensor(mean).view(shape))
        self.register_buffer("scale", torch.tensor([1 / value if value > 0 else 0.0 for value in std]).view(shape))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) * self.scale


class Batches:
    """The training images on the device, drawn anew for each epoch."""

    def __init__(self, split: Split, augmentation: Augmentation, batch_size: int, device: torch.device) -> None:
        self._augmentation = augmentation
        self._size = batch_size
        self._device = device
        self._labels = torch.from_numpy(split.labels).to(device)
        images = torch.from_numpy(split.images).to(device)
        height, width = images.shape[2:]
        if augmentation == "shift":
            # Padded once; a shifted image is then a window of a view, and costs no more than a plain one.
            padded = functional.pad(images, [_SHIFT] * 4)
            images = padded.unfold(2, height, 1).unfold(3, width, 1)
        self._images = images

    def __len__(self) -> int:
        """Batches in an epoch, the last smaller one included."""
        return -(-len(self._labels) // self._size)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 [B, C, H, W] and labels [B], every image once, in the generator's order."""
        order = torch.randperm(len(self._labels), generator=generator)
        extra = torch.randint(0, 2 * _SHIFT + 1, (2, len(order)), generator=generator)
        for start in range(0, len(order), self._size):
            chosen = slice(start, start + self._size)
            index = order[chosen].to(self._device)
            rows, columns = extra[:, chosen].to(self._device)
            yield self._gather(index, rows, columns), self._labels[index]

    def _gather(self, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        if self._augmentation == "shift":
            return self._images[index, :, rows, columns]
        images = self._images[index]
        if self._augmentation == "flip":
            mirrored = (rows % 2 == 0).view(-1, 1, 1, 1)
            return torch.where(mirrored, images.flip(3), images)
        return images
