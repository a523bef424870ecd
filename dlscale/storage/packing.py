"""Numbers that are stored packed, by the conventions of netCDF (CF 8.1, and its 2.5.1 for missing ones).

What is meant is ``scale_factor * stored + add_offset``, and nothing where stored is ``_FillValue`` or ``missing_value``.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlscale.errors import InputError

#: The attributes that tell how numbers are packed.
PACKING_KEYS = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")


@dataclass(frozen=True)
class Packing:
    """How stored numbers become those that are meant."""

    scale: float
    offset: float
    missing: tuple[Any, ...]

    @staticmethod
    def of(attributes: Mapping[str, Any], dtype: np.dtype[Any], what: str) -> Packing | None:
        """The packing that the attributes of an array tell; None where the stored numbers are those that are meant.

        Raises
        ------
        InputError
            If they cannot be understood.
        """
        told = {key: attributes[key] for key in PACKING_KEYS if key in attributes and attributes[key] is not None}
        if str(told.pop("_Unsigned", dtype.kind == "u")).lower() != str(dtype.kind == "u").lower():
            raise InputError(
                f"{what} holds {dtype}, and its attribute _Unsigned says otherwise; write the numbers as they are meant."
            )
        try:
            missing = [value for key in ("_FillValue", "missing_value") if key in told for value in _values(told[key], dtype)]
            scale, offset = (_number(told.get(key, default)) for key, default in (("scale_factor", 1.0), ("add_offset", 0.0)))
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{what} is packed in a way that is not understood ({told}: {error}); write it unpacked.") from error
        packing = Packing(scale, offset, tuple(value for value in missing if value == value))
        return None if packing == Packing(1.0, 0.0, ()) else packing

    def __str__(self) -> str:
        said = [f"scale_factor {self.scale:g}"] * (self.scale != 1) + [f"add_offset {self.offset:g}"] * (self.offset != 0)
        return ", ".join(said + [f"missing where {value}" for value in dict.fromkeys(self.missing)])

    def unpack(self, stored: NDArray[Any], out: NDArray[Any]) -> None:
        """Write what stored numbers mean, NaN where they are missing, into an array of floats."""
        gaps = self.gaps(stored)
        np.copyto(out, stored, casting="unsafe")
        if self.scale != 1:
            out *= self.scale
        if self.offset != 0:
            out += self.offset
        if gaps is not None:
            out[gaps] = np.nan

    def gaps(self, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Where entries are missing; None if that cannot be."""
        return np.isin(stored, np.array(self.missing)) if self.missing else None


def _number(value: Any) -> float:
    return float(np.asarray(value, np.float64).reshape(()))


def _values(value: Any, dtype: np.dtype[Any]) -> list[Any]:
    """Values of an attribute in the dtype of its array; xarray writes those of floats in base 64, or by name."""
    if isinstance(value, str) and dtype.kind in "fc":
        named = value.lower().lstrip("+-") in ("nan", "infinity", "inf")
        value = float(value) if named else np.frombuffer(base64.b64decode(value), "<f8")
    values = np.asarray(value).reshape(-1)
    if values.dtype.kind not in "biufc":
        raise ValueError("not a number")
    return [dtype.type(item).item() for item in values.tolist()]
