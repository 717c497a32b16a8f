"""What is checked of a folder before anything is sent, and what an error says: no network is touched here."""

import json
import shutil
import struct
import sys
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard, get_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from support.pushing import NEEDS_PUSH

from timm_mix.card import SourceFacts, make_converted_card
from timm_mix.card.short import Facts, how_to_load
from timm_mix.hub import errors as _hub_errors
from timm_mix.hub import push_to_hub, save_pretrained
from timm_mix.hub.errors import HubError, hub_errors, with_retries
from timm_mix.hub.release import read_release
from timm_mix.models.weights.shipped import shipped_folder

pytestmark = NEEDS_PUSH

HTTPX: Any = sys.modules[type(get_session()).__module__.partition(".")[0]]  # httpx2 from huggingface_hub 2.0 on


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = timm.create_model("wrn16_2", depth=10, widen_factor=1, num_classes=3)
    return save_pretrained(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(HTTPX.Client, "send", refuse)


def _push(folder, repo_id="alice/m", **settings):
    return push_to_hub(folder, repo_id, **{"license": "mit", "token": "t", **settings})


def _change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    "name", ["a/b/c", "a b", "", "-m", "alice/m.git", "alice/m--n", "alice/" + "m" * 97, "../m", "alice/", "alice/ü"]
)
def test_a_name_that_the_hub_does_not_take_is_refused(folder, name):
    with pytest.raises(ValueError, match=r"[Rr]epo|owner/name"):
        _push(folder, name)


def test_the_folded_networks_name_is_checked_too(folder):
    with pytest.raises(ValueError, match="maximum length is 96"):
        _push(folder, "alice/" + "m" * 90, fold=True)


def test_a_pull_request_has_no_revision(folder):
    with pytest.raises(ValueError, match="a pull request goes to the main branch; leave the revision 'v2' out"):
        _push(folder, create_pr=True, revision="v2")
    with pytest.raises(ValueError, match="the revision is empty"):
        _push(folder, revision=" ")


