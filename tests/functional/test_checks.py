"""The guards: what passes, and the one line for what does not."""

import math

import pytest

from timm_mix.functional import checks

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("guard", "good", "bad", "wanted"),
    [
        ("check_positive", (1, 0.5, 1e-9), (0, -1.0, INF, NAN, True, "1", None), "> 0 and finite"),
        ("check_not_negative", (0, 0.0, 7), (-1e-9, INF, NAN, False, "0"), ">= 0 and finite"),
        ("check_probability", (0, 1, 0.5), (-0.1, 1.1, NAN, True, False, [0.5]), r"in \[0, 1\]"),
        ("check_share", (1, 1e-9), (0, 1.1, NAN, True, "half"), r"in \(0, 1\]"),
        ("check_count", (1, 7), (0, -1, 1.0, True, None, "1"), "an integer >= 1"),
    ],
)
def test_a_guard_passes_its_numbers_and_names_any_other(guard, good, bad, wanted):
    check = getattr(checks, guard)
    for value in good:
        check("alpha", value)
    for value in bad:
        with pytest.raises(ValueError, match=rf"^alpha must be {wanted}, got ") as caught:
            check("alpha", value)
        assert str(caught.value).endswith(f"got {value!r}")


def test_a_count_may_start_elsewhere_and_be_left_out():
    for value in (0, 3, None):
        checks.check_count("off_epoch", value, least=0, optional=True)
    with pytest.raises(ValueError, match=r"^off_epoch must be an integer >= 0 \(or None\), got -1$"):
        checks.check_count("off_epoch", -1, least=0, optional=True)
    with pytest.raises(ValueError, match=r"^off_epoch must be an integer >= 0 \(or None\), got True$"):
        checks.check_count("off_epoch", True, least=0, optional=True)


@pytest.mark.parametrize("choices", [("js", "kl"), {"js": 1, "kl": 2}])
def test_a_choice_is_one_of_the_names(choices):
    checks.check_choice("divergence", "kl", choices)
    for value in ("k", None, 1, ["kl"]):
        with pytest.raises(ValueError, match=r"^divergence must be one of js, kl, got ") as caught:
            checks.check_choice("divergence", value, choices)
        assert str(caught.value).endswith(f"got {value!r}")
