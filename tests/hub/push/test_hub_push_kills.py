"""A push that is killed at any of its requests, and given again."""

import re

import pytest
from hub_push_helpers import assert_whole, push
from loopback_hub import Fault
from support.pushing import NEEDS_PUSH

pytestmark = [NEEDS_PUSH, pytest.mark.slow]

REPO = "alice/killed"
CHANGING = re.compile(r"repos/create|/cdn/upload|/commit/|/branch/")  # the requests after which something is there


def _states(hub):
    """What every repository holds, how many commits it took, and how many proposals there are."""
    return {name: (repo.files(), len(repo.commits), len(repo.pull_requests)) for name, repo in hub.repos.items()}


def _uninterrupted(hub, client, folder, **settings):
    """The requests of a push that nobody disturbs, and what it leaves."""
    push(client, folder, REPO, **settings).ok()
    paths, states = [record.path for record in hub.requests], _states(hub)
    hub.repos.clear()
    return paths, states


def _killed_at(hub, client, folder, number, *, handled, **settings):
    """Kill the client at its n-th request, before or after that was handled; then push again."""
    hub.on_kill = client.kill
    hub.faults = [Fault(when=number, kill=True, lose_response=handled)]
    assert push(client, folder, REPO, **settings).killed
    for repo in hub.repos.values():
        assert_whole(repo)
    hub.faults = []
    push(client, folder, REPO, **settings).ok()
    for repo in hub.repos.values():
        assert_whole(repo)
    states = _states(hub)
    hub.repos.clear()
    return states


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_a_push_killed_at_any_request_is_finished_by_the_same_command(hub, clients, plain_folder, xet):
    paths, states = _uninterrupted(hub, clients[xet], plain_folder)
    assert len(paths) == (9 if xet else 10)
    for number, path in enumerate(paths, 1):
        found = _killed_at(hub, clients[xet], plain_folder, number, handled=False)
        assert found == states, f"killed at request {number}, {path}"


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_so_is_one_killed_after_a_request_that_changed_something(hub, clients, plain_folder, xet):
    paths, states = _uninterrupted(hub, clients[xet], plain_folder)
    changing = [number for number, path in enumerate(paths, 1) if CHANGING.search(path)]
    assert len(changing) == (2 if xet else 3)
    for number in changing:
        found = _killed_at(hub, clients[xet], plain_folder, number, handled=True)
        assert found == states, f"killed after request {number}, {paths[number - 1]}"


@pytest.mark.hub_matrix
@pytest.mark.parametrize("settings", [{}, {"fold": True}, {"create_pr": True}, {"revision": "v2"}], ids=str)
@pytest.mark.parametrize("handled", [False, True], ids=["before it was handled", "after it was handled"])
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_two_networks_a_pull_request_and_a_branch_survive_every_kill(
    hub, clients, ensemble_folder, xet, handled, settings
):
    paths, states = _uninterrupted(hub, clients[xet], ensemble_folder, **settings)
    for number, path in enumerate(paths, 1):
        found = _killed_at(hub, clients[xet], ensemble_folder, number, handled=handled, **settings)
        assert found == states, f"killed at request {number}, {path}"
