"""The table of divisions: its figures, its files, its mistakes."""

import csv

import pytest
import timm

from timm_mix.commands import table as divide_table
from timm_mix.train.errors import UsageError, run_script


def test_rows_are_the_published_counts(capsys):
    divide_table.main(["efficientnetb0", "--split", "1", "2"])
    lines = capsys.readouterr().out.splitlines()
    # arXiv:2011.14660, counted on its code: 5,288,548 and 2 x 2,970,819 parameters, 385,814,752 and 2 x 198,941,040
    # multiply-accumulates
    assert lines[1].split() == ["efficientnetb0", "1", "1280", "5.289", "5.289", "1.000", "0.386", "0.386", "1.000"]
    assert lines[2].split() == ["efficientnetb0", "2", "920", "2.971", "5.942", "1.123", "0.199", "0.398", "1.031"]
    assert len({len(line) for line in lines}) == 1


def test_default_splits_are_those_that_the_family_takes():
    rows = divide_table._all_rows(["efficientnetb0_cifar"], None)
    assert [row.split for row in rows] == [1, 2, 4]


def test_csv_holds_the_exact_counts_of_parts_told_by_another_model(tmp_path):
    path = tmp_path / "new" / "table.csv"
    divide_table.main(["mobilenetv3_small_100", "--split", "2", "--csv", str(path)])
    (row,) = csv.DictReader(path.read_text().splitlines())
    model = timm.create_model("splitnet", backbone="mobilenetv3_small_100", split=2, device="meta")
    assert int(row["parameters"]) == 2 * int(row["part_parameters"]) == sum(p.numel() for p in model.parameters())
    assert int(row["width"]) == model.subnets[0].num_features


def test_an_undivided_network_needs_no_rule(capsys):
    divide_table.main(["mixer_s32_224", "--split", "1"])
    assert "mixer_s32_224  1" in capsys.readouterr().out


def test_picture_shows_width_and_cost(tmp_path):
    path = tmp_path / "plot.png"
    divide_table.main(["resnet18", "wrn16_4", "--split", "1", "2", "--plot", str(path)])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet5"], "timm knows no model 'resnet5'"),
        (
            ["resnet18", "--split", "3"],
            "cannot divide resnet18 into 3: resnet18 divides into S = 2, 4 or 8 parts, got S",
        ),
        (["resnet18", "--split", "0"], "cannot divide resnet18 into 0: split must be an integer >= 1, got 0"),
        (["mixer_s32_224"], "cannot divide mixer_s32_224 into 2: no division rule"),
        (["resnet18", "--split", "1", "--csv", "/dev/null/x.csv"], "cannot write /dev/null/x.csv"),
        (["resnet18", "--split", "1", "--plot", "/dev/null/x.png"], "cannot write /dev/null/x.png"),
    ],
)
def test_mistakes_are_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(UsageError, match=message):
        divide_table.main(argv)
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"^2$") as exit_:
        run_script(lambda: divide_table.main(argv))
    assert exit_.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