def test_no_folder_and_an_incomplete_one_are_refused(folder):
    with pytest.raises(ValueError, match=r"wanted a folder that save_pretrained wrote, got .*/nowhere"):
        _push(folder / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model.safetensors"):
        _push(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.pt", "m.PTH", "x.pkl", "old.ckpt"])
def test_pickles_are_refused(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"holds {name}: pickled weights run code"):
        _push(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"architecture": 3}'])
def test_a_config_that_is_none_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json (is not a model's config|names the architecture 3)"):
        _push(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet_of_mine"}, "names the architecture 'resnet_of_mine', which timm and timm_mix lack"),
        ({"architecture": "../wrn16_2"}, "which timm and timm_mix lack"),
        ({"model_args": {"depth": 11}}, "does not build wrn16_2: "),
        ({"model_args": {"no_such": 1}}, "does not build wrn16_2: "),
        ({"model_args": {"depth": 16, "widen_factor": 1}}, "does not fit config.json: .* tensors differ"),
        ({"model_args": {}}, r"the first is bn1.bias: wanted shape \[128\], got \[64\]"),
        ({"num_classes": 10**9}, r"the first is fc.bias: wanted shape \[1000000000\], got \[3\]"),
        (
            {"num_classes": 10**9, "model_args": {"depth": 10, "num_classes": 3}},  # as timm writes it, twice
            "contradicts itself: num_classes is 1000000000, and the network has 3 classes",
        ),
        ({"num_classes": None}, "contradicts itself: num_classes is None, and the network has"),
        ({"label_names": ["a", "b"]}, "contradicts itself: 2 label_names, and the network has 3 classes"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, message):
    _change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        _push(folder)


def test_torn_or_foreign_weights_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:100], b"", struct.pack("<Q", 1 << 40) + whole[8:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
            _push(folder)
    path.write_bytes(whole)
    state = load_file(path)
    save_file({**state, "more": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"1 tensors differ, the first is more: wanted shape nothing, got \[2\]"):
        _push(folder)


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_in_low_precision_are_taken(folder, dtype):
    path = folder / "model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path)
    assert "model.safetensors" in read_release(folder, "alice/m", license="mit").files


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_has_diverged_is_refused(folder, value):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["conv1.weight"][0, 0, 0, 0] = value
    save_file(state, path)
    with pytest.raises(
        ValueError, match=r"holds infinite numbers or NaN, first in conv1.weight: the network has diverged"
    ):
        _push(folder)


@pytest.mark.parametrize(
    ("card", "license", "message"),
    [
        (None, None, "names no licence and none is given"),
        ("# Mine", None, "names no licence and none is given"),
        ("---\nlicense: [\n---\n", "mit", "no valid metadata between its --- lines"),
        ("---\n- a\n---\n", "mit", "no valid metadata between its --- lines"),
        ("---\nlicense: mit\n---\n", "apache-2.0", "the licence given is 'apache-2.0', but .* says 'mit'"),
        ("---\nlicense: 3\n---\n", None, "no licence is called 3 on the Hub"),
        (None, "Apache 2", "no licence is called 'Apache 2' on the Hub; did you mean apache-2.0"),
        ("---\nlicense: mit\nmodel-index: 3\n---\n", None, "no valid metadata"),
    ],
)
def test_a_card_without_a_licence_or_with_broken_metadata_is_refused(folder, card, license, message):
    if card is not None:
        (folder / "README.md").write_text(card)
    with pytest.raises(ValueError, match=message):
        _push(folder, license=license)


def test_a_card_that_is_no_text_is_refused(folder):
    (folder / "README.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no valid metadata"):
        _push(folder)


def test_what_is_not_on_the_list_stays_at_home(folder):
    for name in ("notes.txt", ".env", "token", "evil.py", "results.json", "curve.png", "LICENSE"):
        (folder / name).write_text("{}")
    (folder / "checkpoints").mkdir()
    release = read_release(folder, "alice/m", license="mit")
    assert release.ignored == (".env", "checkpoints", "evil.py", "notes.txt", "token")
    assert {"results.json", "curve.png", "LICENSE", "wide_resnet_cifar.py"} < set(release.files)


def test_a_folder_named_like_a_file_of_the_list_stays_at_home(folder):
    for name in ("curve.png", "results.json"):
        (folder / name).mkdir()
    assert read_release(folder, "alice/m", license="mit").ignored == ("curve.png", "results.json")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"lacks config.json"):
        _push(folder)


def test_the_file_of_the_architecture_is_ours_and_not_the_folders(folder):
    (folder / "wide_resnet_cifar.py").write_text("import os")
    release = read_release(folder, "alice/m", license="mit")
    assert b"class WideResNet" in release.files["wide_resnet_cifar.py"]


def test_networks_that_do_not_fold_are_refused(folder):
    with pytest.raises(ValueError, match=r"wanted a MixMo network to fold, got .* with WideResNet"):
        _push(folder, fold=True)


def test_a_feature_extractor_is_refused():
    with pytest.raises(ValueError, match="wanted a whole model"):
        _push(timm.create_model("wrn16_2", features_only=True))


def test_without_a_token_the_error_says_how_to_log_in(folder, monkeypatch):
    monkeypatch.setattr("timm_mix.hub.push.get_token", lambda: None)
    with pytest.raises(HubError, match=r"cannot push to alice/m: there is no token; log in with `hf auth login`"):
        _push(folder, token=None)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (Facts("resnet18", "a/b"), 'import timm; model = timm.create_model("hf-hub:a/b", pretrained=True)'),
        (Facts("mixmo_resnet18_m2", "a/b"), "import timm, timm_mix; model = "),
        (Facts("wrn16_2", "a/b", own_file="wide_resnet_cifar.py"), "import timm, wide_resnet_cifar; model = "),
    ],
)
def test_the_line_that_loads_it_imports_what_it_needs(facts, line):
    assert how_to_load(facts).startswith(line)


def test_a_folded_networks_card_has_the_ensembles_licence_and_names_it(folder):
    card = "---\nlicense: other\nlicense_name: mine\nlicense_link: https://x.y\ndatasets:\n- digits\n---\n"
    (folder / "README.md").write_text(card)
    ensemble = read_release(folder, "a/b")
    (folder / "README.md").unlink()
    folded = read_release(folder, "a/b-folded", license=ensemble.license, ensemble=ensemble)
    data = ModelCard(folded.card).data.to_dict()
    assert data["base_model"] == "a/b"
    assert {key: data[key] for key in ("license", "license_name", "license_link", "datasets")} == {
        "license": "other",
        "license_name": "mine",
        "license_link": "https://x.y",
        "datasets": ["digits"],
    }
    assert "The ensemble [a/b](https://huggingface.co/a/b) folded" in folded.card


# -- errors and retries


def _refusal(status, headers=None, text=""):
    request = HTTPX.Request("GET", "http://hub/api/models/a/b")
    response = HTTPX.Response(status, headers=headers or {}, text=text, request=request)
    return HfHubHTTPError(f"{status}\n\nfor url", response=response, server_message="what\nit says")


def test_an_error_is_one_line_with_the_status_the_message_and_the_request():
    with (
        pytest.raises(HubError, match="the Hub says 403 Forbidden") as caught,
        hub_errors("push to a/b (committing)"),
    ):
        raise _refusal(403, {"x-request-id": "r1"})
    assert str(caught.value) == (
        "cannot push to a/b (committing): the Hub says 403 Forbidden: what it says (request r1); this token may not do "
        "that; take one with write access there, or another repository"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("xet\nfailed"), r"the connection failed \(xet failed\); run the same command again"),
        (OfflineModeIsEnabled("no"), "offline mode is on; unset HF_HUB_OFFLINE"),
        (OSError(28, "No space left on device"), "No space left on device; make room on this disk"),
        (ConnectionError("Illegal header value b'Bearer hf_secret'"), r"Illegal header value b'Bearer \.\.\.\)"),
        (KeyError("commitUrl"), "its answer lacks 'commitUrl'"),
        (json.JSONDecodeError("x", "<", 0), "its answer is not JSON"),
        (ValueError("a\nb"), "cannot push: a b$"),
    ],
)
def test_whatever_the_library_raises_becomes_a_hub_error(error, said):
    with pytest.raises(HubError, match=said), hub_errors("push"):
        raise error


