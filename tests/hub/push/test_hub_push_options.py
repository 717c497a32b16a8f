"""What push_to_hub can be asked for, on the loopback Hub."""

import shutil

import pytest
import timm
import torch
from hub_push_helpers import assert_holds, assert_one_line, assert_whole, push, pushes
from huggingface_hub import ModelCard
from loopback_hub import Fault
from support.pushing import NEEDS_PUSH

from timm_mix.hub import save_pretrained

pytestmark = [NEEDS_PUSH, pytest.mark.slow]


@pytest.fixture
def client(clients):
    return clients[False]


@pytest.fixture
def copied(plain_folder, tmp_path):
    """The plain network's folder, to be changed."""
    return shutil.copytree(plain_folder, tmp_path / "model")


def _changes(reply):
    return {file["name"]: file["change"] for file in reply.ok().value["files"]}


def test_only_what_changed_is_sent_and_what_is_not_ours_stays(hub, client, copied):
    hub.commit("alice/m", {"notes.txt": b"mine", "results.json": b"{}", "README.md": b"---\nlicense: mit\n---\n"})
    (copied / "recipe.yaml").write_text("epochs: 1\n")
    assert _changes(push(client, copied, "alice/m")) == {
        "README.md": "change",
        "config.json": "add",
        "model.safetensors": "add",
        "recipe.yaml": "add",
        "wide_resnet_cifar.py": "add",
        "results.json": "remove",  # of other weights
    }
    hub.requests.clear()
    (copied / "recipe.yaml").write_text("epochs: 2\n")
    changes = _changes(push(client, copied, "alice/m"))
    assert {name for name, change in changes.items() if change != "unchanged"} == {"recipe.yaml"}
    assert not [record for record in hub.requests if "/upload/" in record.path]
    assert pushes(hub.repo("alice/m")) == 3
    assert set(hub.repo("alice/m").files()) == {".gitattributes", "notes.txt", *changes}


def test_an_unchanged_folder_asks_one_question(hub, client, plain_folder):
    push(client, plain_folder, "alice/m").ok()
    hub.requests.clear()
    assert push(client, plain_folder, "alice/m").ok().value["commit_url"] is None
    assert [str(record) for record in hub.requests] == ["GET /api/models/alice/m?blobs=true -> 200"]


def test_a_gitignore_over_there_leaves_no_weights_out(hub, client, plain_folder):
    hub.commit("alice/m", {".gitignore": b"*.safetensors\n"})
    push(client, plain_folder, "alice/m").ok()
    assert_holds(hub.repo("alice/m"), plain_folder)


def test_a_repository_is_made_private_and_a_public_one_is_not_taken_for_it(hub, client, plain_folder):
    push(client, plain_folder, "alice/m", private=True).ok()
    assert hub.repo("alice/m").private
    push(client, plain_folder, "alice/m", private=True).ok()
    hub.commit("alice/public", {"notes.txt": b"x"})
    error = push(client, plain_folder, "alice/public", private=True, revision="v2").error
    assert "to alice/public as a private repository: it is public" in assert_one_line(error)
    assert pushes(hub.repo("alice/public")) == 1
    assert set(hub.repo("alice/public").branches) == {"main"}


def test_the_folded_network_of_a_private_ensemble_is_made_private(hub, client, ensemble_folder):
    push(client, ensemble_folder, "alice/m", private=True).ok()
    value = push(client, ensemble_folder, "alice/m", fold=True).ok().value
    assert hub.repo("alice/m-folded").private
    assert (value["private"], value["folded"]["private"]) == (True, True)
    push(client, ensemble_folder, "alice/open", fold=True).ok()
    assert not hub.repo("alice/open-folded").private


def test_a_folded_network_that_is_public_already_stays_so(hub, client, ensemble_folder):
    hub.commit("alice/m-folded", {"notes.txt": b"x"})
    hub.commit("alice/m", {"notes.txt": b"x"}, private=True)
    push(client, ensemble_folder, "alice/m", fold=True).ok()
    assert not hub.repo("alice/m-folded").private


