"""What goes to other processes: large arrays as files, all else in one piece, the same bits at the other end."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Array, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dlscale.engine.clusters import Cluster, ClusterFacts, open_cluster
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes, parcels
from dlscale.engine.passes.parcels import Parcel, pack
from dlscale.engine.run import Run
from dlscale.errors import CorruptionError, DlscaleError
from dlscale.linalg.folds.products import NormalProduct
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix


def there_and_back(value: Any, place: Path | None) -> Any:
    parcel: Parcel = pickle.loads(pickle.dumps(pack(value, place)))
    return parcel.open()


@settings(max_examples=50, deadline=None)
@given(
    array=hnp.arrays(st.sampled_from(["f4", "f8", "c8", "c16", "i4", "u1", "?"]), hnp.array_shapes(max_dims=3, max_side=9)),
    by_columns=st.booleans(),
    every_other=st.booleans(),
)
def test_arrays_arrive_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, array: Array, by_columns: bool, every_other: bool
) -> None:
    array = np.asfortranarray(array) if by_columns else array
    array = array[::2] if every_other else array
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parcels, "LARGE_BYTES", 1)
        got = there_and_back({"array": array, "name": "A"}, tmp_path_factory.mktemp("parcels") / "step")
    assert got["name"] == "A"
    assert got["array"].dtype == array.dtype
    assert got["array"].tobytes() == array.tobytes()
    if array.flags.f_contiguous or array.flags.c_contiguous:
        assert got["array"].flags.c_contiguous == array.flags.c_contiguous
        assert got["array"].flags.f_contiguous == array.flags.f_contiguous


def test_only_large_arrays_become_files_and_each_of_them_one(tmp_path: Path) -> None:
    large, small = np.arange(parcels.LARGE_BYTES // 8, dtype="f8"), np.arange(3)
    parcel = pack([large, small, {"again": large}], tmp_path / "step")
    assert [path.name for path in tmp_path.iterdir()] == ["step-0"]
    assert len(parcel.packed) < 1000
    first, second, third = parcel.open()
    np.testing.assert_array_equal(first, large)
    np.testing.assert_array_equal(second, small)
    np.testing.assert_array_equal(third["again"], large)
    assert first.ctypes.data % 4096 == 0


def test_small_arrays_that_are_large_together_do_not_travel(tmp_path: Path) -> None:
    """What a QR by panels shares: some megabytes for each panel."""
    parts = [np.full(2**17, i, "f8") for i in range(8)]
    parcel = pack([{"T": part} for part in parts], tmp_path / "step")
    assert len(parcel.packed) < 2000
    for found, part in zip(parcel.open(), parts, strict=True):
        np.testing.assert_array_equal(found["T"], part)


def test_without_a_place_all_travels_in_the_parcel() -> None:
    large = np.arange(parcels.LARGE_BYTES // 8, dtype="f8")
    np.testing.assert_array_equal(there_and_back(large, None), large)


def test_a_file_that_is_gone_or_damaged_is_told(tmp_path: Path) -> None:
    parcel = pack(np.ones(parcels.LARGE_BYTES), tmp_path / "step")
    path = tmp_path / "step-0"
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="step-0"):
        parcel.open()
    path.unlink()
    with pytest.raises(DlscaleError, match="file system that all of them share"):
        parcel.open()


def test_a_pass_with_a_large_operand_and_a_large_result_gives_the_bits_of_one_process(two_workers: Cluster, tmp_path: Path) -> None:
    """On two workers, whose operands and result are files while the pass runs."""
    n, width = 40_000, 16
    A, W = gaussian(64, n), gaussian(n, width, seed=1)
    assert W.nbytes > parcels.LARGE_BYTES
    found = []
    for cluster in (open_cluster(ClusterFacts("threads", 1, 2, 2**31)), two_workers):
        passes = Passes(Run(cluster, checkpoint=Checkpoint(tmp_path / cluster.facts.kind)))
        found.append(passes.sweep("product", open_matrix(A), NormalProduct(W), RowGrid(64, 8, 8))["ZH"])
    assert found[0].tobytes() == found[1].tobytes()
    assert not (tmp_path / "local" / "parcels").exists()
