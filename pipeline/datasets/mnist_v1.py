"""MNIST: 60,000 and 10,000 handwritten digits of 28x28 pixels."""

from pipeline.config import DataOptions
from pipeline.datasets import _idx
from pipeline.specs import Arrays, Description

_DESCRIPTION = Description(
    short_name="mnist",
    title="MNIST handwritten digits",
    source="Y. LeCun, C. Cortes, C. Burges: the MNIST database of handwritten digits",
    license="CC BY-SA 3.0",
    shape=(1, 28, 28),
    labels=tuple(str(digit) for digit in range(10)),
)

_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def describe(options: DataOptions) -> Description:
    return _DESCRIPTION


def load(options: DataOptions) -> Arrays:
    return _idx.load("MNIST", options.data_dir, _SHA256, len(_DESCRIPTION.labels))
