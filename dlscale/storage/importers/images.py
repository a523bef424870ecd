"""Images as rows of pixels: a folder of equal images, or the square patches of images of any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec.core
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.tables import BLOCK_BYTES, Blocks, Request, Table

Array = NDArray[Any]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".pgm", ".ppm", ".pnm")
GREY_MODES = {"1": "u1", "L": "u1", "LA": "u1", "I;16": "u2", "I": "i4", "F": "f4"}
SAMPLE_SIDE = 8


@dataclass(frozen=True)
class Picture:
    """Where an image is, and what its header says."""

    path: str
    height: int
    width: int
    mode: str


@contextmanager
def read_images(request: Request) -> Iterator[Table]:
    """All images under a folder, in the order of their paths, or one image file.

    Grey images keep one channel and their depth; as soon as one has colours, all are red, green, blue in 8 bits.
    Transparency is dropped.
    """
    files, root = fsspec.core.url_to_fs(request.source)
    paths = sorted(path for path in files.find(root) if _is_image(path))
    if not paths:
        raise InputError(f"{request.source} holds no images; known kinds are {' '.join(IMAGE_SUFFIXES)}.")
    pictures = [_look(files, path) for path in paths]
    mode, dtype, channels = _common_mode(pictures)

    def arrays() -> Blocks:
        for picture in pictures:
            with files.open(picture.path, "rb") as file, Image.open(file) as image:
                pixels = image.convert(mode) if mode in ("L", "RGB") and image.mode != mode else image
                yield np.asarray(pixels).astype(dtype, copy=False).reshape(picture.height, picture.width, channels)

    yield _table(request, arrays(), sizes=[(p.height, p.width) for p in pictures], names=paths, channels=channels, dtype=dtype)


@contextmanager
def read_sample_photos(request: Request) -> Iterator[Table]:
    """The two photographs that scikit-learn brings along, in patches of 8 x 8 unless another side is asked for."""
    from sklearn.datasets import load_sample_images

    bunch = load_sample_images()
    chosen = request.model_copy(update={"patches": request.patches or SAMPLE_SIDE})
    sizes = [image.shape[:2] for image in bunch.images]
    yield _table(chosen, iter(bunch.images), sizes=sizes, names=list(bunch.filenames), channels=3, dtype=np.dtype(np.uint8))


def _table(
    request: Request,
    images: Iterator[Array],
    *,
    sizes: list[tuple[int, int]],
    names: list[str],
    channels: int,
    dtype: np.dtype[Any],
) -> Table:
    side, stride = request.patches, request.stride
    if side is None:
        height, width = sizes[0]
        for name, size in zip(names, sizes, strict=True):
            if size != sizes[0]:
                raise InputError(
                    f"{name} has {size[0]} x {size[1]} pixels and {names[0]} has {height} x {width}; images that are "
                    "rows must be of one size. Resize them, or cut them into patches (patches=8)."
                )
        blocks = (image.reshape(1, -1) for image in images)
        return Table(len(sizes), height * width * channels, dtype, blocks, {"image_shape": [height, width, channels]})
    for name, (height, width) in zip(names, sizes, strict=True):
        if min(height, width) < side:
            raise InputError(f"{name} has {height} x {width} pixels: too small for patches of {side} x {side}.")
    n_rows = sum(((height - side) // stride + 1) * ((width - side) // stride + 1) for height, width in sizes)
    blocks = (block for image in images for block in _patches(image, side, stride=stride))
    return Table(n_rows, side * side * channels, dtype, blocks, {"image_shape": [side, side, channels]})


def _patches(image: Array, side: int, *, stride: int) -> Blocks:
    """All side x side patches of an image, row by row from the top left, as rows (y, x, channel)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(0, 1))[::stride, ::stride]
    windows = windows.transpose(0, 1, 3, 4, 2)  # (patch row, patch column, y, x, channel)
    n_values = side * side * image.shape[2]
    step = max(1, BLOCK_BYTES // (windows.shape[1] * n_values * image.itemsize))
    for top in range(0, len(windows), step):
        yield windows[top : top + step].reshape(-1, n_values)


def _is_image(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _look(files: Any, path: str) -> Picture:
    try:
        with files.open(path, "rb") as file, Image.open(file) as image:
            return Picture(path, image.height, image.width, "I;16" if image.mode.startswith("I;16") else image.mode)
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image: {error}. Repair it or take it out of the folder.") from None


def _common_mode(pictures: list[Picture]) -> tuple[str, np.dtype[Any], int]:
    modes = {picture.mode for picture in pictures}
    dtypes = {GREY_MODES.get(mode, "u1") for mode in modes}
    if len(dtypes) > 1:
        raise SpecError(f"Images of different depths cannot be rows of one matrix; got modes {', '.join(sorted(modes))}.")
    if not modes <= GREY_MODES.keys():
        return "RGB", np.dtype(np.uint8), 3
    mode = modes.pop() if len(modes) == 1 else "L"
    return ("L" if mode in ("1", "LA") else mode), np.dtype(dtypes.pop()), 1
