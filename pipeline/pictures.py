"""How a picture file of any format that Pillow reads becomes pixels."""

from typing import IO

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import DataError
from pipeline.specs import Images

# What the pixels of a picture depend on, beside its content: a change of `pixels` makes this another number.
DECODER = f"1, Pillow {PIL.__version__}"


def pixels(file: IO[bytes], shape: tuple[int, int, int]) -> Images:
    """uint8 of `shape`, which is (1 or 3, height, width): upright, its middle, on white where it is transparent.

    DataError says what is wrong with the file, without its name.
    """
    channels, height, width = shape
    try:
        with Image.open(file) as picture:
            # A JPEG is decoded to no more pixels than are needed.
            picture.draft("RGB", (width, height))
            upright = _rgb(ImageOps.exif_transpose(picture))
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except UnidentifiedImageError:
        raise DataError("of no format that Pillow reads") from None
    # Its readers meet damaged files with errors of many kinds.
    except Exception as error:
        raise DataError(str(error) or type(error).__name__) from None
    if channels == 1:
        return np.asarray(fitted.convert("L"))[np.newaxis]
    return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F"):
        raise ValueError("its pixels are 32 bits of no known range: expected 8 or 16 bits")
    if picture.mode.startswith("I;16"):
        # Pillow's own conversion would cut all above 255 off.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
        return white.convert("RGB")
    return picture.convert("RGB")
