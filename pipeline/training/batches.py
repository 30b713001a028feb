"""Batches are index gathers from one uint8 tensor."""

import warnings

import torch
from torch import Tensor

from pipeline.config import Augmentation
from pipeline.specs import Split
from pipeline.training.augmentation import AUGMENTATIONS


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
    """The training images, a batch at a time.

    On a CPU they stay where they are, also in a file larger than memory; another device gets all of the array.
    """

    def __init__(self, split: Split, augmentation: Augmentation, device: torch.device) -> None:
        self._device = device
        self._labels = torch.from_numpy(split.labels).to(device)
        with warnings.catch_warnings():
            # An array that is mapped from a file cannot be written to, and nobody does.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._images = torch.from_numpy(split.array).to(device)
        self._rows = torch.from_numpy(split.rows).to(device)
        self._augment = AUGMENTATIONS[augmentation]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: channels, height, width."""
        return tuple(self._images.shape[1:])

    def draw(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Those images, by their numbers [B]: augmented ones [B, C, H, W] of 0 to 255, and labels [B]."""
        images = images.to(self._device)
        pixels = self._images.index_select(0, self._rows[images])
        return self._augment(pixels, generator), self._labels[images]
