"""Imports of damaged files, in processes with limits: ``python import_fuzz.py FORMATS FIRST N FOLDER``, formats like ``csv,mtx``.

File number k of a format is made from a sound one and the seed k. Each import must end in success or a DlscaleError, in bounded
time and memory, and each success must be what another reader says. Each format has a process of its own, forked from one that
has loaded all readers. It writes to FOLDER/FORMAT.txt the number of each file before it is imported, and a line of JSON at the
end. How each process ended is printed as JSON.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
import zipfile
from collections import Counter, namedtuple
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
import scipy.sparse
import zarr
from PIL import Image, ImageOps

from dlscale.engine.clusters.lost_workers import peak_bytes
from dlscale.errors import DlscaleError
from dlscale.storage.importers import import_matrix

MAX_ADDRESS_SPACE = 6 << 30
MAX_RESIDENT = {False: 1500 << 20, True: 3 << 30}  # of images, whose decoder makes the whole picture twice
IMAGES = ("png", "jpg", "tif")
MAX_SECONDS = 30
FREE_DISK = 512 << 20
WORDS = [b"1e400", b"-", b"+7", b"NaN", b"inf", b"1,000", b"2.5", b'"', b"True", b"#", b"%", b";", b"\t", b" ", b"\r", b"\n", b"\0"]
WORDS += [b"99999999999", b"0", b"1D5", b"x", b",", b"\xff", b"\n\n", b"e", b"1e-320", b"9" * 30]


NUMBERS = [
    b"1e400",
    b"+7",
    b"-.5",
    b"NaN",
    b"-inf",
    b'"1,000"',
    b"2.5",
    b"1D5",
    b"1.5d-3",
    b"4.",
    b"0001",
    b"1e-400",
    b"True",
    b"x",
]
NUMBERS += [
    b"9007199254740993",
    b"0.1e+1",
    b'"3"',
    b"2",
    b"1",
    b"0",
    b"3",
    b"4",
    b"-0",
    b"18446744073709551615",
    b"",
    b"1_0",
    b"1-3",
]


class TooSlow(BaseException):
    """An import took longer than allowed."""


# Sound files


def sound_files(suffix, rng):
    """Bytes of a small sound file; several kinds for each format."""
    A = rng.standard_normal((6, 4)) * 10.0 ** rng.integers(-3, 4)
    out = io.BytesIO()
    kind = int(rng.integers(4))
    if suffix in ("csv", "tsv"):
        delimiter = "\t" if suffix == "tsv" else ",;"[kind == 3]
        names = ["", "a,b,c,d", '"a","b c",c,d', "# x\n# a,b,c,d"][kind].replace(",", delimiter)
        np.savetxt(out, A, delimiter=delimiter, fmt=["%r", "%.3f", "%d", "%g"][kind], header=names, comments="")
        return out.getvalue().lstrip(b"\n")
    if suffix == "mtx":
        field = ["real", "integer", "complex", "real"][kind]
        A = np.round(A).astype(int) if field == "integer" else A + 1j if field == "complex" else A
        A = A[:4] + A[:4].T if kind == 3 else A
        scipy.io.mmwrite(
            out, scipy.sparse.coo_array(A) if rng.random() < 0.6 else A, symmetry="symmetric" if kind == 3 else "general"
        )
    elif suffix == "npy":
        np.save(out, np.asarray(A.astype(["f8", "f4", "i2", "c16"][kind]), order="CF"[int(rng.integers(2))]))
    elif suffix == "npz":
        (np.savez, np.savez_compressed)[kind % 2](out, x=np.asarray(A, order="CF"[kind // 2]))
    elif suffix == "parquet":
        table = pa.table({"a": A[:, 0], "b": A[:, 1].astype("f4"), "c": np.arange(6), "d": A[:, 2] > 0})
        pq.write_table(table, out, compression=["none", "snappy", "zstd", "gzip"][kind], use_dictionary=bool(kind % 2))
    elif suffix == "h5":
        options = [{}, {"chunks": (2, 2)}, {"chunks": (3, 4), "compression": "gzip"}, {"chunks": (6, 1), "fletcher32": True}][kind]
        with h5py.File(out, "w") as file:
            file.create_dataset("x", data=A.astype("f4") if kind else A, **options)
    else:
        pixels = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
        image = Image.fromarray(pixels if kind % 2 else pixels[:, :, 0])
        image.save(out, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    return out.getvalue()


def reworded(data, rng):
    """One to three words of a text become others."""
    words = re.split(rb"([,;\t\n ]+)", data)
    for _ in range(int(rng.integers(1, 4))):
        words[2 * int(rng.integers((len(words) + 1) // 2))] = NUMBERS[int(rng.integers(len(NUMBERS)))]
    return b"".join(words)


def damaged(data, rng, *, text):
    """One to four faults: bits, bytes, pieces cut, doubled, moved or lost, the end missing, other words in a text."""
    if text and rng.random() < 0.5:
        return reworded(data, rng)
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        i, n = int(rng.integers(len(data))), int(rng.integers(1, 9))
        match int(rng.integers(8)):
            case 0:
                data[i] ^= 1 << int(rng.integers(8))
            case 1:
                data[i : i + 1] = bytes([int(rng.integers(256))])
            case 2:
                del data[i : i + n]
            case 3:
                data[i:i] = data[max(0, i - n) : i] * int(rng.integers(1, 4))
            case 4:
                j = int(rng.integers(len(data)))
                data[i : i + n] = data[j : j + n]
            case 5 if rng.random() < 0.3:
                del data[i:]
            case 6 if text:
                data[i : i + int(rng.integers(3))] = WORDS[int(rng.integers(len(WORDS)))]
            case _:
                data[i : i + n] = bytes([int(rng.choice([0, 255, 127, 1]))] * n)
    return bytes(data)


# Other readers


def number(text, decimal="."):
    text = text.strip()
    words = {"true": 1.0, "True": 1.0, "TRUE": 1.0, "false": 0.0, "False": 0.0, "FALSE": 0.0}
    if text in words:
        return words[text]
    grouped = re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?([eE][+-]?\d+)?", text)
    if grouped and decimal == ".":
        text = text.replace(",", "")
    if decimal == ",":
        text = text.replace(".", "" if re.fullmatch(r"[+-]?\d{1,3}(\.\d{3})+(,\d*)?", text) else "?").replace(",", ".")
    if not text.isascii() or "_" in text:
        raise ValueError(text)
    return float(re.sub("(?<=[0-9.])[dD](?=[-+0-9])", "e", text))


def table_answers(data, suffix):
    """Every way in which these lines are a table of numbers, the usual one first."""
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    while lines and (not lines[0].strip() or lines[0].lstrip().startswith("#")):
        del lines[0]
    for delimiter in ["\t", ",", ";", "|", " "] if suffix == "tsv" else [",", ";", "\t", "|", " "]:
        kept = [re.sub(r"[ \t]+", " ", line).strip() for line in lines] if delimiter == " " else lines
        for decimal in ".,":
            rows = [row for row in csv.reader(io.StringIO("\n".join(kept)), delimiter=delimiter) if row]
            for skipped in (0, 1):
                cells = rows[skipped:]
                for first in (0, 1):
                    try:
                        if len({len(row) for row in (rows if not first else cells)}) == 1:
                            yield np.array([[number(cell, decimal) for cell in row[first:]] for row in cells])
                    except ValueError:
                        continue


Market = namedtuple("Market", "layout field symmetry")


def market_answer(data):
    lines = [line.strip() for line in data.decode("latin-1").split("\n")]
    kind = Market(*lines[0].lower().split()[2:])
    body = [line.split() for line in lines[1:] if line and not line.startswith("%")]
    m, n = int(body[0][0]), int(body[0][1])
    A = np.zeros((m, n), object)
    whole, mirror = "integer" in kind.field, {"symmetric": 1, "skew-symmetric": -1, "hermitian": 1}.get(kind.symmetry, 0)
    places = [(i, j) for j in range(n) for i in range(j + (mirror == -1) if mirror else 0, m)]
    assert len(body) - 1 == (int(body[0][2]) if kind.layout == "coordinate" else len(places))
    for k, words in enumerate(body[1:]):
        i, j = (int(words[0]) - 1, int(words[1]) - 1) if kind.layout == "coordinate" else places[k]
        rest = words[2:] if kind.layout == "coordinate" else words
        parts = [int(word) if whole else number(word) for word in rest]
        assert len(parts) == {"complex": 2, "pattern": 0}.get(kind.field, 1)
        value = complex(*parts) if kind.field == "complex" else parts[0] if parts else 1
        A[i, j] += value
        if mirror and i != j:
            A[j, i] += mirror * (value.conjugate() if kind.symmetry == "hermitian" else value)
    return A.astype({"complex": complex, "integer": np.int64, "unsigned-integer": np.uint64}.get(kind.field, float))


def answers(path, suffix):
    """What other readers say that the matrix is; one of these must be right."""
    data = path.read_bytes()
    if suffix in ("csv", "tsv"):
        return list(table_answers(data, suffix))
    if suffix == "mtx":
        return [market_answer(data)]
    if suffix == "npy":
        arrays = [np.load(path, allow_pickle=False)]
    elif suffix == "npz":
        with zipfile.ZipFile(path) as archive:
            arrays = []
            for name in archive.namelist():
                with archive.open(name) as member:  # to the end of the array; a damaged size may say that more follows
                    arrays.append(np.lib.format.read_array(member, allow_pickle=False))
    elif suffix == "parquet":
        table = pq.read_table(path)
        arrays = [np.stack([column.to_numpy().astype(float) for column in table.columns], axis=1)]
    elif suffix == "h5":
        arrays = []
        with h5py.File(path) as file:
            file.visititems(lambda _, item: arrays.append(item[...]) if isinstance(item, h5py.Dataset) else None)
    else:
        with Image.open(io.BytesIO(data)) as image:  # of a path it does not turn TIFF
            turned = ImageOps.exif_transpose(image)
            forms = [turned] if turned.mode in ("L", "I;16", "I", "F") else [turned.convert("RGB"), turned.convert("L")]
            return [np.asarray(form).reshape(1, -1) for form in forms]
    return [array.reshape(-1, 1) if array.ndim == 1 else array for array in arrays]


def same(got, expected):
    if got.shape != expected.shape or got.dtype.kind in "iu":
        return np.array_equal(got, expected)
    return np.allclose(got, expected, rtol=1e-15, atol=0, equal_nan=True)


# The run


def limit():
    def stop(*_):
        raise TooSlow

    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, stop)
    usage = shutil.disk_usage("/")
    shutil.disk_usage = lambda _: usage._replace(free=FREE_DISK)  # as if on a small disk: a promise of more is refused


def main(suffix, first, n, folder):
    limit()
    warnings.simplefilter("ignore")
    text, found, faults = suffix in ("csv", "tsv", "mtx"), Counter(), []
    path, destination = folder / f"a.{suffix}", folder / "y.zarr"
    for k in range(first, first + n):
        rng = np.random.default_rng([k, len(suffix), *suffix.encode()])
        path.write_bytes(damaged(sound_files(suffix, rng), rng, text=text))
        print(k, flush=True)
        signal.alarm(MAX_SECONDS)
        try:
            import_matrix(path, destination, overwrite=True)
        except DlscaleError as error:
            found["refused"] += 1
            if f"a.{suffix}" not in str(error):
                faults.append(f"{k}: does not name the file: {error}")
            continue
        except BaseException as error:
            faults.append(f"{k}: {type(error).__name__}: {error}")
            continue
        finally:
            signal.alarm(0)
        found["read"] += 1
        try:
            got = zarr.open_array(destination, mode="r")[...]
            if not any(same(got, expected) for expected in answers(path, suffix)):
                faults.append(f"{k}: read as {got[:2].tolist()}")
        except Exception as error:
            faults.append(f"{k}: read, and refused by another reader: {type(error).__name__}: {error}")
    left = sorted(entry.name for entry in folder.iterdir() if entry.name not in (path.name, destination.name))
    peak = peak_bytes(os.getpid())
    if left or peak > MAX_RESIDENT[suffix in IMAGES]:
        faults.append(f"left behind: {left}; memory {peak >> 20} MB")
    print(json.dumps({**found, "peak_mb": peak >> 20, "faults": faults}))


def in_a_process(suffix, first, n, folder):
    """How the process of a format ended: 0, or how `os.waitstatus_to_exitcode` says it."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    told = os.open(folder / f"{suffix}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(told, 1)
    os.dup2(told, 2)
    place = folder / suffix
    place.mkdir()
    ended = 1
    try:
        main(suffix, first, n, place)
        ended = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(ended)


if __name__ == "__main__":
    given = int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    print(json.dumps({suffix: in_a_process(suffix, *given) for suffix in sys.argv[1].split(",")}))
