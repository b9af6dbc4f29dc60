"""Nothing of a user's is ever deleted: a file goes only where the toolkit can prove that it made it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lulc.cli.evaluate_classifications import main as evaluate
from lulc.cli.export_map import main as export_map
from lulc.cli.make_classifications import main as make_classifications
from lulc.cli.preprocess import main as preprocess
from lulc.cli.train_model import main as train_model
from lulc.core.removal import (
    OwnFolder,
    is_temporary,
    remove_leftovers,
    remove_temporary,
    temporary_name,
)
from lulc.core.schema import InputError
from lulc.core.storage import write_atomically
from lulc.demo.demonstration import main as demonstration
from lulc.engines.registry import Engine, EngineRequest
from lulc.inference import job

WORK = "years of work"
WriteBands = Callable[..., Path]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are made by three lines of NumPy."""

    def build(name: str, request: EngineRequest) -> Engine:
        def network(x: np.ndarray) -> np.ndarray:
            powers = np.exp(np.nan_to_num(x[..., :3]) / 1000)
            return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)

        return Engine("keras", request.shape, {"precision": "float32"}, network)

    monkeypatch.setattr(job, "build_engine", build)


@pytest.fixture
def mapping(tmp_path: Path, tiny_model: Path, write_bands: WriteBands, fast: None) -> list[str]:
    """Arguments of make_classifications.py; the map is ``out/map.tif``."""
    mosaic = write_bands(tmp_path / "mosaic.tif", 260, 300)
    (tmp_path / "out").mkdir()
    options = ["--scale", "0.0001", "--offset", "0", "--part", "256", "--window", "128", "-q"]
    return [str(tiny_model), str(mosaic), str(tmp_path / "out" / "map.tif"), *options]


@pytest.fixture
def cutting(tmp_path: Path, write_bands: WriteBands) -> list[str]:
    """Arguments of preprocess.py; the stacks are in ``out``."""
    bands = write_bands(tmp_path / "bands.tif", 160, 224)
    labels = write_bands(tmp_path / "labels.tif", 160, 224, labels=True)
    inputs = ["--bands", str(bands), "--labels", str(labels), "--out", str(tmp_path / "out")]
    return [*inputs, "--scheme", "kaakonkulma-13", "--size", "64", "--gap", "4", "-q"]


