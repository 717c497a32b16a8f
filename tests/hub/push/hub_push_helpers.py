"""What the tests of pushing share: the client's code, and the laws that hold after every push."""

IMPORTS = "import timm, torch, timm_mix.hub, huggingface_hub.hf_api, huggingface_hub.repocard"
PUSH = """
import dataclasses
from timm_mix.hub import push_to_hub
result = dataclasses.asdict(push_to_hub(folder, repo_id, **{"license": "mit", **settings}))
"""


def push(client, folder, repo_id, *, env=None, timeout=60, **settings):
    """The Reply of a client that pushes; its value is the PushResult as a dict."""
    return client.run(PUSH, env=env, timeout=timeout, folder=str(folder), repo_id=repo_id, settings=settings)


def assert_whole(repo):
    """At no time did a card or a config stand there without weights."""
    for commit in [*repo.commits, *(repo.at(pr.ref) for pr in repo.pull_requests)]:
        names = set(commit.files)
        assert "model.safetensors" in names or not names & {"README.md", "config.json", "results.json"}


def assert_holds(repo, folder, revision="main"):
    """The repository holds the folder's weights and config, bit by bit, and a card."""
    files = repo.files(revision)
    for name in ("model.safetensors", "config.json"):
        assert files[name] == (folder / name).read_bytes()
    assert files["README.md"].startswith(b"---\n")


def assert_one_line(error):
    """A HubError whose message is one line and does not tell the token."""
    kind, _, message = error.partition(": ")
    assert kind == "HubError"
    assert "\n" not in message
    assert "token-alice" not in message
    return message


def pushes(repo):
    """How many commits there are besides the one that made the repository."""
    return len(repo.commits) - 1
