"""The table of faults: each ends in success or in the expected one line."""

import re

import pytest
from hub_push_faults import CASES, SLOW_CASES
from hub_push_helpers import assert_holds, assert_one_line, assert_whole, push, pushes
from support.pushing import NEEDS_PUSH

pytestmark = [NEEDS_PUSH, pytest.mark.slow]


def test_the_table_is_long_and_its_names_are_its_own():
    assert len({case.name for case in CASES}) == len(CASES) >= 80


SLOW = [pytest.param(case, marks=pytest.mark.hub_matrix) for case in SLOW_CASES]


@pytest.mark.parametrize("case", [*CASES, *SLOW], ids=lambda case: case.name)
def test_a_fault_ends_in_success_or_in_one_line(hub, clients, plain_folder, case):
    client, repo_id = clients[case.xet], case.settings.get("repo", "alice/m")
    if case.planted:
        hub.commit("alice/m", {"notes.txt": b"mine"})
    hub.faults = case.faults
    reply = push(client, plain_folder, repo_id, env={"HF_TOKEN": case.token}, timeout=600)
    if case.expected == "ok":
        reply.ok()
    else:
        message = assert_one_line(reply.error or "it succeeded: ")
        assert re.search(case.expected, message), message
        if "alice/m" in hub.repos:
            assert_whole(hub.repo("alice/m"))
        hub.faults = []
        push(client, plain_folder, repo_id).ok()
    if case.sleeps is not None:
        assert tuple(reply.sleeps) == case.sleeps
    assert_whole(hub.repo("alice/m"))
    assert_holds(hub.repo("alice/m"), plain_folder)
    assert pushes(hub.repo("alice/m")) == 1 + case.planted
