"""One run at a time writes an output, and the next one clears up after a dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lulc.cli.export_map import main
from lulc.core.claims import check_distinct, claim_outputs
from lulc.core.removal import temporary_name
from lulc.core.schema import InputError
from lulc.core.storage import write_atomically

WriteMap = Callable[..., Path]

DIE = """
import os, signal, sys
from pathlib import Path
from lulc.core import claims, storage
out = Path(sys.argv[1])
with claims.claim_outputs([out], sys.argv[2]):
    if sys.argv[3] == "written":
        with storage.write_atomically(out) as temporary:
            temporary.write_text("half a command")
    storage.temporary_name(out).write_text("left")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die(out: Path, command: str, how: str) -> None:
    found = subprocess.run([sys.executable, "-c", DIE, str(out), command, how], check=False)
    assert found.returncode == -signal.SIGKILL


def test_a_second_run_with_the_same_output_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    out = tmp_path / "map.nc"
    with (
        claim_outputs([out]),
        pytest.raises(InputError, match=rf"another run is writing it \(process {os.getpid()}\)"),
        claim_outputs([tmp_path / "other.nc", out]),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes_and_what_it_wrote_may_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "map.nc"
    die(out, "export", "written")
    assert len(list(tmp_path.iterdir())) == 3
    with claim_outputs([out], "export") as claims:
        assert claims.may_replace(out)
    assert list(tmp_path.iterdir()) == [out]


def test_a_second_kill_does_not_lose_what_the_first_run_wrote(tmp_path: Path) -> None:
    out = tmp_path / "map.nc"
    die(out, "export", "written")
    die(out, "export", "nothing")
    with claim_outputs([out], "export") as claims:
        assert claims.may_replace(out)


def test_what_another_command_wrote_may_not_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "map.nc"
    die(out, "export a.tif", "written")
    with claim_outputs([out], "export b.tif") as claims:
        assert not claims.may_replace(out)


def test_a_file_that_a_user_put_there_after_the_kill_may_not_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "map.nc"
    die(out, "export", "written")
    out.unlink()
    out.write_text("half a command")
    with claim_outputs([out], "export") as claims:
        assert not claims.may_replace(out)
    die(tmp_path / "b.nc", "export", "nothing")
    (tmp_path / "b.nc").write_text("mine")
    with claim_outputs([tmp_path / "b.nc"], "export") as claims:
        assert not claims.may_replace(tmp_path / "b.nc")


def test_outputs_of_others_are_untouched(tmp_path: Path) -> None:
    other = temporary_name(tmp_path / "other.nc")
    other.touch()
    with claim_outputs([tmp_path / "map.nc"]), write_atomically(tmp_path / "map.nc") as temporary:
        temporary.write_text("whole")
    assert other.exists()


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names it twice"):
        check_distinct([tmp_path / "a.nc", tmp_path / "x" / ".." / "a.nc"])


@pytest.mark.parametrize("kind", ["nc", "zarr", "qml"])
def test_an_export_that_another_run_writes_is_refused(
    tmp_path: Path, write_map: WriteMap, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_map(tmp_path / "map.tif"), tmp_path / f"out.{kind}"
    with claim_outputs([out]):
        assert main([str(source), "--out", str(out)]) == 1
    assert "another run is writing it" in capsys.readouterr().err
    assert main([str(source), "--out", str(out)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"map.tif", out.name}


DIE_BETWEEN = """
import os, signal, sys
from lulc.cli.export_map import main
from lulc.export import styles
styles.sld = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_a_killed_export_is_repeated_by_the_same_command(
    tmp_path: Path, write_map: WriteMap, kind: str
) -> None:
    """The process dies after the first of two outputs."""
    source, outs = write_map(tmp_path / "map.tif"), [tmp_path / f"out.{kind}", tmp_path / "out.sld"]
    arguments = [str(source), "--out", *map(str, outs)]
    found = subprocess.run([sys.executable, "-c", DIE_BETWEEN, *arguments], check=False, timeout=60)
    assert found.returncode == -signal.SIGKILL
    assert outs[0].exists() and not outs[1].exists()
    assert main(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"map.tif", *(out.name for out in outs)}


def test_a_run_that_fails_takes_back_what_it_wrote(tmp_path: Path) -> None:
    old, new = tmp_path / "old.nc", tmp_path / "new.nc"
    old.write_text("old")
    with pytest.raises(OSError, match="full"), claim_outputs([old, new]):
        for out in (old, new):
            with write_atomically(out) as temporary:
                temporary.write_text("new")
        raise OSError("full")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.nc": "new"}