def test_a_repository_that_was_renamed_is_pushed_to_by_its_new_name(hub, clients, plain_folder):
    """By its old one it can still be had."""
    push(clients[True], plain_folder, "alice/old").ok()
    hub.rename("alice/old", "alice/new")
    before = hub.repo("alice/new").head
    for settings in ({}, {"create_pr": True}, {"revision": "v2"}):
        error = assert_one_line(push(clients[True], plain_folder, "alice/old", **settings).error)
        assert error == "cannot push to alice/old: the Hub calls it alice/new; give this name"
    assert hub.repo("alice/new").head == before
    value = push(clients[True], plain_folder, "alice/old", dry_run=True).value
    assert "alice/new; give this name" in value["unreached"]
    push(clients[True], plain_folder, "alice/new").ok()
    assert b"hf-hub:alice/new" in hub.repo("alice/new").files()["README.md"]
    load = "from timm_mix.hub import load_pretrained; result = load_pretrained('alice/old').num_classes"
    assert clients[False].run(load).ok().value == 5


def test_a_name_alone_belongs_to_the_owner_of_the_token(hub, client, plain_folder):
    assert push(client, plain_folder, "m").ok().value["repo_id"] == "alice/m"
    assert b"hf-hub:alice/m" in hub.repo("alice/m").files()["README.md"]


def test_a_pull_request_changes_nothing_and_is_opened_once(hub, clients, plain_folder):
    hub.commit("timm-mix/m", {"notes.txt": b"x"})
    for xet in (True, False):
        result = push(clients[xet], plain_folder, "timm-mix/m", create_pr=True, commit_message="Ours").ok().value
        assert result["pull_request_url"] == f"{hub.url}/timm-mix/m/discussions/1"
        assert result["commit_url"] is None
    repo = hub.repo("timm-mix/m")
    assert [pr.title for pr in repo.pull_requests] == ["Ours"]
    assert set(repo.files()) == {".gitattributes", "notes.txt"}
    assert_holds(repo, plain_folder, "refs/pr/1")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path="/commit/", lose_response=True),
        Fault(path="/commit/", when="always", lose_response=True),
        Fault(path="/commit/", status=503),
        Fault(path="/commit/", cut_after=9),
    ],
    ids=["lost", "always lost", "503", "cut"],
)
def test_a_pull_request_whose_answer_is_lost_is_not_opened_twice(hub, client, plain_folder, fault):
    hub.commit("timm-mix/m", {"notes.txt": b"x"})
    hub.faults = [fault]
    result = push(client, plain_folder, "timm-mix/m", create_pr=True).ok().value
    assert result["pull_request_url"].endswith("/discussions/1")
    assert len(hub.repo("timm-mix/m").pull_requests) == 1


def test_somebody_elses_commit_meanwhile_is_not_overwritten(hub, client, copied):
    code = """
from timm_mix.hub import push_to_hub
from timm_mix.hub import remote as _remote
import huggingface_hub
upload = _remote.Remote.upload
def commit_meanwhile(self, *args, **kwargs):
    upload(self, *args, **kwargs)
    huggingface_hub.HfApi().upload_file(
        path_or_fileobj=b"theirs", path_in_repo="config.json", repo_id="alice/m", commit_message="theirs"
    )
_remote.Remote.upload = commit_meanwhile
push_to_hub(folder, "alice/m", license="mit")
"""
    reply = client.run(code, folder=str(copied))
    assert "412 Precondition Failed" in assert_one_line(reply.error)
    assert hub.repo("alice/m").files()["config.json"] == b"theirs"
    assert pushes(hub.repo("alice/m")) == 1
    push(client, copied, "alice/m").ok()
    assert_holds(hub.repo("alice/m"), copied)


