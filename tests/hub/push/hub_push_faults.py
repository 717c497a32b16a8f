"""What goes wrong while pushing, and how it must end: as data.

Every case pushes one small folder into a repository of its own. `expected` is "ok", or a pattern that the one line of
the HubError must match; after an error the same push without the fault must succeed.
"""

from dataclasses import dataclass, field
from typing import Any

from loopback_hub import Fault

__all__ = ["CASES", "SLOW_CASES", "Case"]

INFO, CREATE, YAML = r"\?blobs=true", "repos/create", "validate-yaml"
PREUPLOAD, XET, COMMIT = "/preupload/", "xet-write-token", "/commit/"
BATCH, PUT, VERIFY = "objects/batch", "/cdn/upload/", "lfs/verify"
CONFLICT = "Cannot create repo: another conflicting operation is in progress"
PAST = "Wed, 21 Oct 2015 07:28:00 GMT"
NO_LIMIT_LEFT = {"ratelimit": '"api";r=0;t=55', "ratelimit-policy": '"fixed window";"api";q=500;w=300'}
LATER = "in trouble; run the same command again later"
CUT = "connection failed .*run the same command again, it goes on where it stopped"


@dataclass(frozen=True)
class Case:
    """planted: the repository is there already, with a file of its owner; the one commit is then the second.

    sleeps: the waits that were to be made, where the case is about them.
    """

    name: str
    faults: tuple[Fault, ...]
    expected: str = "ok"
    xet: bool = False
    planted: bool = False
    token: str = "token-alice"
    settings: dict[str, Any] = field(default_factory=dict)
    sleeps: tuple[float, ...] | None = None


def _case(name: str, path: str, expected: str = "ok", /, *, more: tuple[Fault, ...] = (), **kwargs: Any) -> Case:
    """One fault on one path; what is no field of Case belongs to the fault."""
    own = {key: kwargs.pop(key) for key in ("xet", "planted", "token", "settings", "sleeps") if key in kwargs}
    return Case(name, (Fault(path=path, **kwargs), *more), expected, **own)


def _missing_once() -> Fault:
    """The repository is not seen at first, as if somebody else made it in between."""
    return Fault(path=INFO, status=404, error_code="RepoNotFound")


