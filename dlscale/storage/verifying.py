"""Checking everything that is stored under a path against the checksums that were stored with it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.certificates import Certificate, orthogonality
from dlscale.errors import CorruptionError, InputError, MissingChunkError, StoreError
from dlscale.storage.buckets.checkpoints import open_checkpoint
from dlscale.storage.files.atomic import read_plain
from dlscale.storage.files.durable import check_chunk, crc32c
from dlscale.storage.groups import open_array, open_arrays, result_attributes
from dlscale.storage.integrity import check_chunks, holds_numbers, holds_text
from dlscale.storage.labels.writing import FOLDER
from dlscale.storage.objects.address import Address, is_object_url
from dlscale.storage.objects.requests import listing, names
from dlscale.storage.seals import SEAL, description_crc, displaced
from dlscale.storage.zarr_stores import look_first

#: The array that holds the factor of which a check of orthogonality speaks, and whether its rows are the vectors.
_ORTHONORMAL = (("U", "u", False), ("V", "vh", True), ("V", "components", True), ("Q", "q", False))
#: Of a Gram matrix that is computed again; larger ones take longer than reading what is stored.
_MOST_VECTORS = 512
_BLOCK_BYTES = 2**26


@dataclass
class Findings:
    """What was checked and what is damaged.

    Attributes
    ----------
    n_arrays, n_chunks, n_bytes : int
        That were read and compared.
    damage : list of str
        A sentence for each damaged or missing part, with its path.
    notes : list of str
        What could not be checked, and what was checked besides.
    """

    n_arrays: int = 0
    n_chunks: int = 0
    n_bytes: int = 0
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        counts = {"arrays": self.n_arrays, "chunks": self.n_chunks, "bytes": self.n_bytes}
        return {"ok": not self.damage, **counts, "damage": self.damage, "notes": self.notes}


def verify(path: str, findings: Findings | None = None) -> Findings:
    """Check the result, the matrix or the checkpoint at a path or URL.

    Parameters
    ----------
    path : str
    findings : Findings, optional
        To add to.

    Raises
    ------
    InputError
        If there is none.
    """
    findings = findings or Findings()
    path = path.removeprefix("file://")
    look_first(path)
    local = None if "://" in path else Path(path)
    if _is_checkpoint(path):
        _verify_checkpoint(path, findings)
        return findings
    if local is not None and not local.exists():
        raise InputError(f"There is nothing at {path}: no such file or directory.")
    try:
        arrays = open_arrays(path)
    except InputError as error:
        if local is None or not (local / "zarr.json").exists() or _is_array(local):
            _verify_array(open_array(path), path, local, findings)
            if local is not None and (local / FOLDER).is_dir():
                for name, names in sorted(open_arrays(f"{path}/{FOLDER}").items()):
                    _verify_array(names, f"{path}/{FOLDER}/{name}", local / FOLDER / name, findings)
            return findings
        findings.damage.append(str(error))
        arrays = _arrays_one_by_one(local, findings)
    seal = _seal(local) if local else {}
    _verify_description(path, local, seal, findings)
    chunks = seal.get("chunks")
    for name, array in sorted(arrays.items()):
        if local and (local / name).is_symlink() and (local / name).resolve().parent == local.resolve():
            continue  # a second name of an array beside it
        sealed = chunks.get(name) if isinstance(chunks, dict) else None
        _verify_array(array, f"{path}/{name}", local / name if local else None, findings, sealed=sealed)
    if not findings.damage:
        _verify_certificate(path, arrays, findings)
    return findings


def _is_array(folder: Path) -> bool:
    try:
        return bool(json.loads(read_plain(folder / "zarr.json")).get("node_type") == "array")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _arrays_one_by_one(root: Path, findings: Findings) -> dict[str, Any]:
    """The arrays of a group in which at least one cannot be opened."""
    arrays = {}
    for metadata in sorted(root.rglob("zarr.json")):
        name = metadata.parent.relative_to(root).as_posix()
        if name != "." and _is_array(metadata.parent):
            try:
                arrays[name] = open_array(str(metadata.parent))
            except InputError as error:
                findings.damage.append(str(error))
    return arrays


def _verify_description(path: str, local: Path | None, seal: dict[str, Any], findings: Findings) -> None:
    """Compare what a result says of itself, and the metadata of its arrays and groups, with their checksums."""
    try:
        record = result_attributes(path)
    except InputError as error:
        findings.damage.append(str(error))
        record = None
    if not seal:
        findings.notes.append("No checksums of descriptions are stored here; chunks are checked by their own.")
        return
    if record is not None and description_crc(record) != seal.get("dlscale"):
        findings.damage.append(f"{path}/zarr.json: the attribute dlscale has changed since it was written")
    for name, crc in seal.get("metadata", {}).items():
        assert local is not None
        try:
            found = crc32c(read_plain(local / name))
        except OSError:
            found = -1
        if found != crc:
            findings.damage.append(f"{local / name} {'is missing' if found < 0 else 'has changed since it was written'}")


def _seal(root: Path) -> dict[str, Any]:
    try:
        seal = json.loads(read_plain(root / "zarr.json"))["attributes"][SEAL]
        return seal if isinstance(seal.get("metadata"), dict) else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _verify_array(array: Any, uri: str, root: Path | None, findings: Findings, *, sealed: str | None = None) -> None:
    findings.n_arrays += 1
    crcs: dict[str, int] = {}
    try:
        check_chunks(array, uri)
    except MissingChunkError as error:
        findings.damage.append(str(error))
    if not (holds_numbers(array) or holds_text(array)):
        findings.notes.append(f"{uri} holds no plain numbers; nothing of it was decoded.")
        return
    checked, own = _checksums(array)
    if not checked:
        findings.notes.append(f"{uri} carries no checksums: that its chunks are there and can be decoded is all that was checked.")
    for index in itertools.product(*(range(-(-n // step)) for n, step in zip(array.shape, _steps(array), strict=True))):
        key = array.metadata.encode_chunk_key(index)
        if root is not None and not (root / key).exists():
            continue  # told by check_chunks
        findings.n_chunks += 1
        region = tuple(slice(i * step, (i + 1) * step) for i, step in zip(index, _steps(array), strict=True))
        try:
            if own and root is not None:
                crcs[key] = check_chunk(root / key)
                findings.n_bytes += (root / key).stat().st_size
            else:
                findings.n_bytes += int(np.asarray(array[region]).nbytes)
        except CorruptionError as error:
            findings.damage.append(str(error))
        except StoreError:
            raise
        except Exception as error:  # whatever a codec raises for damaged bytes
            findings.damage.append(f"{uri}: chunk {key} cannot be decoded ({type(error).__name__}: {error})")
    if sealed is not None and len(crcs) == math.prod(array.cdata_shape):
        keys = list(crcs)
        for run in displaced(list(crcs.values()), sealed):
            which = f"chunk {keys[run[0]]} is" if len(run) == 1 else f"one of the chunks {keys[run[0]]} to {keys[run[-1]]} is"
            findings.damage.append(f"{uri}: {which} not the one that was published there: another one, or another version, is")


def _steps(array: Any) -> tuple[int, ...]:
    return tuple(array.shards or array.chunks)


def _checksums(array: Any) -> tuple[bool, bool]:
    """Whether chunks carry a crc32c, and whether it stands behind the bare elements, so that no codec is needed."""
    from zarr.codecs import BytesCodec, Crc32cCodec

    codecs: tuple[Any, ...] = tuple(getattr(array.metadata, "codecs", ()))
    inner = [*codecs, *(codec for outer in codecs for codec in getattr(outer, "codecs", ()))]
    own = len(codecs) == 2 and isinstance(codecs[0], BytesCodec) and isinstance(codecs[1], Crc32cCodec)
    return any(isinstance(codec, Crc32cCodec) for codec in inner), own


def _verify_certificate(path: str, arrays: dict[str, Any], findings: Findings) -> None:
    """Measure the orthogonality of stored factors again, and compare the certificate's verdicts with its own numbers."""
    record = result_attributes(path)
    if record is None:
        return
    told = record["certificate"]["checks"]
    for check, said in zip(Certificate.from_dict(record["certificate"]).checks, told, strict=True):
        if check.value is None or check.passed != said["passed"]:
            findings.damage.append(f"{path}: the certificate's check {check.name} does not follow from its own numbers")
        stored = [(name, rows) for q, name, rows in _ORTHONORMAL if check.name.startswith(f"||I - {q}'{q}||") and name in arrays]
        name, rows = stored[0] if stored else ("", False)
        array = arrays.get(name)
        if array is None or array.ndim != 2 or array.shape[0 if rows else 1] > _MOST_VECTORS or not np.prod(array.shape):
            continue
        gram = sum(block.conj().T @ block for block in _blocks(array, rows=rows))
        again = orthogonality(name.upper(), np.asarray(gram), np.dtype(array.dtype), check.meaning)
        if again.passed:
            findings.notes.append(f"Measured again from {name} as stored: {again.name} = {again.value:.3g}.")
        else:
            findings.damage.append(f"{path}/{name}: {again.name} = {again.value:.3g} as stored, must be under {again.threshold:g}")


