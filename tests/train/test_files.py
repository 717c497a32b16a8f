"""Files are whole or not there, under one name or two."""

import os
import stat
from pathlib import Path

import pytest

from timm_mix.train.errors import UsageError
from timm_mix.train.files import check_folder, link_whole, write_json, write_whole


class TestCheckFolder:
    def test_a_folder_that_can_be_made_is_not_made(self, tmp_path):
        check_folder(tmp_path / "new" / "one")
        check_folder(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_below_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match=r"the folder .*file/x cannot be made, .*file is a file: .* --csv"):
            check_folder(tmp_path / "file" / "x", "--csv")

    def test_a_folder_where_nothing_can_be_written_is_refused(self):
        with pytest.raises(UsageError, match=r"cannot write to /proc/x \(.+\): give another --output"):
            check_folder(Path("/proc/x"))


class TestWriteWhole:
    def test_the_file_has_what_was_written_and_may_be_read_by_all(self, tmp_path):
        path = tmp_path / "new" / "folder" / "file"
        write_whole(path, lambda stream: stream.write(b"seven"))
        assert path.read_bytes() == b"seven"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    @pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt("stopped")])
    def test_the_old_file_stays_when_the_writer_raises_midway(self, tmp_path, error):
        path = tmp_path / "file"
        path.write_bytes(b"old")

        def write(stream):
            stream.write(b"half of the n")
            stream.flush()
            raise error

        with pytest.raises(type(error), match=str(error)):
            write_whole(path, write)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]

    def test_nothing_appears_when_the_first_write_raises(self, tmp_path):
        with pytest.raises(ZeroDivisionError, match="division"):
            write_whole(tmp_path / "file", lambda stream: 1 / 0)
        assert os.listdir(tmp_path) == []

    def test_json_that_cannot_be_written_leaves_the_old_file(self, tmp_path):
        write_json(tmp_path / "a.json", {"old": 1})
        with pytest.raises(TypeError, match="not JSON serializable"):
            write_json(tmp_path / "a.json", {"new": object()})
        assert (tmp_path / "a.json").read_text() == '{\n  "old": 1\n}\n'


class TestLinkWhole:
    @pytest.mark.parametrize("links", [True, False])
    def test_the_second_name_has_the_content_and_keeps_it(self, tmp_path, monkeypatch, links):
        def no_links(*_):
            raise OSError("not on this file system")

        if not links:
            monkeypatch.setattr(os, "link", no_links)
        one, two = tmp_path / "one", tmp_path / "two"
        one.write_bytes(b"seven")
        two.write_bytes(b"old")
        for _ in range(2):  # also where it is there already
            link_whole(one, two)
            assert two.read_bytes() == b"seven"
        write_whole(one, lambda stream: stream.write(b"new"))
        assert two.read_bytes() == b"seven"
        assert sorted(os.listdir(tmp_path)) == ["one", "two"]
