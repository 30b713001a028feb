"""Batches are index gathers from one uint8 tensor."""

import warnings
from collections.abc import Iterable, Iterator

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
    """The training images, drawn anew for each epoch.

    On a CPU they stay where they are, also in a file larger than memory; another device gets all of the array.
    """

    def __init__(self, split: Split, augmentation: Augmentation, batch_size: int, device: torch.device) -> None:
        self._size = batch_size
        self._device = device
        self._labels = torch.from_numpy(split.labels).to(device)
        with warnings.catch_warnings():
            # An array that is mapped from a file cannot be written to, and nobody does.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._images = torch.from_numpy(split.array).to(device)
        self._rows = torch.from_numpy(split.rows).to(device)
        self._augment = AUGMENTATIONS[augmentation]

    def __len__(self) -> int:
        """Batches in an epoch, the last smaller one included."""
        return -(-len(self._labels) // self._size)

    @property
    def slices(self) -> list[slice]:
        """Which of an epoch's images are in each batch."""
        count = len(self._labels)
        return [slice(start, min(start + self._size, count)) for start in range(0, count, self._size)]

    def epoch(
        self,
        generator: torch.Generator,
        slices: Iterable[slice] | None = None,
        augmenting: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, C, H, W] of 0 to 255 and labels [B] in the generator's order: all images, or only `slices`.

        `augmenting`: where the augmentation is not drawn from that generator, too.
        """
        order = torch.randperm(len(self._labels), generator=generator)
        for chosen in self.slices if slices is None else slices:
            index = order[chosen].to(self._device)
            images = self._images.index_select(0, self._rows[index])
            yield self._augment(images, augmenting or generator), self._labels[index]
