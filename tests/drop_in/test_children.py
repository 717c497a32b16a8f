"""The commands of a script's children: which are rewritten, and which stay as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from timm_mix.drop_in.children import children_know_us, rewritten

PYTHON = sys.executable
ASKS = "import sys, timm\nprint(timm.is_model('mixmo'), sys.argv[1:], sys.path[0])\n"
OURS = ["-m", "timm_mix.drop_in"]


@pytest.fixture(autouse=True)
def child(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "child.py"
    path.write_text(ASKS)
    return path


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([PYTHON, "child.py", "-m", "x"], [PYTHON, *OURS, "child.py", "-m", "x"]),
        ((PYTHON, "-u", "child.py"), [PYTHON, "-u", *OURS, "child.py"]),
        ([Path(PYTHON), Path("child.py")], [PYTHON, *OURS, "child.py"]),
        (
            [PYTHON, "-W", "ignore", "-X", "dev", "-Xutf8", "-OO", "-Ic", "child.py"],
            None,
        ),
        (
            [PYTHON, "-W", "ignore", "-X", "dev", "-Xutf8", "-OO", "child.py"],
            [PYTHON, "-W", "ignore", "-X", "dev", "-Xutf8", "-OO", *OURS, "child.py"],
        ),
        ([PYTHON, "-m", "child"], None),
        ([PYTHON, "-um", "child"], None),
        ([PYTHON, "-c", "child.py"], None),
        ([PYTHON, "-", "child.py"], None),
        ([PYTHON, "--version"], None),
        ([PYTHON], None),
        ([], None),
        ([PYTHON, "no_such_child.py"], None),
        ([PYTHON, timm.__file__], None),
        ([PYTHON, os.__file__], None),
        (["ls", "child.py"], None),
        (["no-such-program", "child.py"], None),
        ([b"python", b"child.py"], None),
        (f"{PYTHON} child.py", None),
        (Path("child.py"), None),
    ],
)
def test_a_command_becomes(given, wanted):
    assert rewritten(given) == (given if wanted is None else wanted)


def test_a_python_of_another_environment_is_left_alone(tmp_path):
    other = tmp_path / "bin" / "python"
    other.parent.mkdir()
    other.symlink_to(Path(PYTHON).resolve())
    assert rewritten([other, "child.py"]) == [other, "child.py"]
    assert rewritten(["python", "child.py"], environment={"PATH": str(other.parent)}) == ["python", "child.py"]
    assert rewritten([Path(PYTHON).name, "child.py"], environment={"PATH": str(Path(PYTHON).parent)})[1:3] == OURS


def test_a_script_is_looked_for_where_the_child_will_be(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert rewritten([PYTHON, "child.py"]) == [PYTHON, "child.py"]
    assert rewritten([PYTHON, "child.py"], cwd=tmp_path) == [PYTHON, *OURS, "child.py"]


def test_subprocess_is_as_it_was_afterwards():
    before = subprocess.Popen.__init__
    with children_know_us():
        assert subprocess.Popen.__init__ is not before
    with pytest.raises(FileNotFoundError, match="no-such-program"), children_know_us():
        subprocess.run(["no-such-program"])
    assert subprocess.Popen.__init__ is before


def test_a_shell_and_another_executable_are_left_alone():
    with children_know_us():
        assert subprocess.check_output(f"{PYTHON} child.py", shell=True, text=True).startswith("False")
        assert subprocess.check_output([PYTHON, "child.py"], executable=PYTHON, text=True).startswith("False")


@pytest.mark.slow
def test_children_and_their_children_know_us_and_what_was_imported(tmp_path, monkeypatch):
    (tmp_path / "own_mixers.py").write_text(
        "from timm_mix import mixers\nmixers.register_mixer('own', type('Own', (mixers.Mixup,), {}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    (tmp_path / "grandchild.py").write_text(
        "import sys\nprint('own_mixers' in sys.modules, 'timm_mix' in sys.modules)\n"
    )
    (tmp_path / "child.py").write_text(
        ASKS + "import subprocess\nprint(subprocess.check_output([sys.executable, 'grandchild.py'], text=True))\n"
    )
    with children_know_us(imports=["own_mixers"]):
        printed = subprocess.check_output([PYTHON, "-u", "child.py", "--lr", "1"], text=True).split("\n")
    assert printed[0] == f"True ['--lr', '1'] {tmp_path}"
    assert printed[1] == "True True"
