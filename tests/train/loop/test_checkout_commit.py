"""The commit that every results.json states."""

import subprocess

from timm_mix.train.loop.results import checkout_commit


def test_the_commit_is_the_checkouts_and_says_where_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr("timm_mix.train.loop.results.ROOT", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "--quiet"], ["add", "file"], ["commit", "--quiet", "--message", "one"], ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert checkout_commit() == head
    (tmp_path / "file").write_text("two")
    assert checkout_commit() == f"{head}-dirty"


def test_no_commit_is_stated_outside_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("timm_mix.train.loop.results.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout_commit() is None


def test_a_package_inside_of_another_checkout_is_not_that_one(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", "theirs"]):
        subprocess.run([*git, *command], check=True)
    place = tmp_path / "lib" / "site-packages"
    place.mkdir(parents=True)
    monkeypatch.setattr("timm_mix.train.loop.results.ROOT", place)
    assert checkout_commit() is None
