"""The metadata block on top of a README.md: read as the Hub reads it, and what the Hub demands of it."""

import re
from typing import Any

import yaml

__all__ = ["check_card", "read_front_matter"]

LICENSES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause
    bsd-3-clause bsd-3-clause-clear cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 ecl-2.0 epl-2.0 eupl-1.1
    agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl osl-3.0
    postgresql ofl-1.1 ncsa unlicense zlib pddl wtfpl unknown other
    """
TEXTS = ("library_name", "pipeline_tag", "license_name", "license_link")
LISTS = ("tags", "datasets", "metrics", "language", "base_model", "license")
BLOCK = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_YAML = "tag:yaml.org,2002:"


def check_card(text: str) -> tuple[list[str], list[str]]:
    """(errors, warnings), as the Hub's validator words them in substance."""
    if not text.startswith("---"):
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        card = read_front_matter(text)
    except ValueError as error:
        return [f"Invalid YAML in the front matter: {error}"], []
    errors = [f'"{key}" must be a string' for key in TEXTS if not isinstance(card.get(key, ""), str)]
    for key in LISTS:
        value = card.get(key, [])
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            errors.append(f'"{key}" must be a string or an array of strings')
    licenses = card.get("license", [])
    for name in [licenses] if isinstance(licenses, str) else licenses if isinstance(licenses, list) else []:
        if name not in LICENSES.split():
            errors.append(f'"license" must be one of the known licenses, not {name!r}')
    if "model-index" in card:
        errors += _check_index(card["model-index"])
    return errors, []


def _check_index(index: Any) -> list[str]:
    if not isinstance(index, list) or not all(isinstance(model, dict) for model in index):
        return ['"model-index" must be an array']
    errors = []
    for m, model in enumerate(index):
        if not isinstance(model.get("name"), str):
            errors.append(f'"model-index[{m}].name" must be a string')
        for r, result in enumerate(model.get("results") or []):
            place = f"model-index[{m}].results[{r}]"
            for part, keys in (("task", ("type",)), ("dataset", ("name", "type"))):
                value = result.get(part)
                for key in keys:
                    if not isinstance(value, dict) or not isinstance(value.get(key), str):
                        errors.append(f'"{place}.{part}.{key}" must be a string')
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not metrics:
                errors.append(f'"{place}.metrics" must be an array')
            elif not all(isinstance(metric.get("type"), str) and "value" in metric for metric in metrics):
                errors.append(f'"{place}.metrics" must hold "type" and "value"')
    return errors


def read_front_matter(text: str) -> dict[str, Any]:
    """The metadata of a card, {} where there are none.

    Raises:
        ValueError: a block that is not closed, no YAML, a key twice, or no mapping.
    """
    if not text.startswith("---"):
        return {}
    found = BLOCK.match(text)
    if not found:
        raise ValueError("the block that --- opens is not closed")
    try:
        value = yaml.load(found[1], _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"wanted a mapping, got {value!r}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML 1.2 where cards meet it: a key stands once, `no` is a language and no False, a date is text (as in JSON)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in (f"{_YAML}bool", f"{_YAML}timestamp")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_YAML}bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
