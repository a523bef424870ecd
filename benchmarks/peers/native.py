"""Peers that are programs of their own: ScaLAPACK by a small driver compiled here, HPL from Debian's `hpcc`, heat under MPI.

Debian packages: `libscalapack-openmpi-dev libopenmpi-dev hpcc libopenblas0-pthread`. All use the BLAS that `libblas.so.3` is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


def mpirun(ranks: int, *command: str, cwd: Path | None = None) -> str:
    """What a program under MPI prints, one BLAS thread a rank."""
    words = ["mpirun", "-n", str(ranks), "--bind-to", "core", *command]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | _ENVIRONMENT, cwd=cwd)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr + done.stdout)[-1500:]}")
    return done.stdout


def scalapack(folder: Path) -> str:
    """The compiled driver; made once in the data folder."""
    source, program = HERE / "scalapack.c", folder / "scalapack"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        libraries = ["-lscalapack-openmpi", "-llapack", "-lblas", "-lm"]
        subprocess.run(["mpicc", "-O2", str(source), "-o", str(program), *libraries], check=True)
    return str(program)


def heat_qr(n: int, split: int, mode: str, ranks: int) -> dict[str, Any]:
    """One QR of heat."""
    lines = mpirun(ranks, sys.executable, str(HERE / "heat_qr.py"), str(n), str(split), mode, "1").splitlines()
    record: dict[str, Any] = json.loads(next(line for line in lines if line.startswith("{")))
    return record


def hpl(folder: Path, n: int, block: int, grid: tuple[int, int]) -> dict[str, float]:
    """One run of the HPC Challenge with HPL at this size; its own residual check is in the answer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = (HERE / "hpccinf.txt").read_text().format(n=n, block=block, rows=grid[0], columns=grid[1])
    (folder / "hpccinf.txt").write_text(lines)
    mpirun(grid[0] * grid[1], "hpcc", cwd=folder)
    text = (folder / "hpccoutf.txt").read_text()
    facts = dict(re.findall(r"^(HPL_\w+)=(\S+)$", text, re.MULTILINE))
    shutil.rmtree(folder)
    scale = float(facts["HPL_AnormI"]) * float(facts["HPL_XnormI"])
    return {"seconds": float(facts["HPL_time"]), "backward_error": float(facts["HPL_RnormI"]) / scale}
