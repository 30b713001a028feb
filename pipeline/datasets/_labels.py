"""Labels as they come from a file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.specs import Labels


def checked(labels: NDArray[Any], images: int, classes: int, path: Path) -> Labels:
    """int64 [N]; DataError names the file that holds not one label for each image, or one of no class."""
    if len(labels) != images:
        raise DataError(f"{path} holds {len(labels)} labels for {images} images: expected one for each; replace it")
    if images and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"{path} holds labels from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}; replace it"
        )
    return labels.astype(np.int64)
