"""Where a result is written belongs to it, or is left alone; an overwritten one is whole at every moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from dlscale.errors import SpecError
from dlscale.storage import results
from dlscale.storage.files import atomic
from dlscale.storage.results import ResultGroup, check_place, settle

NOBODY = 65534


def publish(path: Path, value: float, *, owner: str = "one", overwrite: bool = False) -> Path:
    group = ResultGroup(path, owner=owner, overwrite=overwrite)
    group.put("s", np.full(3, value))
    return group.publish({"kind": "svd", "job": owner})


def value_of(path: Path) -> float:
    return float(zarr.open(path, mode="r")["s"][0])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What somebody would miss."""
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    (tmp_path / "home" / "thesis" / "chapter.tex").write_text("x")
    return tmp_path / "home"


@pytest.mark.parametrize("name", [".r.zarr.partial", ".replaced.r.zarr", ".r.zarr.lock"])
@pytest.mark.parametrize("what", ["link", "folder", "zarr of another", "file"])
def test_what_stands_under_a_hidden_name_is_left_alone(name: str, what: str, home: Path, tmp_path: Path) -> None:
    place = tmp_path / name
    match what:
        case "link":
            place.symlink_to(home)
        case "folder":
            shutil.copytree(home, place)
        case "zarr of another":
            zarr.create_group(place).attrs["owner"] = "bob"
        case "file":
            place.write_text("x")
    if what == "file" and name.endswith(".lock"):
        publish(tmp_path / "r.zarr", 1.0)  # a lock that is free
        return
    if what == "zarr of another" and name.startswith(".replaced"):
        return  # an array or a group that was overwritten looks like this
    with pytest.raises(SpecError, match=name.replace(".", r"\.")):
        publish(tmp_path / "r.zarr", 1.0)
    assert (home / "thesis" / "chapter.tex").exists()
    assert os.path.lexists(place)
    assert what != "folder" or (place / "thesis" / "chapter.tex").exists()


@pytest.mark.parametrize(("damage", "said"), [(Path.unlink, "without"), (lambda mark: mark.write_text("{"), "damaged")])
def test_an_unfinished_result_whose_mark_is_lost_is_named(damage: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    group = ResultGroup(tmp_path / "r.zarr", owner="one")
    group.put("s", np.ones(3))
    group.close()
    mark = tmp_path / ".r.zarr.partial" / "zarr.json"
    damage(mark)
    with pytest.raises(SpecError, match=said) as caught:
        publish(tmp_path / "r.zarr", 1.0)
    assert str(mark) in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_not_taken_over(tmp_path: Path) -> None:
    """Though it carries our mark: what is written into it could go where that user's links lead."""
    first = ResultGroup(tmp_path / "r.zarr", owner="one")
    first.close()
    os.chown(tmp_path / ".r.zarr.partial", NOBODY, NOBODY)
    with pytest.raises(SpecError, match="a folder of another user"):
        ResultGroup(tmp_path / "r.zarr", owner="one")
    assert (tmp_path / ".r.zarr.partial").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_lead_a_job_astray(home: Path) -> None:
    """In a folder that all may write: a user puts a link, and another one's job refuses it."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        shared = Path(folder)
        shared.chmod(0o777)
        link = f"import os; os.setuid({NOBODY}); os.symlink({str(home)!r}, {str(shared / '.r.zarr.partial')!r})"
        subprocess.run([sys.executable, "-c", link], check=True)
        with pytest.raises(SpecError, match="a link to"):
            publish(shared / "r.zarr", 1.0)
    assert (home / "thesis" / "chapter.tex").exists()


@pytest.mark.parametrize("n_bytes", [200, 247, 255])
def test_long_names_are_published(n_bytes: int, tmp_path: Path) -> None:
    name = "ä" * ((n_bytes - 5) // 2) + "x" * (n_bytes % 2 == 0) + ".zarr"
    assert len(os.fsencode(name)) <= 255
    publish(tmp_path / name, 1.0)
    publish(tmp_path / name, 2.0, overwrite=True)
    assert value_of(tmp_path / name) == 2.0
    assert os.listdir(tmp_path) == [name]


def test_names_that_are_too_long_are_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a name of 256 bytes"):
        ResultGroup(tmp_path / ("x" * 256))
    assert os.listdir(tmp_path) == []


def test_a_link_is_not_overwritten(tmp_path: Path) -> None:
    publish(tmp_path / "r.zarr", 1.0)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "r.zarr")
    with pytest.raises(SpecError, match="links are not overwritten"):
        ResultGroup(tmp_path / "link.zarr", overwrite=True)
    assert value_of(tmp_path / "r.zarr") == 1.0


@pytest.mark.parametrize("swaps", [True, False], ids=["exchange", "two renames"])
def test_an_overwrite_that_is_killed_at_any_rename(swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real kill before or after each of the calls; then the result is there, or the next start brings it, and nothing is left."""
    if not swaps:
        monkeypatch.setattr(results, "exchange", lambda one, other: False)
    n, ended = 0, False
    while not ended:
        n += 1
        path = tmp_path / str(n) / "r.zarr"
        publish(path, 1.0)
        ended = _killed_at(n, lambda path=path: publish(path, 2.0, owner="two", overwrite=True))
        assert path.exists() or not swaps
        settle(path, "two")
        assert path.exists()
        if value_of(path) == 1.0:
            publish(path, 2.0, owner="two", overwrite=True)
        assert value_of(path) == 2.0
        check_place(path)
        assert os.listdir(path.parent) == ["r.zarr"], n
    assert n > 4


def _killed_at(n: int, action: Callable[[], object]) -> bool:
    """Run an action in a process of its own that is killed at its n-th change of names; True if there were fewer."""
    child = os.fork()
    if child == 0:
        left = n

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def counting(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)

            return counting

        for name in ("rename", "replace", "rmdir", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        results.exchange = counted(results.exchange)  # type: ignore[assignment]
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return not os.WIFSIGNALED(status)


def test_two_names_change_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert atomic.exchange(tmp_path / "a", tmp_path / "b")
    assert (os.listdir(tmp_path / "a"), os.listdir(tmp_path / "b")) == (["b"], ["a"])
    with pytest.raises(FileNotFoundError):
        atomic.exchange(tmp_path / "a", tmp_path / "absent")
