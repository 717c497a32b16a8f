"""A Hugging Face Hub on 127.0.0.1 for tests: commits, both upload protocols, downloads, rights, and faults on demand.

It answers what huggingface_hub sends (checked against 2.4), from the standard library alone, and holds everything in
memory but the Xet store, which is a folder.

    with LoopbackHub(tmp_path, faults=[Fault(method="GET", path="config.json", status=503)]) as hub:
        ...  # a client with HF_ENDPOINT=hub.url
        hub.repo("alice/m").files()
"""

from loopback_hub.faults import Fault
from loopback_hub.server import LoopbackHub
from loopback_hub.store import Blob, Commit, PullRequest, Repo
from loopback_hub.wire import Record

__all__ = ["Blob", "Commit", "Fault", "LoopbackHub", "PullRequest", "Record", "Repo"]
