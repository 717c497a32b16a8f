"""push_to_hub.py as a user starts it, against a loopback Hub."""

import shutil

import pytest
import timm
import torch
from loopback_hub import Fault, LoopbackHub
from support.hub_clients import ROOT, Client
from support.pushing import NEEDS_PUSH

from timm_mix.commands import push as push_to_hub
from timm_mix.hub import PushedFile, PushResult, save_pretrained
from timm_mix.train.errors import UsageError

pytestmark = [NEEDS_PUSH, pytest.mark.slow]

SCRIPT = ROOT / "train_scripts" / "push_to_hub.py"


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with LoopbackHub(folder) as hub, Client(hub, home=folder / "home", imports="import torch, timm_mix.hub") as client:
        yield hub, client


@pytest.fixture
def hub(session):
    hub, _ = session
    hub.repos.clear()
    hub.requests.clear()
    hub.faults = []
    return hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("mixmo", backbone="test_resnet", members=2, num_classes=3)
    return save_pretrained(model, tmp_path_factory.mktemp("saved") / "run" / "model")


@pytest.fixture
def run(hub, session):
    return lambda *arguments, **kwargs: session[1].script(SCRIPT, *arguments, **kwargs)


def _error(reply):
    """The one line of a script that ended with 2."""
    assert reply.status == 2, reply.error
    assert reply.stdout == ""
    (line,) = reply.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_runs_folder_is_published_with_its_folded_network(hub, run, saved):
    (saved.parent / "results.json").write_text("{}")  # of the run; it stays at home
    reply = run(saved.parent, "alice/m", "--license", "mit", "--fold", "--message", "First").ok()
    lines = reply.stdout.splitlines()
    assert lines[0] == f"alice/m: {hub.url}/alice/m/commit/{hub.repo('alice/m').head}"
    assert (
        lines.count('  load it: import timm, timm_mix; model = timm.create_model("hf-hub:alice/m", pretrained=True)')
        == 1
    )
    assert lines[-1] == '  load it: import timm; model = timm.create_model("hf-hub:alice/m-folded", pretrained=True)'
    assert hub.repo("alice/m").commits[-1].message == "First"
    assert set(hub.repo("alice/m").files()) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    again = run(saved.parent, "alice/m", "--license", "mit", "--fold").ok()
    assert again.stdout.count("nothing has changed, nothing is committed") == 2


def test_the_reload_line_that_is_printed_works(hub, session, run, saved):
    line = run(saved, "alice/m", "--license", "mit").ok().stdout.splitlines()[-1].removeprefix("  load it: ")
    assert session[1].run(f"{line}; result = model.num_members").ok().value == 2


def test_a_dry_run_writes_nothing(hub, run, saved):
    reply = run(saved, "alice/m", "--license", "mit", "--dry-run").ok()
    assert reply.stdout.startswith("alice/m (dry run, nothing is written): ")
    assert "  add       model.safetensors (" in reply.stdout
    assert hub.repos == {}


def test_a_token_may_stand_in_a_file(hub, run, saved, tmp_path):
    (tmp_path / "token").write_text("token-alice\n")
    arguments = (saved, "alice/m", "--license", "mit", "--private", "--token-file", tmp_path / "token")
    run(*arguments, env={"HF_TOKEN": "token-made-up"}).ok()
    assert hub.repo("alice/m").private


@pytest.mark.parametrize(
    ("faults", "arguments", "line"),
    [
        ([], ["a/b/c", "--license", "mit"], "error: Repo id must be in the form"),
        ([], ["alice/m"], "names no licence and none is given"),
        ([], ["bob/m", "--license", "mit"], "error: cannot push to bob/m (creating it): the Hub says 403 Forbidden"),
        ([], ["alice/m", "--license", "mit", "--pr", "--revision", "x"], "leave the revision 'x' out"),
        (
            [Fault(path="/commit/", when="always", status=503)],
            ["alice/m", "--license", "mit"],
            "(committing): the Hub says 503 Service Unavailable; the Hub is in trouble; run the same command again "
            "later (alice/m exists and holds no weights yet)",
        ),
    ],
    ids=["name", "licence", "rights", "settings", "fault"],
)
def test_a_mistake_or_a_fault_is_one_line_and_status_2(hub, run, saved, faults, arguments, line):
    hub.faults = faults
    assert line in _error(run(saved, *arguments))


def test_a_folder_with_pickles_is_refused(hub, run, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "holds pytorch_model.bin: pickled weights run code" in _error(run(folder, "alice/m", "--license", "mit"))
    assert hub.requests == []


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff"])
def test_a_token_file_without_a_token_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read the token in|must hold a token and nothing else"):
        push_to_hub.main([str(tmp_path), "alice/m", "--token-file", str(tmp_path / "token")])


def test_a_report_names_what_stays_at_home_and_what_could_not_be_compared():
    files = (PushedFile("config.json", 321, "unknown"), PushedFile("model.safetensors", 1_000_000, "unknown"))
    result = PushResult("a/b", "U", files, ("notes.txt",), "LINE", dry_run=True, unreached="WHY")
    assert push_to_hub._report(result).splitlines() == [
        "a/b (dry run, nothing is written): U",
        "  unknown   config.json (0.32 kB)",
        "  unknown   model.safetensors (1.00 MB)",
        "  stays at home: notes.txt",
        "  not compared with the Hub: WHY",
        "  load it: LINE",
    ]
