"""The one writer of markdown tables."""

import pytest

from timm_mix.card.table import markdown_table


def test_a_table_is_its_header_a_ruler_and_a_line_per_row():
    text = markdown_table(["name", "MB"], [["a", 1.5], ["b", 20]], align="lr")
    assert text == "| name | MB |\n| --- | ---: |\n| a | 1.5 |\n| b | 20 |"


def test_columns_are_left_aligned_unless_told():
    assert markdown_table(["", "x"], []) == "|  | x |\n| --- | --- |"


@pytest.mark.parametrize("align", ["l", "lrr", "lc"])
def test_an_alignment_that_does_not_fit_is_refused(align):
    with pytest.raises(ValueError, match=f"align must be 2 letters l or r, one per column, got '{align}'"):
        markdown_table(["a", "b"], [], align)


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a row must have 2 cells, one per column, got 1: \['x'\]"):
        markdown_table(["a", "b"], [["x"]])
