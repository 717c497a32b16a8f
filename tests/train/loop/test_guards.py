"""What a run refuses: figures that are not finite, other classes; and what it may change."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.image_files import write_images, write_tar
from torch import nn

from timm_mix.train.data.sources import open_dataset
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.guards import FREE, LossGuard, check_classes, check_run
from timm_mix.train.loop.signals import Agreement
from timm_mix.train.settings.config import Config

# timm hands PIL an open file and leaves closing it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


class TestLossGuard:
    def guard(self, *losses):
        guard = LossGuard(Agreement(1))
        for update, loss in enumerate(losses):
            guard.see(update, torch.tensor(loss))
        return guard

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_the_first_bad_loss_and_the_last_finite_one_are_told(self, bad):
        guard = self.guard(2.5, 1.25, bad, 7.0, math.nan)
        line = rf"the loss of update 3 is {bad} \(last finite loss: 1.25\); try a lower --lr"
        with pytest.raises(UsageError, match=line) as caught:
            guard.check()
        assert "\n" not in str(caught.value)

    def test_the_last_finite_loss_may_be_from_before_the_last_check(self):
        guard = self.guard(2.5)
        guard.check()
        assert len(guard) == 0
        guard.see(1, torch.tensor(math.nan))
        with pytest.raises(UsageError, match=r"the loss of update 2 is nan \(last finite loss: 2.5\)"):
            guard.check()

    def test_there_may_be_no_finite_loss(self):
        with pytest.raises(UsageError, match=r"the loss of update 1 is nan \(last finite loss: none\)"):
            self.guard(math.nan).check()

    @pytest.mark.parametrize("name", ["weight", "running_var"])
    def test_weights_and_statistics_are_looked_at_on_request(self, name):
        norm = nn.BatchNorm1d(3)
        guard = self.guard(2.5)
        guard.check(norm)
        getattr(norm, name).data[1] = math.inf
        guard.check()
        with pytest.raises(UsageError, match=r"the loss is finite, but the weights are not \(last finite loss: 2.5\)"):
            guard.check(norm)

    def test_another_processs_loss_stops_this_one(self):
        guard = self.guard(2.5)
        guard.agreement.largest = lambda number: max(number, 2)
        with pytest.raises(UsageError, match="the loss is not finite on another process"):
            guard.check()


class TestCheckRun:
    made_with = Config.of().flat()

    @staticmethod
    def check(made_with, config, made_on=None, facts=None):
        check_run(Path("a.pt"), made_with, config, made_on or {}, facts or {})

    @pytest.mark.parametrize(
        ("name", "value"),
        [("lr", 0.07), ("seed", 7), ("batch_size", 7), ("mix", {"alpha": 7}), ("task", "mixmo"), ("amp", True)],
    )
    def test_a_setting_that_changes_what_is_learnt_is_refused(self, name, value):
        was = self.made_with[name]
        line = rf"a\.pt was made with {name}={was}, got {name}=.*; resume with the same, or start anew"
        of = {"task": "recursivemix"} if name == "mix" else {}
        with pytest.raises(UsageError, match=line.replace("{", r"\{").replace("}", r"\}")):
            self.check({**self.made_with, **of}, Config.of(**of, **{name: value}))

    @pytest.mark.parametrize("name", sorted(FREE))
    def test_a_setting_that_does_not_is_free(self, name):
        self.check({**self.made_with, name: "another"}, Config.of())

    @pytest.mark.parametrize("stream", ["wds/x", "hfids/x", "tfds/x"])
    def test_the_workers_of_a_stream_draw_and_are_not_free(self, stream):
        made_with = Config.of(dataset=stream, workers=2).flat()
        with pytest.raises(UsageError, match=r"was made with workers=2, got workers=3; resume with the same"):
            self.check(made_with, Config.of(dataset=stream, workers=3))

    def test_a_setting_that_the_checkpoint_does_not_know_had_its_default(self):
        made_with = {name: value for name, value in self.made_with.items() if name not in ("lr", "mix")}
        self.check(made_with, Config.of())
        with pytest.raises(UsageError, match=r"was made with lr=0\.05, got lr=0\.07"):
            self.check(made_with, Config.of(lr=0.07))

    def test_another_number_of_anything_is_refused(self):
        self.check(self.made_with, Config.of(), {"processes": 2}, {"processes": 2, "train_images": 5})
        with pytest.raises(UsageError, match=r"a\.pt was made with 2 processes, got 3 processes; resume with the same"):
            self.check(self.made_with, Config.of(), {"processes": 2}, {"processes": 3})

    def test_all_that_differs_is_said_at_once(self):
        line = (
            "was made with batch_size=64, 2 processes, 8 train_images, got batch_size=7, 3 processes, 9 train_images;"
        )
        made_on, facts = {"processes": 2, "train_images": 8}, {"processes": 3, "train_images": 9}
        with pytest.raises(UsageError, match=line):
            self.check(self.made_with, Config.of(batch_size=7), made_on, facts)


class TestCheckClasses:
    class Labelled:
        def __init__(self, *targets):
            self.targets = list(targets)

    def test_a_model_with_other_classes_than_the_data_is_refused(self):
        model = nn.Identity()
        model.num_classes = 7
        check_classes(model, 7)
        with pytest.raises(UsageError, match="the model must predict the 5 classes of the data, got 7; set the same"):
            check_classes(model, 5)

    @pytest.mark.parametrize("labels", [(0, 4, 5), (-1, 3)])
    def test_a_label_outside_the_classes_is_refused(self, labels):
        check_classes(nn.Identity(), 5, training=self.Labelled(0, 4))
        line = rf"the labels of the validation data must lie in 0\.\.4, got {min(labels)}\.\.{max(labels)}; correct"
        with pytest.raises(UsageError, match=line):
            check_classes(nn.Identity(), 5, training=self.Labelled(0, 4), validation=self.Labelled(*labels))

    def test_labels_of_folders_tars_and_digits_are_read(self, tmp_path):
        sets = {
            "folder": open_dataset("", write_images(tmp_path / "f", {"ant": 2, "bee": 1, "cat": 1}), "val"),
            "tar": open_dataset("", write_tar(tmp_path / "x.tar", {"ant": 2, "bee": 3, "cat": 1}), "train"),
            "digits": open_dataset("digits", None, "val"),
        }
        for name, dataset in sets.items():
            most = 9 if name == "digits" else 2
            check_classes(nn.Identity(), most + 1, **{name: dataset})
            with pytest.raises(UsageError, match=rf"the labels of the {name} data must lie in 0\.\.{most - 1}, got 0"):
                check_classes(nn.Identity(), most, **{name: dataset})

    def test_data_that_list_no_labels_pass(self):
        check_classes(nn.Identity(), 5, training=np.zeros(3), validation=object())
