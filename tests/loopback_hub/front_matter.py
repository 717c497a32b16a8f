"""The metadata block on top of a README.md: the part of YAML that cards use, and what the Hub demands of it."""

import re
from typing import Any

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
KEY = re.compile(r"""^("[^"]*"|'[^']*'|[^\s#'"\[{&*!|>%@`-][^#]*?|-[^\s:]+)\s*:(?:\s+(.*)|)$""")
QUOTED = re.compile(r"""(?:"((?:[^"\\]|\\.)*)"|'((?:[^']|'')*)')(?:\s+\#.*)?""")


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
        ValueError: no mapping, or YAML beyond block mappings, lists, scalars and their flow forms.
    """
    if not text.startswith("---"):
        return {}
    found = BLOCK.match(text)
    if not found:
        raise ValueError("the block that --- opens is not closed")
    lines = [line for line in found[1].splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if any("\t" in line[: len(line) - len(line.lstrip())] for line in lines):
        raise ValueError("a tab in the indentation")
    if not lines:
        return {}
    reader = _Reader(lines)
    value = reader.block(_indent(lines[0]))
    if reader.at != len(lines):
        raise ValueError(f"line {reader.at + 1} is indented in no sensible way: {lines[reader.at]!r}")
    if not isinstance(value, dict):
        raise ValueError("wanted a mapping")
    return value


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


class _Reader:
    """Recursive descent over lines; `at` is the next one."""

    def __init__(self, lines: list[str]):
        self.lines, self.at = lines, 0

    def block(self, indent: int) -> Any:
        """The mapping or list whose lines begin at this column."""
        line = self.lines[self.at][indent:]
        return self._list(indent) if line == "-" or line.startswith("- ") else self._mapping(indent)

    def _here(self, indent: int) -> str | None:
        if self.at < len(self.lines) and _indent(self.lines[self.at]) == indent:
            return self.lines[self.at][indent:].rstrip()
        return None

    def _list(self, indent: int) -> list[Any]:
        items = []
        while (line := self._here(indent)) is not None and (line == "-" or line.startswith("- ")):
            rest = line[1:].lstrip()
            if rest and (KEY.match(rest) or rest.startswith("- ")):
                inner = indent + len(line) - len(rest)
                self.lines[self.at] = " " * inner + rest  # the mapping begins behind the dash
                items.append(self.block(inner))
            else:
                items.append(self._value(rest, indent))
        return items

    def _mapping(self, indent: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while (line := self._here(indent)) is not None and not line.startswith("- "):
            found = KEY.match(line)
            if not found:
                raise ValueError(f"wanted 'key: value', got {line!r}")
            key = _scalar(found[1])
            if key in pairs:
                raise ValueError(f"the key {key!r} twice")
            rest = found[2] or ""
            # a list may stand at its key's own column
            below = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
            flush = not rest and _indent(below) == indent and below[indent:].startswith("-")
            if flush:
                self.at += 1
            pairs[key] = self._list(indent) if flush else self._value(rest, indent)
        return pairs

    def _value(self, rest: str, indent: int) -> Any:
        """What follows a key or a dash: on this line, or deeper on the next ones."""
        self.at += 1
        deeper = self.at
        while deeper < len(self.lines) and _indent(self.lines[deeper]) > indent:
            deeper += 1
        if not rest:
            return self.block(_indent(self.lines[self.at])) if deeper > self.at else None
        more = [line.strip() for line in self.lines[self.at : deeper]]
        self.at = deeper
        if rest[0] in "|>" and rest.strip("|>+-0123456789") == "":
            return ("\n" if rest[0] == "|" else " ").join(more)
        return _scalar(" ".join([rest, *more]))


def _scalar(text: str) -> Any:
    text = text.strip()
    if text[:1] in "\"'":
        closed = QUOTED.fullmatch(text)
        if not closed:
            raise ValueError(f"a quote that is not closed: {text!r}")
        return closed[1].replace('\\"', '"') if closed[1] is not None else closed[2].replace("''", "'")
    text = re.sub(r"\s+#.*$", "", text)
    if text[:1] == "[" and text[-1:] == "]":
        return [_scalar(part) for part in text[1:-1].split(",") if part.strip()]
    if text[:1] == "{" and text[-1:] == "}":
        parts = [part.split(":", 1) for part in text[1:-1].split(",") if part.strip()]
        return {str(_scalar(part[0])): _scalar(part[1]) if len(part) > 1 else None for part in parts}
    if text[:1] in "[{&*!%@`" or ": " in text:
        raise ValueError(f"cannot read {text!r}")
    known: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}
    if text.lower() in known:
        return known[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
