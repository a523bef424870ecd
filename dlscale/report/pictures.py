"""Arrays as pictures: components of photographs, the triangle of R."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from dlscale.report.markup import Markup, tag

#: Longer sides are thinned out before they are embedded; the page stays small.
_MOST_PIXELS = 160
#: Blue through near-white to red: signs can be told apart in print and by colour-blind readers.
_SIGNED = np.array([[33, 72, 140], [120, 165, 212], [246, 246, 244], [224, 140, 110], [158, 42, 43]], dtype=float)
#: Dark to light, evenly in lightness (after viridis).
_LEVELS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=float)


def drawable(image_shape: tuple[int, ...] | None, n_columns: int) -> bool:
    """Whether rows of `n_columns` are pictures: (height, width), with one, three or four channels."""
    if image_shape is None or len(image_shape) not in (2, 3) or int(np.prod(image_shape)) != n_columns:
        return False
    return len(image_shape) == 2 or image_shape[2] in (1, 3)


def component(values: np.ndarray, image_shape: tuple[int, ...], alt: str) -> Markup:
    """A component, contrast-normalised: zero is the middle, the largest magnitude reaches the end of the scale."""
    picture = _thin(_real(values).reshape(image_shape))
    part = picture / (float(np.max(np.abs(picture), initial=0.0)) or 1.0)
    if picture.ndim == 3 and picture.shape[2] == 3:
        return _img(np.round(127.5 + 127.5 * part), alt)
    return _img(_coloured((part.reshape(part.shape[:2]) + 1) / 2, _SIGNED), alt)


def mean(values: np.ndarray, image_shape: tuple[int, ...], alt: str) -> Markup:
    """A picture as it is where its values are those of pixels (0 to 255, or 0 to 1), else from its least to its largest."""
    picture = _thin(_real(values).reshape(image_shape))
    low, high = float(picture.min()), float(picture.max())
    if low >= 0 and high <= 255:
        low, high = 0.0, 255.0 if high > 1 else 1.0
    part = (picture - low) / ((high - low) or 1.0)
    if picture.ndim == 3 and picture.shape[2] == 1:
        part = part[:, :, 0]
    return _img(np.round(255 * part), alt)


def magnitudes(matrix: np.ndarray, alt: str) -> Markup:
    """Orders of magnitude of a matrix's entries, the largest of each cell; 16 decades from dark to light, zeros clear."""
    size = np.abs(matrix).astype(float)
    for axis in (0, 1):
        n_cells = min(size.shape[axis], 2 * _MOST_PIXELS)
        starts = np.linspace(0, size.shape[axis], n_cells, endpoint=False).astype(int)
        size = np.maximum.reduceat(size, starts, axis=axis)
    largest = float(size.max(initial=0.0)) or 1.0
    part = np.log10(np.maximum(size / largest, 1e-16)) / 16 + 1
    pixels = np.concatenate([_coloured(part, _LEVELS), np.where(size > 0, 255.0, 0.0)[:, :, None]], axis=2)
    return _img(pixels, alt)


def _real(values: np.ndarray) -> np.ndarray:
    return np.abs(values) if np.iscomplexobj(values) else np.asarray(values, dtype=float)


def _thin(picture: np.ndarray) -> np.ndarray:
    stride = -(-max(picture.shape[:2]) // _MOST_PIXELS)
    return picture[::stride, ::stride]


def _coloured(part: np.ndarray, stops: np.ndarray) -> np.ndarray:
    at = np.linspace(0.0, 1.0, len(stops))
    return np.stack([np.interp(part, at, stops[:, channel]) for channel in range(3)], axis=2)


def _img(pixels: np.ndarray[Any, Any], alt: str) -> Markup:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return tag("img", {"src": source, "alt": alt})
