import subprocess
import sys

import pytest

from rankstill.errors import ConfigError, DamagedError
from rankstill.storage import END_BYTES, check_root, check_sizes, make_root, work_folder, write_json, write_sizes


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"storage\.root"):
        make_root(tmp_path / "file")


@pytest.mark.parametrize("root", ["file", "file/below", "\0", "/proc/none"])
def test_a_root_that_can_not_be_made_is_refused_beforehand(tmp_path, root):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"storage\.root=.* can't be written"):
        check_root(tmp_path / root)


def test_looking_at_a_root_leaves_nothing(tmp_path):
    check_root(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_json_is_written_whole_and_leaves_nothing_beside(tmp_path):
    write_json(tmp_path / "a.json", {"name": "größe"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "name": "größe"\n}'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"bad": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_work_folder_goes_with_its_work_unless_it_is_renamed(tmp_path):
    with work_folder(tmp_path, "kept") as folder:
        (folder / "x").write_text("x")
        folder.rename(tmp_path / "whole")
    assert (tmp_path / "whole" / "x").exists()
    with pytest.raises(RuntimeError), work_folder(tmp_path, "broken"):
        raise RuntimeError
    assert list((tmp_path / "partial").iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(tmp_path):
    script = (
        "import os, pathlib\nfrom rankstill.storage import work_folder\n"
        f"with work_folder(pathlib.Path({str(tmp_path)!r}), 'killed') as folder: os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    (left,) = (tmp_path / "partial").iterdir()
    with work_folder(tmp_path, "first") as first, work_folder(tmp_path, "second") as second:
        assert not left.exists()
        assert first.is_dir()
        assert second.is_dir()


def test_a_folder_whose_files_were_cut_or_removed_is_damaged_and_one_with_more_is_not(tmp_path):
    folder, sizes = tmp_path / "folder", tmp_path / "sizes" / "folder.json"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_text("whole")
    check_sizes(folder, sizes)  # of which nothing is known
    write_sizes(folder, sizes)
    assert [path.name for path in folder.iterdir()] == ["model"]
    (folder / "added later").write_text("x")
    check_sizes(folder, sizes)
    (folder / "model" / "weights").write_text("who")
    with pytest.raises(
        DamagedError, match=rf"'{folder}/model/weights' holds 3 of 5 bytes; remove the folder '{folder}"
    ):
        check_sizes(folder, sizes)
    (folder / "model" / "weights").unlink()
    with pytest.raises(DamagedError, match="holds 0 of 5 bytes"):
        check_sizes(folder, sizes)
    (folder / "model" / "weights").write_text("whole")
    sizes.write_text('{"model/weights": 5}')  # as they were before there were checksums
    check_sizes(folder, sizes)
    for text in ("{", "[]", '{"model/weights": "5"}', '{"model/weights": [5]}'):
        sizes.write_text(text)
        with pytest.raises(DamagedError, match=r"folder.json' doesn't tell the sizes of files; remove the folder"):
            check_sizes(folder, sizes)


@pytest.mark.parametrize("size", [5, END_BYTES, END_BYTES + 1, 3 * END_BYTES])
def test_a_file_that_ends_or_begins_otherwise_is_damaged(tmp_path, size):
    folder, sizes, run = tmp_path / "folder", tmp_path / "sizes.json", tmp_path / "run"
    folder.mkdir()
    path = folder / "weights"
    path.write_bytes(b"w" * size)
    write_sizes(folder, sizes)
    check_sizes(folder, sizes)
    for place in (0, size - 1):
        path.write_bytes(b"w" * place + b"\0" + b"w" * (size - place - 1))
        with pytest.raises(DamagedError, match=rf"weights' isn't what was written; remove the folder '{run}'"):
            check_sizes(folder, sizes, remove=run)