def test_a_branch_is_made_where_it_is_missing(hub, client, plain_folder):
    result = push(client, plain_folder, "alice/m", revision="v2").ok().value
    repo = hub.repo("alice/m")
    assert set(repo.files()) == {".gitattributes"}
    assert_holds(repo, plain_folder, "v2")
    assert '"hf-hub:alice/m@v2"' in result["reload"]
    assert push(client, plain_folder, "alice/m", revision="v2").ok().value["commit_url"] is None
    assert len(repo.history("v2")) == 2


def test_a_dry_run_says_what_would_change_and_writes_nothing(hub, client, copied):
    (copied / "checkpoint.txt").write_text("x")
    hub.commit("alice/m", {"config.json": (copied / "config.json").read_bytes(), "README.md": b"old"})
    reply = push(client, copied, "alice/m", dry_run=True)
    changes = _changes(reply)
    assert {changes[name] for name in ("config.json", "README.md", "model.safetensors")} == {
        "unchanged",
        "change",
        "add",
    }
    assert reply.value["ignored"] == ["checkpoint.txt"]
    assert reply.value["dry_run"]
    assert set(_changes(push(client, copied, "alice/new", dry_run=True)).values()) == {"add"}
    assert set(hub.repos) == {"alice/m"}
    assert {record.method for record in hub.requests} == {"GET"}


def test_a_dry_run_needs_neither_network_nor_token(hub, client, plain_folder):
    hub.faults = [Fault(when="always", cut_after=0)]
    value = push(client, plain_folder, "alice/m", dry_run=True, env={"HF_TOKEN": ""}).ok().value
    assert {file["change"] for file in value["files"]} == {"unknown"}
    assert "the connection failed" in value["unreached"]
    assert not hub.repos


def test_a_model_is_pushed_as_a_folder_is(hub, client, tmp_path):
    code = """
import dataclasses, timm, torch
from timm_mix.hub import push_to_hub, save_pretrained
torch.manual_seed(3)
model = timm.create_model("mixmo", backbone="test_resnet", members=2, num_classes=3)
save_pretrained(model, folder)
result = dataclasses.asdict(push_to_hub(model, "alice/m", license="mit", fold=True))
"""
    client.run(code, folder=str(tmp_path / "m")).ok()
    assert_holds(hub.repo("alice/m"), tmp_path / "m")
    assert_whole(hub.repo("alice/m-folded"))


def test_the_card_of_the_folder_is_taken_as_it_is(hub, client, copied):
    card = "---\nlicense: cc-by-nc-4.0\ntags:\n- timm\n---\n# Mine\n"
    (copied / "README.md").write_text(card)
    client.run("from timm_mix.hub import push_to_hub; push_to_hub(folder, 'alice/m')", folder=str(copied)).ok()
    assert hub.repo("alice/m").files()["README.md"].decode() == card


