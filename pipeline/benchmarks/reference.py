"""The usual PyTorch example for MNIST, as people run it: the reference of the training benchmark.

Network, optimizer, schedule, batch size and loading are those of
https://github.com/pytorch/examples/tree/main/mnist, written anew. Its printing is left out, which would
cost it time, and it shuffles on every device, not only on a GPU.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Normalize, ToTensor

from pipeline.specs import Arrays, Split

SHAPE, CLASSES = (1, 28, 28), 10
EPOCHS = 14

# Accuracy after some epochs, with which `--quick` extrapolates.
PUBLISHED_ON = "mnist_v1"
PUBLISHED = {1: 0.9831, 4: 0.99}
PUBLISHED_IN = "99.0 % after 4 epochs of 938 steps, by doc/Research.md"

_BATCH_SIZE, _TEST_BATCH = 64, 1000
_MEAN, _STD = 0.1307, 0.3081


class Network(nn.Module):
    """Normalised images [N, 1, 28, 28] to log-probabilities [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(9216, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, CLASSES),
            nn.LogSoftmax(dim=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        log_probabilities: Tensor = self.layers(images)
        return log_probabilities


class Example:
    """One training; `folder` is one that `write` has filled."""

    def __init__(self, folder: Path, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.seed = seed
        self.device = device
        self.network = Network().to(device)
        self._optimizer = torch.optim.Adadelta(self.network.parameters(), lr=1.0)
        self._schedule = StepLR(self._optimizer, step_size=1, gamma=0.7)
        images = MNIST(str(folder), transform=Compose([ToTensor(), Normalize((_MEAN,), (_STD,))]))
        beside = device.type != "cpu"
        self._loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            images,
            _BATCH_SIZE,
            shuffle=True,
            num_workers=1 if beside else 0,
            persistent_workers=beside,
            pin_memory=device.type == "cuda",
        )

    @property
    def steps_per_epoch(self) -> int:
        return len(self._loader)

    def epoch(self) -> Iterator[None]:
        """One pass over the training images; yields after each step."""
        # This project's own training sets it, the example does not.
        torch.set_flush_denormal(False)
        self.network.train()
        for images, labels in self._loader:
            self._optimizer.zero_grad()
            log_probabilities = self.network(images.to(self.device))
            functional.nll_loss(log_probabilities, labels.to(self.device)).backward()
            self._optimizer.step()
            yield
        self._schedule.step()

    @torch.no_grad()
    def accuracy(self, test: Split) -> float:
        """Share of the test images that are classified rightly, in eval mode."""
        self.network.eval()
        right = 0
        for start in range(0, len(test), _TEST_BATCH):
            chosen = slice(start, start + _TEST_BATCH)
            images = torch.from_numpy(test.images(chosen)).to(self.device)
            answers = self.network((images / 255 - _MEAN) / _STD).argmax(1).cpu().numpy()
            right += int((answers == test.labels[chosen]).sum())
        return right / len(test)


def write(arrays: Arrays, folder: Path) -> None:
    """The images as plain IDX files where torchvision's MNIST looks for them."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, split in (("train", arrays.train), ("t10k", arrays.test)):
        images = split.images(slice(None))[:, 0]
        (raw / f"{name}-images-idx3-ubyte").write_bytes(_header(images.shape) + images.tobytes())
        labels = split.labels.astype(np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(_header(labels.shape) + labels.tobytes())


def _header(shape: tuple[int, ...]) -> bytes:
    """Magic number (unsigned bytes, number of dimensions) and sizes: http://yann.lecun.com/exdb/mnist."""
    return np.array([2048 + len(shape), *shape], dtype=">u4").tobytes()
