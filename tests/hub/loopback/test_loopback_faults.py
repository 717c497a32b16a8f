"""Faults hit what they name, and clients in forks report how they ended."""

import http.client
import json

import pytest
from loopback_helpers import UPLOAD, ask, commit_lines
from loopback_hub import Fault, LoopbackHub
from support.hub_clients import run_client
from support.pushing import NEEDS_PUSH

pytestmark = [NEEDS_PUSH, pytest.mark.slow]


def test_faults_hit_the_requests_they_name_and_no_others(hub):
    hub.commit("alice/m", {"a": b"abc", "b": b"abc"})

    def statuses(fault, count=4):
        hub.faults = [fault]
        return [ask(hub, "GET", "/alice/m/resolve/main/a")[0] for _ in range(count)]

    assert statuses(Fault(status=503)) == [503, 200, 200, 200]
    assert statuses(Fault(status=503, when="always")) == [503] * 4
    assert statuses(Fault(status=503, when="first 2")) == [503, 503, 200, 200]
    assert statuses(Fault(status=503, when=3)) == [200, 200, 503, 200]
    assert statuses(Fault("POST", status=503, when="always")) == [200] * 4
    assert statuses(Fault("GET|POST", "main/a$", status=503, when="always")) == [503] * 4
    assert statuses(Fault(path="main/b", status=503, when="always")) == [200] * 4


def test_an_unknown_when_is_refused():
    with pytest.raises(ValueError, match="wanted when='once', 'always', 'first N' or a number, got 'often'"):
        Fault(when="often")


def test_each_fault_does_what_it_says(hub):
    hub.commit("alice/m", {"a": b"abcdef"})

    def answer(method="GET", **fault):
        hub.faults = [Fault(path="resolve", **fault)]
        return ask(hub, method, "/alice/m/resolve/main/a")

    status, headers, body = answer(status=404, error_code="RepoNotFound", error_message="no", headers={"X-A": "1"})
    assert (status, headers["X-Error-Code"], headers["X-A"], json.loads(body)) == (
        404,
        "RepoNotFound",
        "1",
        {"error": "no"},
    )
    assert answer(status=500, body="<html>")[2] == b"<html>"
    assert answer(body={"a": 1})[2] == b'{"a": 1}'
    assert answer(wrong_bytes=True)[2] == b"abc" + bytes(byte ^ 0x5A for byte in b"def")
    assert answer(wrong_size=True)[2] == b"abcde"
    assert answer("HEAD", wrong_size=True)[1]["Content-Length"] == "7"
    assert "ETag" not in answer(drop_headers=("etag",))[1]
    with pytest.raises(http.client.IncompleteRead, match=r"\(2 bytes read, 4 more expected\)"):
        answer(cut_after=2)
    with pytest.raises(http.client.RemoteDisconnected, match="closed connection without response"):
        answer(lose_response=True)
    with pytest.raises(ConnectionResetError, match="reset by peer"):
        answer(cut_after=2, abrupt=True)
    assert hub.requests[-1].status is None
    assert hub.requests[-1].fault is hub.faults[0]


def test_a_lost_answer_was_handled_and_a_cut_upload_was_not(hub):
    lines = commit_lines({"key": "file", "value": {"path": "a", "content": "Mg==", "encoding": "base64"}})
    for fault, commits in ((Fault("POST", cut_upload_after=9), 2), (Fault("POST", lose_response=True), 3)):
        hub.commit("alice/m", {}) if "alice/m" not in hub.repos else None
        hub.faults = [fault]
        with pytest.raises(ConnectionError, match=r"without response|reset by peer|Broken pipe"):
            ask(hub, "POST", "/api/models/alice/m/commit/main", lines)
        assert len(hub.repo("alice/m").commits) == commits


def test_a_client_is_killed_at_its_request_and_the_next_case_runs(hub, plain, folder):
    hub.on_kill = plain.kill
    hub.faults = [Fault(path="/preupload/", kill=True)]
    assert plain.run(UPLOAD, repo="alice/m", folder=folder, more={}).killed
    assert len(hub.repo("alice/m").commits) == 1
    hub.faults = [Fault(path="/commit/", kill=True, lose_response=True)]
    assert plain.run(UPLOAD, repo="alice/m", folder=folder, more={}).killed
    assert len(hub.repo("alice/m").commits) == 2
    plain.run(UPLOAD, repo="alice/m", folder=folder, more={}).ok()
    assert len(hub.repo("alice/m").commits) == 2


def test_waits_are_written_down_instead_of_waited_for(hub, plain, folder, tmp_path):
    limit = {"ratelimit": '"api";r=0;t=55'}
    hub.faults = [Fault(path="/preupload/", when="first 2", status=503)]
    assert plain.run(UPLOAD, repo="alice/m", folder=folder, more={}).ok().sleeps == [1, 2]
    hub.faults = [Fault(path="/preupload/", status=429, headers=limit)]
    assert plain.run(UPLOAD, repo="alice/n", folder=folder, more={}).ok().sleeps == [56]
    process = run_client("import time; time.sleep(100); print('done')", hub, home=tmp_path / "home")
    assert (process.returncode, process.stdout, process.sleeps) == (0, "done\n", [100])


def test_a_case_reports_its_error_its_status_and_what_it_printed(plain, tmp_path):
    reply = plain.run("import os; print(1); os.write(2, b'two'); raise ValueError('three')")
    assert (reply.error, reply.status, reply.stdout, reply.stderr) == ("ValueError: three", 1, "1\n", "two")
    (tmp_path / "script.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    assert plain.script(tmp_path / "script.py", 2).status == 2
    assert plain.run("import time\nwhile True: time.sleep(0.1)", timeout=0.5).killed


def test_a_fault_of_the_hub_itself_is_an_error_of_the_test(tmp_path):
    with pytest.raises(AssertionError, match="the loopback Hub itself failed"), LoopbackHub(tmp_path) as hub:
        assert ask(hub, "POST", "/api/repos/create", [1])[0] == 500
