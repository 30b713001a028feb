"""Kuzushiji-MNIST: 60,000 and 10,000 cursive Japanese characters of 28x28 pixels (Clanuwat et al. 2018)."""

import gzip

from pipeline.config import DataOptions
from pipeline.datasets import _idx
from pipeline.datasets._torchvision import verified
from pipeline.specs import Arrays, Description

_DESCRIPTION = Description(
    short_name="kmnist",
    title="Kuzushiji-MNIST cursive Japanese characters",
    source="T. Clanuwat et al. 2018, ROIS-DS Center for Open Data in the Humanities, arXiv:1812.01718",
    license="CC BY-SA 4.0",
    shape=(1, 28, 28),
    labels=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
)


def describe(options: DataOptions) -> Description:
    return _DESCRIPTION


def load(options: DataOptions) -> Arrays:
    """From the four gzipped files in `<data_dir>/KMNIST/raw`: only of these a sum is published."""
    from torchvision.datasets import KMNIST  # slow to import

    folder, md5 = options.data_dir / "KMNIST" / "raw", dict(KMNIST.resources)
    names = [f"{file}.gz" for file in _idx.FILES]
    paths = [verified(folder / name, md5[name], [mirror + name for mirror in KMNIST.mirrors]) for name in names]
    return _idx.arrays({path: gzip.decompress(path.read_bytes()) for path in paths}, len(_DESCRIPTION.labels))
