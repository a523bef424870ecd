"""Images as rows of pixels: a folder of equal images, or the square patches of images of any size."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.folders import parts_of
from dlscale.storage.importers.tables import BLOCK_BYTES, Blocks, Request, Table

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".pgm", ".ppm", ".pnm")
GREY_MODES = {"1": "u1", "L": "u1", "LA": "u1", "I;16": "u2", "I": "i4", "F": "f4"}
SAMPLE_SIDE = 8
MAX_PIXELS = 178_956_970  # of one image, which is decoded as a whole: Pillow's own limit, about 1 GB of memory

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
_ALPHA = ("LA", "RGBA", "PA", "La", "RGBa")
_LOSSES = {
    _ALPHA: "transparency is dropped",
    ("CMYK", "YCbCr", "LAB", "HSV"): "other colours than red, green and blue are converted to these",
}
_TOO_LARGE = f"{{}} has more than {MAX_PIXELS:,} pixels, and an image is decoded as a whole; cut it into several files."


@dataclass(frozen=True)
class Picture:
    """One frame of an image file, and what its header says; height and width are those of the picture turned upright."""

    path: str
    frame: int
    height: int
    width: int
    mode: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.path}, frame {self.frame}" if self.frame else self.path


@contextmanager
def read_images(request: Request) -> Iterator[Table]:
    """All images under a folder, in the order of their names with numbers counted as such, or one image file.

    Each frame of a file is an image. Images are turned as their cameras say. Grey images keep one channel and their depth; as soon
    as one has colours, all are red, green, blue in 8 bits. Transparency is dropped.
    """
    files, paths, _ = parts_of(request.source, IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{request.source} holds no images; known kinds are {' '.join(IMAGE_SUFFIXES)}.")
    pictures = [picture for path in paths for picture in _look(files, path)]
    mode, dtype, channels = _common_mode(pictures)

    def arrays() -> Blocks:
        for path, frames in itertools.groupby(pictures, lambda picture: picture.path):
            with files.open(path, "rb") as file, _opened(file) as image:
                for picture in frames:
                    yield _pixels(image, picture, mode=mode, dtype=dtype, channels=channels)

    sizes, names = [(p.height, p.width) for p in pictures], [p.name for p in pictures]
    table = _table(request, arrays(), sizes=sizes, names=names, channels=channels, dtype=dtype)
    yield replace(table, notes=list(dict.fromkeys(note for picture in pictures for note in picture.notes)))


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


def _opened(file: Any) -> Image.Image:
    """An image by what is in it; of Pillow's formats only those that it decodes itself (it hands EPS to a program)."""
    with _silent():
        return Image.open(file, formats=_FORMATS)


def _look(files: Any, path: str) -> list[Picture]:
    """The frames of an image file."""
    try:
        with files.open(path, "rb") as file, _opened(file) as image, _silent():
            # Of several pictures from a camera the first is the photograph; the others are previews or depths of it.
            n = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            return [_frame(image, path, k) for k in range(n)]
    except UnidentifiedImageError:
        kinds = ", ".join(_FORMATS)
        raise InputError(
            f"{path} cannot be read as an image: it is none of {kinds}. Repair it or take it out of the folder."
        ) from None
    except Image.DecompressionBombError:
        raise InputError(_TOO_LARGE.format(path)) from None
    except (OSError, EOFError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}. Repair it or take it out of the folder.") from None


def _frame(image: Image.Image, path: str, k: int) -> Picture:
    if k:
        image.seek(k)
    if image.width * image.height > MAX_PIXELS:
        raise InputError(_TOO_LARGE.format(path))
    if image.format == "TIFF" and _covered(image) < image.width * image.height:
        raise InputError(
            f"{path} is a damaged TIFF: its strips or tiles leave a part of the {image.width} x {image.height} pixels out."
        )
    # What a TIFF says of its size is so already. A PNG is not asked by its own method, which would decode it.
    turned = image.format != "TIFF" and Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    mode = "I;16" if image.mode.startswith("I;16") else image.mode
    notes = [note for modes, note in _LOSSES.items() if mode in modes]
    if "transparency" in image.info and mode not in _ALPHA:
        notes.append(_LOSSES[_ALPHA])
    if mode not in ("I;16", "I", "F") and any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        notes.append("16 bits of a colour are cut to 8")
    if image.format == "MPO":
        notes.append("of several pictures in one file of a camera only the first is taken")
    return Picture(path, k, height, width, mode, tuple(notes))


def _covered(image: Image.Image) -> int:
    """Pixels that the parts of a file give, those of each colour counted apart where they are stored so."""
    boxes = [tile[1] or (0, 0, image.width, image.height) for tile in getattr(image, "tile", ())]
    return sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)


def _pixels(image: Image.Image, picture: Picture, *, mode: str, dtype: np.dtype[Any], channels: int) -> Array:
    """A frame as (height, width, channels); beside the image as Pillow decodes it there is one copy in memory, not three."""
    with _silent():
        if picture.frame:
            image.seek(picture.frame)
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        upright = ImageOps.exif_transpose(image) if turned else image
        if (upright.height, upright.width) != (picture.height, picture.width):
            raise InputError(f"{picture.name} says behind its pixels that it is to be turned; save it upright.")
        pixels = np.empty((picture.height, picture.width, channels), dtype)
        step = max(1, BLOCK_BYTES // (4 * picture.width))
        for top in range(0, picture.height, step):
            strip = upright.crop((0, top, picture.width, min(top + step, picture.height)))
            strip = strip.convert(mode) if mode in ("L", "RGB") and strip.mode != mode else strip
            pixels[top : top + step] = np.asarray(strip).reshape(-1, picture.width, channels)
        return pixels


@contextmanager
def _silent() -> Iterator[None]:
    """Without Pillow's warnings of damage beside the pixels and of sizes, which have a limit here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _common_mode(pictures: list[Picture]) -> tuple[str, np.dtype[Any], int]:
    modes = {picture.mode for picture in pictures}
    dtypes = {GREY_MODES.get(mode, "u1") for mode in modes}
    if len(dtypes) > 1:
        raise SpecError(f"Images of different depths cannot be rows of one matrix; got modes {', '.join(sorted(modes))}.")
    if not modes <= GREY_MODES.keys():
        return "RGB", np.dtype(np.uint8), 3
    mode = modes.pop() if len(modes) == 1 else "L"
    return ("L" if mode in ("1", "LA") else mode), np.dtype(dtypes.pop()), 1
