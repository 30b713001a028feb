"""Fashion-MNIST: 60,000 and 10,000 pictures of clothes of 28x28 pixels (Xiao et al. 2017, arXiv:1708.07747)."""

from pathlib import Path

from pipeline.config import DataOptions
from pipeline.datasets import _idx
from pipeline.specs import Arrays, Description

_DESCRIPTION = Description(
    short_name="fashion_mnist",
    title="Fashion-MNIST articles of clothing",
    source="H. Xiao, K. Rasul, R. Vollgraf 2017, Zalando SE, arXiv:1708.07747",
    license="MIT",
    shape=(1, 28, 28),
    labels=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
)  # fmt: skip

_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Where Debian's package dataset-fashion-mnist puts the files.
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def describe(options: DataOptions) -> Description:
    return _DESCRIPTION


def load(options: DataOptions) -> Arrays:
    return _idx.load("FashionMNIST", options.data_dir, _SHA256, len(_DESCRIPTION.labels), [_DEBIAN])
