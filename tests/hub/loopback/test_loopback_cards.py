"""How the loopback Hub reads front matter, and what it refuses."""

import json

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from loopback_helpers import ask
from loopback_hub.front_matter import check_card, read_front_matter
from support.pushing import NEEDS_PUSH

pytestmark = NEEDS_PUSH


def generated_card():
    result = EvalResult(
        task_type="image-classification",
        dataset_type="digits",
        dataset_name="Digits: a name with a colon, 'quotes' and a # sign",
        metric_type="accuracy",
        metric_name="top-1",
        metric_value=98.25,
    )
    data = ModelCardData(
        **{"license": "apache-2.0", "library_name": "timm", "tags": ["timm", "mixmo"], "datasets": ["digits"]},
        model_name="a model " + "with a long name " * 8,
        eval_results=[result],
    )
    return f"---\n{data.to_yaml()}\n---\n# m\n"


TEXTS = {
    "generated": generated_card(),
    "timm": "---\ntags:\n- image-classification\n- timm\nlibrary_name: timm\nlicense: apache-2.0\n---\nx",
    "kinds": "---\na: 1\nb: 1.5\nc: true\nd: null\ne:\nf: '1'\ng: \"x: y\"\nh: [a, 2]\ni: {k: v}\nj: a b  # c\n---\n",
    "nested": "---\na:\n  - b: 1\n    c:\n      - d\n      - e\n  - f: 2\nk:\n- - 1\n  - 2\n---\n",
    "folded": "---\na: one\n  two\n  three\nb: >-\n  four\n  five\n---\n",
    "none": "# only a title\n",
    "empty": "---\n---\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_front_matter_is_read_as_yaml_reads_it(name):
    parts = TEXTS[name].split("---\n")
    wanted = yaml.safe_load(parts[1]) if TEXTS[name].startswith("---") else {}
    assert read_front_matter(TEXTS[name]) == (wanted or {})


def test_a_language_called_no_and_a_date_stay_text():
    read = read_front_matter("---\nlanguage: no\ndate: 2026-01-02\nmetric: true\n---\n")
    assert read == {"language": "no", "date": "2026-01-02", "metric": True}


def test_a_block_that_is_not_closed_is_refused():
    with pytest.raises(ValueError, match="the block that --- opens is not closed"):
        read_front_matter("---\na: 1\n")


def test_a_generated_card_is_valid_in_both_readers():
    assert check_card(generated_card()) == ([], [])
    assert ModelCard(generated_card()).data.eval_results[0].metric_value == 98.25


@pytest.mark.parametrize(
    ("front", "message"),
    [
        ("license: mine", '"license" must be one of'),
        ("license: 3", '"license" must be a string'),
        ("tags: timm\nlibrary_name:\n- timm", '"library_name" must be a string'),
        ("tags:\n- 1\n- 2", '"tags" must be a string or an array'),
        ("model-index: x", '"model-index" must be an array'),
        ("model-index:\n- name: 3", '"model-index[0].name" must be a string'),
        ("model-index:\n- name: m\n  results:\n  - task: {type: t}\n    dataset: {name: d}", "dataset.type"),
        ("a: b: c", "line 1: mapping values are not allowed here"),
        ("just text", "wanted a mapping, got 'just text'"),
        ("a: 'open", "found unexpected end of stream"),
        ("a: 1\na: 2", "line 2: the key 'a' twice"),
        ("a: 1\n  b: 2", "line 2: mapping values are not allowed here"),
        ("\ta: 1", "found character '\\t' that cannot start any token"),
    ],
)
def test_a_card_with_wrong_metadata_is_refused(hub, front, message):
    status, _, body = ask(hub, "POST", "/api/validate-yaml", {"content": f"---\n{front}\n---\n", "repoType": "model"})
    errors = " ".join(error["message"] for error in json.loads(body)["errors"])
    assert status == 400
    assert message in errors


def test_the_client_names_what_is_wrong_with_a_card(plain):
    code = "from huggingface_hub import ModelCard; ModelCard('---\\nlicense: mine\\n---\\n').validate()"
    assert plain.run(code).error.startswith("ValueError")
    assert plain.run(code.replace("license: mine", "license: mit")).ok()