EDITS = {
    "text": lambda card: card + b"\nMy own words.\n",
    "above": lambda card: card.replace(b"# m", b"# My model"),
    "metadata": lambda card: card.replace(b"tags:", b"language: en\ntags:"),
    "anew": lambda _: b"---\nlicense: mit\n---\n# Mine\n",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_somebody_has_written_on_the_hub_stays(hub, client, copied, edit):
    push(client, copied, "alice/m").ok()
    repo = hub.repo("alice/m")
    card = edit(repo.files()["README.md"])
    assert card != repo.files()["README.md"]
    hub.commit("alice/m", {"README.md": card})
    assert set(_changes(push(client, copied, "alice/m")).values()) == {"unchanged"}
    (copied / "recipe.yaml").write_text("epochs: 1\n")
    assert _changes(push(client, copied, "alice/m", dry_run=True))["README.md"] == "unchanged"
    push(client, copied, "alice/m").ok()
    assert repo.files()["README.md"] == card
    (copied / "README.md").write_text("---\nlicense: mit\n---\n# The folder's\n")
    assert _changes(push(client, copied, "alice/m"))["README.md"] == "change"


def test_a_card_that_nobody_has_changed_is_written_anew(hub, client, plain_folder, ensemble_folder):
    push(client, plain_folder, "alice/m").ok()
    push(client, ensemble_folder, "alice/m", license="apache-2.0").ok()
    card = hub.repo("alice/m").files()["README.md"].decode()
    assert "`mixmo`: 2 members" in card
    assert ModelCard(card).data.license == "apache-2.0"


def test_the_words_about_a_folded_network_stay_too(hub, client, ensemble_folder):
    push(client, ensemble_folder, "alice/m", fold=True).ok()
    card = hub.repo("alice/m-folded").files()["README.md"] + b"My own words.\n"
    hub.commit("alice/m-folded", {"README.md": card})
    push(client, ensemble_folder, "alice/m", fold=True).ok()
    assert hub.repo("alice/m-folded").files()["README.md"] == card


@pytest.mark.parametrize("card", [b"---\nlicense: mit\n---\n", b"---\nlicense: mit\n---\n# Mine\n"])
def test_another_licence_than_the_hubs_card_names_is_refused(hub, client, plain_folder, card):
    hub.commit("alice/m", {"README.md": card})
    error = push(client, plain_folder, "alice/m", license="apache-2.0").error
    assert "the licence given is 'apache-2.0', but " in error
    assert f"{hub.url}/alice/m/blob/{hub.repo('alice/m').head}/README.md says 'mit'; make them agree" in error
    assert pushes(hub.repo("alice/m")) == 1


def test_a_licence_is_put_into_a_card_that_names_none(hub, client, copied):
    (copied / "README.md").write_text("# Mine\n")
    push(client, copied, "alice/m").ok()
    card = ModelCard(hub.repo("alice/m").files()["README.md"].decode())
    assert card.data.license == "mit"
    assert card.text.strip() == "# Mine"
    assert (copied / "README.md").read_text() == "# Mine\n"


def test_names_of_classes_and_normalisation_travel_with_the_folded_network(hub, client, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("mixmo", backbone="test_resnet", members=2, num_classes=2)
    data = {"input_size": (3, 48, 48), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.9}
    folder = save_pretrained(model, tmp_path / "m", label_names=["cat", "dog"], data_config=data)
    push(client, folder, "alice/m", fold=True).ok()
    (tmp_path / "folded").mkdir()
    (tmp_path / "folded" / "config.json").write_bytes(hub.repo("alice/m-folded").files()["config.json"])
    cfg = timm.create_model(f"local-dir:{tmp_path / 'folded'}").pretrained_cfg
    assert cfg["label_names"] == ["cat", "dog"]
    assert {key: tuple(cfg[key]) for key in ("input_size", "mean", "std")} == {k: data[k] for k in list(data)[:3]}
    assert cfg["crop_pct"] == 0.9


def test_without_a_token_nothing_is_asked(hub, client, plain_folder):
    error = push(client, plain_folder, "alice/m", env={"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}).error
    assert "there is no token; log in with `hf auth login` or set HF_TOKEN" in assert_one_line(error)
    assert hub.requests == []


def test_weights_saved_again_meanwhile_are_not_committed(hub, client, copied):
    code = """
from pathlib import Path
from timm_mix.hub import push_to_hub
from timm_mix.hub import remote as _remote
upload = _remote.Remote.upload
def save_meanwhile(self, *args, **kwargs):
    upload(self, *args, **kwargs)
    Path(folder, "model.safetensors").touch()
_remote.Remote.upload = save_meanwhile
push_to_hub(folder, "alice/m", license="mit")
"""
    reply = client.run(code, folder=str(copied))
    assert "was saved again while it was pushed; nothing is committed" in reply.error
    assert pushes(hub.repo("alice/m")) == 0