def _failing(*errors):
    """A call that raises these errors in turn, and then returns."""
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return "done"

    return call


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(_hub_errors.time, "sleep", found.append)
    return found


def test_temporary_answers_are_waited_for_ever_longer(waits, caplog):
    caplog.set_level("INFO", "timm_mix.hub")
    assert with_retries(_failing(*map(_refusal, (408, 429, 500, 503)))) == "done"
    assert waits == [1, 2, 4, 8]
    assert caplog.messages[0] == "the Hub says 408; next try in 1 s"


def test_five_tries_are_all(waits):
    with pytest.raises(HfHubHTTPError, match="503"):
        with_retries(_failing(*[_refusal(503)] * 5))
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 412, 413, 422])
def test_a_refusal_is_not_asked_twice(waits, status):
    with pytest.raises(HfHubHTTPError, match=f"^{status}"):
        with_retries(_failing(_refusal(status)))
    assert waits == []


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "20"}, 21),
        ({"ratelimit": '"api";r=0;t=30'}, 31),
        ({"ratelimit": '"api";r=3;t=30'}, 1),
        ({"Retry-After": "soon"}, 1),
    ],
)
def test_retry_after_is_honoured(waits, headers, wait):
    with_retries(_failing(_refusal(429, headers)))
    assert waits == [wait]


def test_a_date_in_retry_after_is_honoured(waits):
    from datetime import datetime, timedelta, timezone
    from email.utils import format_datetime

    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
    with_retries(_failing(_refusal(503, {"Retry-After": date})))
    assert 98 < waits[0] < 102


def test_too_long_a_wait_is_left_to_the_user(waits):
    with pytest.raises(HfHubHTTPError, match=r"^429"):
        with_retries(_failing(_refusal(429, {"Retry-After": "311"})))
    assert waits == []


def test_a_call_that_has_worked_after_all_is_not_made_again(waits):
    assert with_retries(_failing(ConnectionError("lost"), AssertionError("again")), lambda: "there") == "there"


def test_other_peoples_errors_pass(waits):
    with pytest.raises(ZeroDivisionError, match="theirs"):
        with_retries(_failing(ZeroDivisionError("theirs")))


def test_offline_mode_is_not_waited_for(waits):
    with pytest.raises(OfflineModeIsEnabled, match=r"^no$"):
        with_retries(_failing(OfflineModeIsEnabled("no")))
    assert waits == []


def test_a_converted_models_card_says_how_to_load_it_from_the_hub(folder):
    facts = SourceFacts("splitnet", "wide_resnet16_8", "best.pth.tar", "0" * 64, "cc-by-nc-4.0")
    card = str(make_converted_card(folder, facts))
    (folder / "README.md").write_text(card)
    published = read_release(folder, "alice/m").card
    assert 'timm.create_model("hf-hub:alice/m", pretrained=True)' in published
    assert published.count("\n") == card.count("\n")
    assert "PATH/OF" not in published


def test_figures_of_other_weights_are_not_published(tmp_path):
    folder = shutil.copytree(shipped_folder() / "mixmo_wrn16_2_m2.digits", tmp_path / "model")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    with torch.no_grad():
        model.heads[0].bias.fill_(7)
    save_pretrained(model, folder)
    with pytest.raises(ValueError, match=r"the figures in .*results.json are of other weights .*; release it anew"):
        _push(folder, license=None)
    (folder / "results.json").unlink()
    assert "results.json" not in read_release(folder, "alice/m").files


def test_a_generated_card_names_the_repository_that_it_goes_to(folder):
    shutil.rmtree(folder)
    shutil.copytree(shipped_folder() / "mixmo_wrn16_2_m2.digits", folder)
    own = (folder / "README.md").read_text()
    card = read_release(folder, "alice/m").card
    assert 'create_model("hf-hub:alice/m", pretrained=True)' in card
    assert "timm-mix/mixmo" in own
    assert "timm-mix/mixmo" not in card
    (folder / "README.md").write_text(own + "My own words.\n")
    assert read_release(folder, "alice/m").card == own + "My own words.\n"
