"""A journal knows what is finished, and nothing that is not."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from lulc.core.removal import is_temporary, temporary_name
from lulc.core.schema import InputError
from lulc.inference.journal import Journal, open_journal

KEY = {"weights": "abc", "options": {"scale": 0.5, "fill": ["spring.tif"]}}


def path_of(journal: Journal, part: int) -> Path:
    return journal.folder / f"{part:06d}.part"


def known(journal: Journal, parts: range) -> set[int]:
    """Finished parts, as the SHA-256 of their files says."""

    def checksum(part: int) -> str:
        path = path_of(journal, part)
        return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    return journal.finished(parts, checksum)


def finish(journal: Journal, part: int, content: bytes = b"blocks") -> None:
    path_of(journal, part).write_bytes(content)
    journal.record(part, sha256(content).hexdigest(), {1: 10 * (part + 1), 255: 1})


def begun(out: Path, parts: int = 4) -> Path:
    """The folder of work with some finished parts."""
    with open_journal(out) as journal:
        journal.begin(KEY, restart=False)
        for part in range(parts):
            finish(journal, part)
        return journal.folder


def finished(out: Path, key: dict[str, object] = KEY, restart: bool = False) -> set[int]:
    with open_journal(out) as journal:
        journal.begin(key, restart=restart)
        return known(journal, range(10))


def test_finished_parts_and_their_counts_are_known_to_the_next_run(tmp_path: Path) -> None:
    begun(tmp_path / "map.tif")
    with open_journal(tmp_path / "map.tif") as journal:
        journal.begin(KEY, restart=False)
        assert known(journal, range(10)) == {0, 1, 2, 3}
        assert journal.counts == {1: 100, 255: 4}


def test_another_key_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    begun(tmp_path / "map.tif")
    other = {"weights": "abc", "options": {"scale": 0.25, "fill": ["spring.tif"]}}
    with pytest.raises(InputError) as caught:
        finished(tmp_path / "map.tif", other)
    assert "options.scale (0.5, now 0.25)" in caught.value.problem
    assert "weights" not in caught.value.problem
    assert "--restart" in caught.value.hint
    assert finished(tmp_path / "map.tif") == {0, 1, 2, 3}


def test_restart_drops_what_is_there(tmp_path: Path) -> None:
    folder = begun(tmp_path / "map.tif")
    assert finished(tmp_path / "map.tif", {"weights": "new"}, restart=True) == set()
    assert not list(folder.glob("*.part"))


def test_two_runs_on_one_map_are_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path / "map.tif"):
        with pytest.raises(InputError, match="another run"), open_journal(tmp_path / "map.tif"):
            pass
        with open_journal(tmp_path / "other.tif"):
            pass


def test_a_run_that_did_nothing_leaves_nothing(tmp_path: Path) -> None:
    with open_journal(tmp_path / "map.tif"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_damaged_truncated_or_missing_part_is_made_again(tmp_path: Path) -> None:
    folder = begun(tmp_path / "map.tif")
    (folder / "000000.part").write_bytes(b"block!")
    (folder / "000001.part").write_bytes(b"")
    (folder / "000002.part").unlink()
    assert finished(tmp_path / "map.tif") == {3}


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_journal_never_gives_a_part_that_is_not_whole(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder = begun(tmp_path / "map.tif")
    path = folder / ["journal.jsonl", "key.json"][seed % 2]
    content = bytearray(path.read_bytes())
    where = int(rng.integers(len(content)))
    if seed % 3 == 0:
        del content[where:]
    elif seed % 3 == 1:
        content[where] ^= 1 << int(rng.integers(8))
    else:
        content[where : where + 20] = b""
    path.write_bytes(content)
    try:
        left = finished(tmp_path / "map.tif")
    except InputError as error:
        assert "--restart" in error.hint
        return
    with open_journal(tmp_path / "map.tif") as journal:
        journal.begin(KEY, restart=False)
        known(journal, range(10))
        assert journal.counts == ({1: sum(10 * (p + 1) for p in left), 255: len(left)} if left else {})
    assert all((folder / f"{part:06d}.part").read_bytes() == b"blocks" for part in left)
    with open_journal(tmp_path / "map.tif") as journal:
        journal.begin(KEY, restart=False)
        finish(journal, 9)
    assert finished(tmp_path / "map.tif") == left | {9}


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    folder = begun(tmp_path / "map.tif")
    left = temporary_name(folder / "000004.part")
    left.write_bytes(b"half")
    finished(tmp_path / "map.tif")
    assert not left.exists()


def test_the_key_is_json_and_carries_its_format(tmp_path: Path) -> None:
    folder = begun(tmp_path / "map.tif")
    assert json.loads((folder / "key.json").read_text())["format_version"] == 1


def test_a_journal_killed_while_it_is_removed_is_gone_and_the_next_run_clears_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "map.tif"
    with monkeypatch.context() as patch:
        patch.setattr("lulc.core.removal.remove_temporary", lambda path: None)
        with open_journal(out) as journal:
            journal.begin({"weights": "a"}, restart=False)
            journal.remove()
    (left,) = tmp_path.iterdir()
    assert is_temporary(left) and (left / "key.json").is_file()
    with open_journal(out) as journal:
        journal.begin({"weights": "a"}, restart=False)
        assert not left.exists()
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_a_journal_goes_where_files_that_are_open_keep_a_name_as_on_nfs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def keep_the_part(path: str, *, dir_fd: int | None = None) -> None:
        if path == "000000.part":
            os.rename(path, ".nfs0001", src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        elif not path.startswith(".nfs"):
            unlink(path, dir_fd=dir_fd)

    begun(tmp_path / "map.tif")
    with open_journal(tmp_path / "map.tif") as journal:
        journal.begin(KEY, restart=False)
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", keep_the_part)
            journal.remove()
        assert not journal.folder.exists()
    with open_journal(tmp_path / "map.tif"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_key_that_can_not_be_read_drops_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path / "map.tif")
    (folder / "key.json").unlink()
    (folder / "key.json").mkdir()
    with pytest.raises(InputError, match=r"holds 'key\.json'"), open_journal(tmp_path / "map.tif", "1-of-2"):
        pass
    assert len(list(folder.glob("*.part"))) == 4


def test_shares_of_one_map_are_made_at_the_same_time_and_read_together(tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    with open_journal(out, "1-of-2") as first, open_journal(out, "2-of-2") as second:
        first.begin(KEY, restart=False)
        finish(first, 0)
        second.begin(KEY, restart=False)
        finish(second, 1)
        finish(first, 2)
        assert known(second, range(1, 4, 2)) == {1}
        with pytest.raises(InputError, match="another run"), open_journal(out):
            pass
        with pytest.raises(InputError, match="share 2-of-2"), open_journal(out, "2-of-2"):
            pass
    with open_journal(out) as journal:
        journal.begin(KEY, restart=False)
        assert known(journal, range(4)) == {0, 1, 2}
        assert journal.counts == {1: 60, 255: 3}
        with pytest.raises(InputError, match="another run"), open_journal(out, "1-of-2"):
            pass
        journal.remove()
    assert not list(tmp_path.iterdir())


def test_a_share_leaves_what_others_are_writing_and_has_their_key(tmp_path: Path) -> None:
    out = tmp_path / "map.tif"
    with open_journal(out, "1-of-2") as first:
        first.begin(KEY, restart=False)
        written = temporary_name(first.folder / "000000.part")
        written.write_bytes(b"half")
        with open_journal(out, "2-of-2") as second:
            second.begin(KEY, restart=False)
            assert written.exists()
        with open_journal(out, "2-of-2") as second, pytest.raises(InputError) as caught:
            second.begin({**KEY, "weights": "new"}, restart=False)
        assert "weights" in caught.value.problem and "remove" in caught.value.hint