def _blocks(array: Any, *, rows: bool) -> Iterator[np.ndarray[Any, Any]]:
    """Blocks of an array in double precision, with the vectors as columns."""
    length, n_vectors = (array.shape[1], array.shape[0]) if rows else (array.shape[0], array.shape[1])
    n = max(1, _BLOCK_BYTES // max(1, n_vectors * 16))
    for start in range(0, length, n):
        part = np.asarray(array[:, start : start + n] if rows else array[start : start + n])
        part = part.astype(np.result_type(part.dtype, np.float64))
        yield part.conj().T if rows else part


def _is_checkpoint(path: str) -> bool:
    if is_object_url(path):
        return bool(names(Address.of(path) / "manifests"))
    return "://" not in path and (Path(path) / "manifests").is_dir()


def _verify_checkpoint(path: str, findings: Findings) -> None:
    checkpoint = open_checkpoint(path)
    for step in checkpoint.steps():
        loaded = checkpoint.load(step)
        if loaded is not None:
            findings.n_arrays += len(loaded)
            findings.n_bytes += sum(array.nbytes for array in loaded.values())
    if checkpoint.is_local:
        files = [file.name for file in (checkpoint.directory / "steps").rglob("*") if file.is_file()]
    else:
        files = [key.rpartition("/")[2] for key in listing(Address.of(path) / "steps")]
    findings.n_chunks += sum(name != "zarr.json" for name in files)
    findings.damage += checkpoint.problems