def contents(folder: Path) -> dict[str, Any]:
    """Everything below a folder; links by where they lead."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
    return found


def thesis(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text(WORK)


def like_ours(folder: Path) -> None:
    """A user's folder whose files have the names of the toolkit's."""
    folder.mkdir()
    for name in ("key.json", "journal.jsonl", "000000.part", "lock", "map.tif"):
        (folder / name).write_text(WORK)


def empty(folder: Path) -> None:
    folder.mkdir()


def link(folder: Path) -> None:
    thesis(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def dangling(folder: Path) -> None:
    folder.symlink_to(folder.parent / "gone")


def file(folder: Path) -> None:
    folder.write_text(WORK)


@pytest.mark.parametrize("make", [thesis, like_ours, empty, link, dangling, file])
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--restart"]], ids=" ".join)
def test_a_folder_of_the_users_with_the_name_of_the_parts_is_refused_and_untouched(
    tmp_path: Path, mapping: list[str], capsys: Any, make: Callable[[Path], None], more: list[str]
) -> None:
    make(tmp_path / "out" / "map.tif.parts")
    before = contents(tmp_path)
    assert make_classifications([*mapping, *more]) == 1
    said = capsys.readouterr().err
    assert "map.tif.parts'" in said and "Move it away" in said
    assert "thesis.txt" in said or make is not thesis
    assert contents(tmp_path) == before


def test_a_file_that_a_user_puts_among_the_parts_is_named_and_stays(
    tmp_path: Path, mapping: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    parts = tmp_path / "out" / "map.tif.parts"
    with monkeypatch.context() as patch:
        patch.setattr("lulc.inference.classify._finish", stop)
        assert make_classifications(mapping) == 1
    (parts / "notes").mkdir()
    (parts / "notes" / "thesis.txt").write_text(WORK)
    (parts / "link.part").symlink_to(tmp_path / "mosaic.tif")
    before = contents(tmp_path)
    for more in ([], ["--restart"]):
        capsys.readouterr()
        assert make_classifications([*mapping, *more]) == 1
        assert "holds 'link.part', which this toolkit did not write" in capsys.readouterr().err
        assert contents(tmp_path) == before
    (parts / "link.part").unlink()
    (parts / "notes" / "thesis.txt").rename(tmp_path / "thesis.txt")
    (parts / "notes").rmdir()
    assert make_classifications(mapping) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["map.qml", "map.tif"]


def test_a_file_that_a_user_puts_among_the_parts_while_they_are_made_stays(
    tmp_path: Path, mapping: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lulc.inference import classify

    parts, finish = tmp_path / "out" / "map.tif.parts", classify._finish

    def put(*arguments: Any) -> Any:
        (parts / "thesis.txt").write_text(WORK)
        return finish(*arguments)

    monkeypatch.setattr(classify, "_finish", put)
    assert make_classifications(mapping) == 0
    assert contents(tmp_path / "out").keys() == {
        "map.qml", "map.tif", "map.tif.parts", "map.tif.parts/thesis.txt",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_hidden_names_that_only_look_like_ours_are_untouched(
    tmp_path: Path, mapping: list[str], kind: str
) -> None:
    out = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    for name in (
        ".map.tif.parts.partial", ".map.tif.partial", ".map.tif.abcd1234.partial", ".notes.partial",
        ".map.tif.0123456789abcdef0123.partial", ".map.tif.levels.partial",
    ):  # fmt: skip
        if kind == "file":
            (out / name).write_text(WORK)
        elif kind == "folder":
            thesis(out / name)
        else:
            (out / name).symlink_to(tmp_path / "elsewhere")
    before = contents(out)
    assert make_classifications(mapping) == 0
    assert make_classifications([*mapping, "--overwrite"]) == 0
    after = contents(out)
    assert after.pop("map.tif") and after.pop("map.qml")
    assert after == before


@pytest.mark.parametrize("where", ["", "tiles/", "tiles/000/"])
def test_a_file_in_a_folder_of_tiles_is_not_lost_when_they_are_replaced(
    tmp_path: Path, mapping: list[str], capsys: Any, where: str
) -> None:
    out = tmp_path / "out" / "map"
    arguments = [*mapping, "--tiles", "--date", "2018-07-01"]
    arguments[2] = str(out)
    assert make_classifications(arguments) == 0
    (out / "tiles" / "000" / "000-000.tif.aux.xml").write_text("<PAMDataset/>")
    assert make_classifications([*arguments, "--overwrite"]) == 0
    (out / where / "thesis.txt").write_text(WORK)
    before = contents(out)
    assert make_classifications([*arguments, "--overwrite"]) == 1
    assert f"holds '{where}thesis.txt' beside the tiles" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize("name", ["thesis.txt", "land_cover/thesis.txt", "mine/.zarray", "land_cover/0.tif"])
def test_a_zarr_folder_that_holds_more_than_an_export_is_not_replaced(
    tmp_path: Path, write_map: Callable[..., Path], capsys: Any, name: str
) -> None:
    land_cover, out = write_map(tmp_path / "map.tif"), tmp_path / "map.zarr"
    arguments = [str(land_cover), "--out", str(out), "--overwrite"]
    assert export_map(arguments) == 0
    assert export_map(arguments) == 0
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text(WORK)
    before = contents(tmp_path)
    assert export_map(arguments) == 1
    stranger = name if name.startswith("land_cover") else name.partition("/")[0]
    assert f"holds '{stranger}'" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_zarr_folder_of_another_program_is_not_replaced(
    tmp_path: Path, write_map: Callable[..., Path], capsys: Any
) -> None:
    import zarr

    land_cover, out = write_map(tmp_path / "map.tif"), tmp_path / "map.zarr"
    zarr.create_array(out, name="land_cover", data=np.arange(9), zarr_format=2)
    before = contents(tmp_path)
    assert export_map([str(land_cover), "--out", str(out), "--overwrite"]) == 1
    assert "no Zarr folder of this toolkit" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["run.json", "scenes.json", "progress.jsonl", "train_image_0.npy"])
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--restart"]], ids=" ".join)
def test_files_that_lie_where_stacks_are_to_go_are_refused_and_untouched(
    tmp_path: Path, cutting: list[str], capsys: Any, name: str, more: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(WORK)
    (tmp_path / "out" / "photo.jpg").write_text(WORK)
    before = contents(tmp_path)
    assert preprocess([*cutting, *more]) == 1
    assert f"holds '{name}', which this toolkit did not write there" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_stacks_that_were_copied_are_proven_by_their_manifest(
    tmp_path: Path, cutting: list[str], capsys: Any
) -> None:
    assert preprocess(cutting) == 0
    (tmp_path / "out" / ".lulc-stacks").unlink()
    (tmp_path / "out" / "photo.jpg").write_text(WORK)
    smaller = [*cutting, "--stacks", "3", "--overwrite"]
    assert preprocess(smaller) == 0
    assert (tmp_path / "out" / "photo.jpg").read_text() == WORK
    (tmp_path / "out" / ".lulc-stacks").unlink()
    (tmp_path / "out" / "train_image_77.npy").write_text(WORK)
    before = contents(tmp_path / "out")
    assert preprocess(smaller) == 1
    assert "which this toolkit did not write there" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--restart"]], ids=" ".join)
@pytest.mark.parametrize(
    "name", ["03-0.50.keras", "03-0.50.json", "history.csv", "checkpoints/checkpoint-00000001.bin"]
)
@pytest.mark.integration
def test_files_that_lie_where_a_run_is_to_go_are_refused_and_untouched(
    tmp_path: Path, write_stacks: Callable[..., Path], capsys: Any, name: str, more: list[str]
) -> None:
    stacks, out = write_stacks(tmp_path / "stacks", side=64), tmp_path / "run"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text(WORK)
    before = contents(out)
    assert train_model([str(stacks), "--out", str(out), "-q", *more]) == 1
    assert f"holds '{name}', which this toolkit did not write there" in capsys.readouterr().err
    assert contents(out) == before


def test_what_else_lies_in_a_run_folder_stays(tmp_path: Path) -> None:
    from lulc.training.run_folder import clear_run

    clear_run(tmp_path / "run")
    thesis(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "events.out.tfevents.1").write_text(WORK)
    for folder in ("checkpoints", "tensorboard"):
        thesis(tmp_path / "run" / folder)
    (tmp_path / "run" / "tensorboard" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints" / "checkpoint-1.bin").write_text(WORK)
    before = contents(tmp_path)
    (tmp_path / "run" / "checkpoints" / "checkpoint-00000001.bin").write_text("ours")
    (tmp_path / "run" / "run.json").write_text("ours")
    clear_run(tmp_path / "run")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["report.html", "areas.csv", "report.json", "label-errors.csv"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=" ".join)
def test_files_that_lie_where_a_report_is_to_go_are_refused_and_untouched(
    tmp_path: Path, write_map: Callable[..., Path], capsys: Any, name: str, more: list[str]
) -> None:
    land_cover, out = write_map(tmp_path / "map.tif"), tmp_path / "report"
    out.mkdir()
    (out / name).write_text("{}" if name == "report.json" else WORK)
    before = contents(out)
    assert evaluate([str(land_cover), "--design-sample", "20", "--out", str(out), "-q", *more]) == 1
    assert f"holds '{name}', which this toolkit did not write there" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.parametrize("name", ["summer.tif", "labels.tif", "map.tif"])
def test_the_demonstration_replaces_no_file_of_another_origin(tmp_path: Path, capsys: Any, name: str) -> None:
    (tmp_path / name).write_text(WORK)
    assert demonstration(["--out", str(tmp_path)]) == 1
    assert f"holds '{name}', which this toolkit did not write there" in capsys.readouterr().err
    assert contents(tmp_path) == {name: WORK.encode()}


def test_a_temporary_name_proves_itself_and_no_other_does(tmp_path: Path) -> None:
    for target in ("map.tif", "x" * 250, "schön", "a.b.partial"):
        name = temporary_name(tmp_path / target)
        assert is_temporary(name) and len(os.fsencode(name.name)) < 256
        flipped = name.with_name(name.name.replace(name.name[-12], "0" if name.name[-12] != "0" else "1"))
        assert not is_temporary(flipped)
        with pytest.raises(ValueError, match="not a temporary name"):
            remove_temporary(flipped)
    assert not is_temporary(tmp_path / ".map.tif.partial")


def test_leftovers_go_and_nothing_behind_a_link_does(tmp_path: Path) -> None:
    thesis(tmp_path / "elsewhere")
    (tmp_path / "work").mkdir()
    left = [temporary_name(tmp_path / "work" / name) for name in ("a.tif", "b.tif", "a.tif")]
    left[0].write_text("half")
    left[1].mkdir()
    (left[1] / "link").symlink_to(tmp_path / "elsewhere")
    left[2].symlink_to(tmp_path / "elsewhere")
    (tmp_path / "work" / "below").symlink_to(tmp_path / "elsewhere")
    hidden = temporary_name(tmp_path / "elsewhere" / "a.tif")
    hidden.write_text("half")
    remove_leftovers(tmp_path / "work", of="a.tif")
    assert not left[0].exists() and left[1].is_dir() and left[2].is_symlink()
    remove_leftovers(tmp_path / "work", below=True)
    assert not left[1].exists() and left[2].is_symlink() and hidden.exists()
    assert (tmp_path / "elsewhere" / "thesis.txt").read_text() == WORK


def test_a_file_that_fails_to_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), write_atomically(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"out.txt": b"old"}


def test_an_own_folder_deletes_its_own_names_alone(tmp_path: Path) -> None:
    own = OwnFolder(tmp_path / "work", "test", r"\d+\.bin|deep/(\d+\.bin)?", "work")
    own.take()
    for name in ("1.bin", "notes.txt", "deep/2.bin", "deep/thesis.txt", "other/3.bin"):
        (own.path / name).parent.mkdir(exist_ok=True)
        (own.path / name).write_text(WORK)
    (own.path / "4.bin").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="not this toolkit's own"):
        own.remove("notes.txt")
    own.clear()
    assert contents(own.path).keys() == {
        "4.bin", ".lulc-test", "notes.txt", "deep", "deep/thesis.txt", "other", "other/3.bin"
    }  # fmt: skip
    own.release()
    (own.path / "4.bin").unlink()
    (own.path / "5.bin").write_text(WORK)
    with pytest.raises(InputError, match=r"holds '5\.bin'"):
        own.take()
    with pytest.raises(ValueError, match="not this toolkit's own"):
        own.remove("5.bin")
