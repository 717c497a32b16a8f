"""CITATION.cff: the software of this version, and the papers as the model cards cite them."""

import re
import unicodedata
from pathlib import Path

import pytest
import yaml

from timm_mix.card import METHODS
from timm_mix.version import __version__

CITATION = yaml.safe_load((Path(__file__).resolve().parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
PAPERS = {method.arxiv: method for method in METHODS.values() if method.card}
REFERENCES = {
    identifier["value"].removeprefix("arXiv:"): reference
    for reference in CITATION["references"]
    for identifier in reference["identifiers"]
}


def _plain(text):
    """Letters without accents, however they are written."""
    without_tex = re.sub(r"[{}]|\\'", "", text)
    return unicodedata.normalize("NFKD", without_tex).encode("ascii", "ignore").decode()


def test_it_has_what_the_format_asks_for_and_the_version_that_is_installed():
    assert CITATION["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(CITATION)
    assert (CITATION["title"], CITATION["version"], CITATION["license"]) == ("timm_mix", __version__, "Apache-2.0")
    assert all({"type", "title", "authors", "year"} <= set(reference) for reference in CITATION["references"])


def test_it_names_every_paper_that_has_a_card_and_no_other():
    assert len(CITATION["references"]) == len(REFERENCES) == 4
    assert set(REFERENCES) == set(PAPERS)
    assert all(reference["url"].endswith(f"/abs/{number}") for number, reference in REFERENCES.items())


@pytest.mark.parametrize("number", PAPERS)
def test_title_year_and_authors_are_those_of_the_cards(number):
    fields = dict(re.findall(r"^ *(\w+) *= \{(.*)\},$", PAPERS[number].bibtex, flags=re.MULTILINE))
    reference = REFERENCES[number]
    assert (reference["title"], str(reference["year"])) == (_plain(fields["title"]), fields["year"])
    authors = [_plain(f"{author['family-names']}, {author['given-names']}") for author in reference["authors"]]
    assert authors == _plain(fields["author"]).split(" and ")
