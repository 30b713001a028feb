"""Which images each epoch has, and in which order."""

import math

import torch
from torch import Tensor

from pipeline.training import seeds


class Sampler:
    """All images in each epoch; where `hard_fraction` is less than 1, every second epoch has only the hardest.

    These are the images of the highest loss in each batch of the epoch before. Most images are soon known, and steps
    on them change little (Shrivastava et al. 2016, arXiv:1604.03540; Jordan 2024, arXiv:2404.00498).

    `losses` [N]: of each image as it was last seen in an epoch of all; written by whoever trains on them.
    """

    def __init__(self, images: int, batch_size: int, hard_fraction: float, seed: int, device: torch.device) -> None:
        self._batch_size = batch_size
        self._hard_fraction = hard_fraction
        self._seed = seed
        self.losses = torch.zeros(images, device=device)

    def is_hard(self, epoch: int) -> bool:
        """Whether the epoch has only the hardest images."""
        return self._hard_fraction < 1 and epoch % 2 == 1

    def steps(self, epoch: int) -> int:
        """How many batches the epoch has."""
        return math.ceil(self._images(epoch) / self._batch_size)

    def batches(self, epoch: int) -> list[slice]:
        """Places in the epoch's order that each batch has; the last one may be smaller."""
        count = self._images(epoch)
        starts = range(0, count, self._batch_size)
        return [slice(start, min(start + self._batch_size, count)) for start in starts]

    def order(self, epoch: int) -> Tensor:
        """Numbers of the epoch's images, int64 on the CPU."""
        images = torch.arange(len(self.losses))
        if self.is_hard(epoch):
            before, losses = self.order(epoch - 1), self.losses.cpu()
            batches = [before[batch] for batch in self.batches(epoch - 1)]
            images = torch.cat([_hardest(batch, losses[batch], self._hard(len(batch))) for batch in batches])
        return images[torch.randperm(len(images), generator=seeds.generator(self._seed, epoch, "order"))]

    def _images(self, epoch: int) -> int:
        count = self._without_single(len(self.losses))
        if not self.is_hard(epoch):
            return count
        batches, rest = divmod(count, self._batch_size)
        return self._without_single(batches * self._hard(self._batch_size) + self._hard(rest))

    def _without_single(self, images: int) -> int:
        """A last batch of one image is left out: batch normalisation of a map of 1x1 has no deviation there."""
        return images - (images % self._batch_size == 1 and images > self._batch_size)

    def _hard(self, images: int) -> int:
        """How many of so many are the hardest."""
        return math.ceil(images * self._hard_fraction)


def _hardest(images: Tensor, losses: Tensor, count: int) -> Tensor:
    return images[losses.argsort(descending=True, stable=True)[:count]]