LOOKING = [
    _case("info 500 once", INFO, status=500, sleeps=(1,)),
    _case("info 503 always", INFO, rf"looking at it.*503.*{LATER}", when="always", status=503, sleeps=(1, 2, 4, 8)),
    _case("info 408 once", INFO, status=408),
    _case("info 429 once, to be waited for", INFO, status=429, headers={"Retry-After": "7"}, sleeps=(8,)),
    _case("info 429 once, a limit", INFO, status=429, headers=NO_LIMIT_LEFT, sleeps=(56,)),
    _case("info 429 always", INFO, "429 Too Many Requests.*wait some minutes", when="always", status=429),
    _case("info 429 for an hour", INFO, "wait 3601 seconds", status=429, headers={"Retry-After": "3600"}, sleeps=()),
    _case("info 503 with a date that is past", INFO, status=503, headers={"Retry-After": PAST}),
    _case("info 401 bare", INFO, "401 Unauthorized.*`hf auth login` or set HF_TOKEN", when="always", status=401),
    _case(
        "info 401 invalid token",
        INFO,
        "401 Unauthorized: Invalid credentials in Authorization header.*this token is not valid; log in with",
        when="always",
        status=401,
        error_message="Invalid credentials in Authorization header",
    ),
    _case("info 403 gated", INFO, "403 Forbidden", when="always", status=403, error_code="GatedRepo"),
    _case("info 404 bare", INFO, "404 Not Found.*look at the name of the repository", when="always", status=404),
    _case("info 404 revision", INFO, "404 Not Found", when="always", status=404, error_code="RevisionNotFound"),
    _case("info 404 for ever", INFO, "may not see it", when="always", status=404, error_code="RepoNotFound"),
    _case("info cut once", INFO, when=2, cut_after=20),
    _case("info reset once", INFO, lose_response=True, abrupt=True),
    _case("info cut always", INFO, CUT, when="always", cut_after=0),
    _case("info that is no JSON", INFO, "not JSON", when="always", status=200, body="<html>"),
    _case("info that is a list", INFO, "not what it should be", when="always", status=200, body="[]"),
    _case("whoami 401", "whoami", "asking whose.*401 Unauthorized.*not valid", status=401, settings={"repo": "m"}),
    _case("whoami 503 once", "whoami", status=503, settings={"repo": "m"}, sleeps=(1,)),
    _case("whoami 429 always", "whoami", "429 Too Many", when="always", status=429, settings={"repo": "m"}),
]
CREATING = [
    _case("create 500 once", CREATE, status=500, sleeps=(1,)),
    _case("create 503 always", CREATE, rf"creating it.*503.*{LATER}", when="always", status=503),
    _case("create 401", CREATE, "creating it.*401 Unauthorized", when="always", status=401),
    _case("create 402", CREATE, "402 Payment Required.*billing", when="always", status=402),
    _case("create 403 namespace", CREATE, "403 Forbidden.*take one with write access", status=403),
    _case("create 422", CREATE, "422 Unprocessable.*correct what it names", status=422),
    _case("create 409 with the url", "/never", planted=True, more=(_missing_once(),)),
    _case("create 409 without the url", CREATE, planted=True, status=409, body="it exists", more=(_missing_once(),)),
    _case("create 409 conflict once", CREATE, status=409, body=CONFLICT, sleeps=(1,)),
    _case(
        "create 409 conflict always",
        CREATE,
        "409 Conflict.*another change is under way",
        when="always",
        status=409,
        body=CONFLICT,
        sleeps=(1, 2, 4, 8),
    ),
    _case("create whose answer is lost", CREATE, lose_response=True),
    _case("create cut always", CREATE, CUT, when="always", cut_upload_after=10),
    Case("a token that may only read", (), "403 Forbidden: .*use a write token", token="token-reader"),
    Case("a token of somebody else", (), "403 Forbidden: .*namespace 'alice'", token="token-bob"),
    Case("a token that is none", (), "401 Unauthorized: Invalid credentials", token="token-made-up"),
]
CHECKING = [
    _case(
        "card refused",
        YAML,
        r'README.md\): "license" must be one of; correct the metadata between its --- lines$',
        when="always",
        status=400,
        body={"errors": [{"message": '"license" must be one of'}], "warnings": []},
    ),
    _case("card check 502 once, no JSON", YAML, status=502, body="<html>Bad Gateway</html>", sleeps=(1,)),
    _case(
        "card check 502 always, no JSON", YAML, f"checking README.md.*502.*{LATER}", when="always", status=502, body="<"
    ),
    _case("second card check 503 once, no JSON", YAML, when=2, status=503, body="<html>", sleeps=(1,)),
    _case("card check 429 once", YAML, status=429, headers={"Retry-After": "1"}, sleeps=(2,)),
    _case("card check lost", YAML, lose_response=True),
]
UPLOADING = [
    _case("preupload 500 twice", PREUPLOAD, when="first 2", status=500, sleeps=(1, 2)),
    _case("preupload 503 always", PREUPLOAD, f"uploading.*503.*{LATER}", when="always", status=503),
    _case("preupload 403", PREUPLOAD, "403 Forbidden", status=403),
    _case("preupload 404 repository", PREUPLOAD, "404 Not Found", status=404, error_code="RepoNotFound"),
    _case("preupload 404 revision", PREUPLOAD, "404 Not Found", status=404, error_code="RevisionNotFound"),
    _case("preupload 413", PREUPLOAD, "413.*too large", status=413),
    _case("preupload 422", PREUPLOAD, "422 Unprocessable", status=422),
    _case("preupload says nothing", PREUPLOAD, "improperly formatted", status=200, body={"what": 1}),
    _case("preupload lost", PREUPLOAD, lose_response=True),
    _case("batch 500 once", BATCH, status=500, sleeps=(1,)),
    _case("batch 503 always", BATCH, f"503.*{LATER}", when="always", status=503),
    _case("batch 413", BATCH, "413.*too large", status=413),
    _case("upload 500 once", PUT, status=500, sleeps=(1,)),
    _case("upload 403, a link that expired", PUT, "Error while uploading 'model.safetensors'.*403", status=403),
    _case("upload 503 always", PUT, f"Error while uploading.*503.*{LATER}", when="always", status=503),
    _case("upload cut on its way", PUT, cut_upload_after=100_000, abrupt=True),
    _case("upload cut at the first byte", PUT, cut_upload_after=0),
    _case("upload whose answer is lost", PUT, lose_response=True),
    _case("upload cut always", PUT, "Error while uploading 'model.safetensors'", when="always", cut_upload_after=1000),
    _case("verify 500 once", VERIFY, status=500, sleeps=(1,)),
    _case("verify 404", VERIFY, "Error while uploading.*404", when="always", status=404),
    _case("xet 500 once", XET, xet=True, status=500, sleeps=(1,)),
    _case("xet 503 always", XET, rf"uploading.*503.*{LATER}", xet=True, when="always", status=503, sleeps=(1, 2, 4, 8)),
    _case("xet 429 once", XET, xet=True, status=429, headers={"Retry-After": "3"}, sleeps=(4,)),
    _case("xet 429 always", XET, "429 Too Many Requests", xet=True, when="always", status=429),
    _case("xet 401", XET, "401 Unauthorized", xet=True, when="always", status=401),
    _case("xet 403", XET, "403 Forbidden", xet=True, when="always", status=403),
    _case("xet 404", XET, "404 Not Found", xet=True, when="always", status=404),
    _case("xet 403 behind our own question", XET, "uploading the weights.*403", xet=True, when=2, status=403),
]
COMMITTING = [
    _case("commit 500 once", COMMIT, status=500, sleeps=(1,)),
    _case("commit 503 always", COMMIT, rf"committing.*503.*{LATER}", when="always", status=503, sleeps=(1, 2, 4, 8)),
    _case("commit 429 once, a limit", COMMIT, status=429, headers=NO_LIMIT_LEFT, sleeps=(56,)),
    _case("commit 400", COMMIT, "400 Bad Request", status=400, error_message="no"),
    _case("commit 403", COMMIT, "403 Forbidden", status=403),
    _case("commit 404 repository", COMMIT, "404 Not Found", status=404, error_code="RepoNotFound"),
    _case("commit 409", COMMIT, "409 Conflict.*run the same command again", status=409),
    _case("commit 412, a stale parent", COMMIT, "412 Precondition Failed.*somebody else has changed", status=412),
    _case("commit 413", COMMIT, "413.*too large", status=413),
    _case("commit 422", COMMIT, "422 Unprocessable.*correct what it names", status=422),
    _case("commit whose answer is lost", COMMIT, lose_response=True),
    _case("commit whose answer is lost, xet", COMMIT, xet=True, lose_response=True, abrupt=True),
    _case("commit whose answer is always lost", COMMIT, when="always", lose_response=True),
    _case("commit whose answer is cut", COMMIT, cut_after=10),
    _case("commit answered by a proxy", COMMIT, body="<html>", headers={"Content-Type": "text/html"}),
    _case("commit cut on its way", COMMIT, cut_upload_after=100),
    _case("commit cut always", COMMIT, CUT, when="always", cut_upload_after=100),
    _case(
        "commit 500, and the head cannot be seen",
        COMMIT,
        "committing.*500",
        when="always",
        status=500,
        more=(Fault(path=INFO, when=2, status=200, body="{}"),),
        planted=True,
    ),
]
# Xet's own client repeats its question by itself and really waits, for minutes where it is answered 500 for ever
SLOW_CASES = [
    Case("xet 500 once behind our own question", (Fault(path=XET, when=2, status=500),), xet=True),
    Case(
        "xet 500 for ever behind our own question",
        tuple(Fault(path=XET, when=n, status=500) for n in range(2, 40)),
        "uploading the weights.*500",
        xet=True,
    ),
    Case("xet that is no JSON", (Fault(path=XET, when=2, status=200, body="<html>"),), xet=True),
]
CASES = [*LOOKING, *CREATING, *CHECKING, *UPLOADING, *COMMITTING]
