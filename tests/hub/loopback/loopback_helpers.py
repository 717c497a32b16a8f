"""What tests of the loopback Hub share: something to upload, and questions without huggingface_hub."""

import hashlib
import http.client
import json
from urllib.parse import urlsplit

CARD = b"---\nlicense: mit\nlibrary_name: timm\npipeline_tag: image-classification\ntags:\n- timm\n- mixmo\n---\n# m\n"
# what Xet packs in all its ways: noise, runs, and floats whose high bytes are alike
NOISE = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(6000))
FLOATS = b"".join(NOISE[3 * i : 3 * i + 3] + b"?" for i in range(60_000))
WEIGHTS = NOISE + bytes(100_000) + FLOATS + b"abcd" * 20_000
UPLOAD = """
from huggingface_hub import HfApi
HfApi().create_repo(repo, exist_ok=True)
result = HfApi().upload_folder(repo_id=repo, folder_path=folder, **more).oid
"""


def ask(hub, method, path, body=None, token="token-alice", url=None, **headers):
    """(status, headers, body) without huggingface_hub."""
    connection = http.client.HTTPConnection(urlsplit(url or hub.url).netloc, timeout=10)
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def commit_lines(*operations, **header):
    lines = [{"key": "header", "value": {"summary": "s", **header}}, *operations]
    return "\n".join(map(json.dumps, lines)).encode()
