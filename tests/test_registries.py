"""One line registers a method of one's own, which is then used by its name; what lacks something is refused."""

import numpy as np
import pytest
import timm
import timm.loss
import timm.task
import torch
from support.settings import cost_of
from torch import nn

import timm_mix
from timm_mix.card import METHODS
from timm_mix.drop_in import DropInError, Order, Seat
from timm_mix.functional.blocks import BLOCKS
from timm_mix.functional.plan import MixPlan
from timm_mix.mixers import MIXERS, Mixer
from timm_mix.models.divide import DIVISIONS
from timm_mix.tasks import MIX_BLOCKS, TASKS, Facts, MemberTask, MixingTask, Work
from timm_mix.train.settings.config import Config

B, K = 6, 5
SMALL = {"depth": 10, "widen_factor": 1}
REGISTRIES = {
    "task": (timm_mix.register_task, TASKS),
    "mixer": (timm_mix.register_mixer, MIXERS),
    "block": (timm_mix.register_block, BLOCKS),
    "Mix Block": (timm_mix.register_block, MIX_BLOCKS),
    "division": (timm_mix.register_division, DIVISIONS),
}


@pytest.fixture(autouse=True)
def _forgotten():
    """What a test registers, the next one does not see."""
    with TASKS.scoped(), MIXERS.scoped(), BLOCKS.scoped(), MIX_BLOCKS.scoped(), DIVISIONS.scoped():
        yield


class NoisyTask(MixingTask):
    """Learns images with noise on them."""

    facts = Facts(soft_labels=True)

    def __init__(self, model, criterion=None, *, sigma=0.1, **kwargs):
        super().__init__(model, criterion, **kwargs)
        self.sigma = sigma

    @classmethod
    def work(cls, model, image, settings):
        return Work(passes=1.5)

    def forward(self, input, target):
        logits = self.trainable_module(input + self.sigma * torch.randn_like(input))
        self.step += 1
        return {"loss": self.criterion(logits, target), "output": logits}


class Halves(Mixer):
    """The average of every image and its neighbour."""

    def plan(self, batch, size):
        return MixPlan(np.roll(np.arange(batch), 1), np.full(batch, 0.5))


class Negative:
    """A mixer that is nobody's subclass."""

    def __init__(self, *, num_classes, seed=0, label_smoothing=0.0, prob=1.0):
        self.num_classes, self.mixup_enabled, self.rng = num_classes, True, np.random.default_rng(seed)

    def __call__(self, x, y):
        return -x, y if y.ndim == 2 else nn.functional.one_hot(y, self.num_classes).float()


def left_half(kappa, shape, generator):
    """The columns left of kappa."""
    return (torch.arange(shape[3]) < kappa[:, None] * shape[3])[:, None, None].expand(-1, 1, shape[2], -1)


class EvenBlock(nn.Module):
    """A Mix Block that gives lam to every place, nearly."""

    def __init__(self, channels):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, features, partners, lam, size):
        own = (lam + self.shift).expand(len(features), 1, *size)
        return torch.stack([own, 1 - own], 1).float()


def narrower(match, split):
    return {"widen_factor": 1, "depth": int(match["depth"])}


TOYS = {"task": NoisyTask, "mixer": Halves, "block": left_half, "Mix Block": EvenBlock, "division": narrower}


def _batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, 3, 16, 16, generator=generator), torch.randint(K, (B,), generator=generator)


def _falls(task, steps=25):
    """Whether the loss on one batch falls."""
    optimizer = torch.optim.Adam(task.get_trainable_module().parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = task(*_batch())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[-1] < 0.8 * losses[0]


def _net(name="wrn16_2", **settings):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=K, **(settings or SMALL))


def _in_timms_seat(order):
    """The task that timm's script gets where it asks for its own."""
    with Seat(order).taken():
        return timm.task.ClassificationTask(_net(), nn.CrossEntropyLoss(), verbose=False)


def test_a_task_trains_by_name():
    timm_mix.register_task("noisy", NoisyTask)
    task = timm_mix.create_task("noisy", _net(), num_classes=K, sigma=0.01)
    assert _falls(task)
    seated = _in_timms_seat(Order("noisy", settings={"sigma": 0.2}))
    assert (type(seated), seated.sigma) == (NoisyTask, 0.2)
    assert _falls(seated)


def test_a_task_is_described_and_counted_by_what_it_says():
    timm_mix.register_task("noisy", NoisyTask)
    assert (METHODS["noisy"].title, METHODS["noisy"].about) == ("noisy", "Learns images with noise on them.")
    config = Config.of(model="wrn16_2", task="noisy")
    assert cost_of(config, num_classes=K, steps_per_epoch=3).relative_time == 1.5


def test_a_task_that_calls_its_criterion_with_soft_labels_says_so_before_the_first_step():
    timm_mix.register_task("noisy", NoisyTask)
    hard = timm.loss.LabelSmoothingCrossEntropy(0.1)
    with Seat(Order("noisy")).taken(), pytest.raises(DropInError, match="mixed labels need a criterion that takes"):
        timm.task.ClassificationTask(_net(), hard, verbose=False)


def test_a_task_that_shows_every_member_its_own_view_is_asked_for_their_number():
    @timm_mix.register_task("seen-apart")
    class Apart(MemberTask):
        facts = Facts(member_views=True)

        def forward(self, input, target):
            return {}

    assert Order("seen-apart", settings={"views": 2}).member_views
    with pytest.raises(DropInError, match="task mixmo has no setting 'views'"):
        Order("mixmo", settings={"views": 2})


@pytest.mark.parametrize("kind", [Halves, Negative])
def test_a_mixer_trains_by_name_and_a_switch_chooses_it(kind):
    timm_mix.register_mixer("own", kind)
    mixed, labels = timm_mix.create_mixer("own", num_classes=K, seed=3)(*_batch())
    assert (mixed.shape, labels.shape) == ((B, 3, 16, 16), (B, K))
    switch = timm_mix.create_mixer("switch", num_classes=K, mixers=["own", "cutmix"], weights=[1, 0])
    assert torch.equal(switch(*_batch())[0], mixed)
    assert _falls(_in_timms_seat(Order(mixer="own")))


@pytest.mark.parametrize("binary", [False, True])
def test_a_block_of_mixmo_trains_by_name(binary):
    timm_mix.register_block("left", left_half, binary=binary)
    model = _net("mixmo", backbone="wrn16_2", members=2, **SMALL)
    assert _falls(timm_mix.create_task("mixmo", model, num_classes=K, block="left", prob=1.0))
    partition = {"block": "left", "partition": True}
    if binary:
        timm_mix.create_task("mixmo", model, num_classes=K, **partition)
    else:
        with pytest.raises(ValueError, match=r"partition needs a binary block .*got 'left'"):
            timm_mix.create_task("mixmo", model, num_classes=K, **partition)


def test_a_mix_block_of_automix_trains_by_name():
    timm_mix.register_block("even", EvenBlock)
    task = timm_mix.create_task("automix", _net(), num_classes=K, block="even", reduction=4)
    assert isinstance(task.get_trainable_module().block, EvenBlock)
    assert _falls(task)


def test_a_division_makes_a_splitnet_and_goes_before_ours():
    ours = timm_mix.divide("wrn28_10", 2)
    timm_mix.register_division(r"wrn(?P<depth>\d+)_10", narrower)
    assert timm_mix.divide("wrn28_10", 2) == {"widen_factor": 1, "depth": 28} != ours
    assert timm_mix.divide("wrn28_10", 1) == {}
    model = timm.create_model("splitnet", backbone="wrn28_10", split=2, num_classes=K)
    assert model(_batch()[0]).shape == (B, K)
    timm_mix.register_division("wrn28_10", lambda match, split: {"widen_factor": split})  # the newest is asked first
    assert timm_mix.divide("wrn28_10", 3) == {"widen_factor": 3}


def test_what_was_registered_is_forgotten_after_its_scope():
    with DIVISIONS.scoped():
        timm_mix.register_division("mixer_b16_224", narrower)
    with pytest.raises(ValueError, match="no division rule for 'mixer_b16_224'"):
        timm_mix.divide("mixer_b16_224", 2)


@pytest.mark.parametrize("kind", REGISTRIES)
def test_registering_works_as_a_function_and_as_a_decorator(kind):
    register, registry = REGISTRIES[kind]
    assert register("one", TOYS[kind]) is TOYS[kind]
    assert register("two")(TOYS[kind]) is TOYS[kind]
    assert list(registry)[-2:] == ["one", "two"]
    assert registry["one"] == registry["two"]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_name_is_given_once(kind):
    register, _ = REGISTRIES[kind]
    register("one", TOYS[kind])
    with pytest.raises(ValueError, match=r"'one' is registered already \(.*\); take another name"):
        register("one", TOYS[kind])
    with pytest.raises(ValueError, match="must be text without spaces, got 'two words'"):
        register("two words", TOYS[kind])


class NoSwitch(Negative):
    def __init__(self, **shared):
        super().__init__(**shared)
        del self.mixup_enabled


class NoPlan(Mixer):
    pass


class Deaf(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, features):
        return features


@pytest.mark.parametrize(
    ("register", "name", "entry", "message"),
    [
        (timm_mix.register_task, "own", nn.Linear, "must be a subclass of timm_mix.tasks.MixingTask, got"),
        (timm_mix.register_task, "own", "mixmo", "must be a subclass of timm_mix.tasks.MixingTask, got 'mixmo'"),
        (timm_mix.register_task, "own", MemberTask, "must have a forward"),
        (timm_mix.register_task, "classification", NoisyTask, "'classification' is plain training; take another"),
        (timm_mix.register_mixer, "own", left_half, "must be a class, such as a subclass of timm_mix.mixers.Mixer"),
        (timm_mix.register_mixer, "own", nn.Identity, "mixup_enabled .* and rng .*got .* without mixup_enabled"),
        (timm_mix.register_mixer, "own", NoSwitch, "must have mixup_enabled .*without mixup_enabled"),
        (timm_mix.register_mixer, "own", NoPlan, "must come into being without settings of its own, got .*abstract"),
        (timm_mix.register_mixer, "own", dict[str, int], "must be a class"),
        (timm_mix.register_block, "own", lambda kappa: kappa, r"must take \(kappa, shape, generator\), got"),
        (timm_mix.register_block, "own", 3, r"must take \(kappa, shape, generator\), got 3"),
        (timm_mix.register_block, "own", dict, "must be a subclass of torch.nn.Module, got"),
        (timm_mix.register_block, "own", Deaf, r"must take \(features, partners, lam, size\)"),
        (timm_mix.register_division, "own(", narrower, r"division 'own\(' must be a regular expression: missing"),
        (timm_mix.register_division, "own", lambda name: {}, r"must take \(match, split\)"),
    ],
)
def test_what_lacks_something_is_refused_in_one_line(register, name, entry, message):
    with pytest.raises(ValueError, match=message) as error:
        register(name, entry)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: timm_mix.create_task("mixmoo", None, num_classes=K), "mixmo, .*got 'mixmoo'; did you mean mixmo"),
        (lambda: timm_mix.create_task(None, None, num_classes=K), "task must be one of mixmo, .*, got None$"),
        (lambda: timm_mix.create_mixer("cutmx", num_classes=K), "mixup, .*got 'cutmx'; did you mean cutmix"),
        (lambda: BLOCKS.find("cowl"), "block must be one of linear, .*got 'cowl'; did you mean cow"),
        (lambda: MIX_BLOCKS.find("samx"), "block must be one of automix, samix, got 'samx'; did you mean samix"),
        (lambda: timm_mix.divide("resnt50", 2), "no division rule for 'resnt50'.*did you mean resnet50"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_one_that_was_meant(ask, message):
    with pytest.raises(ValueError, match=message) as error:
        ask()
    assert "\n" not in str(error.value)


def test_a_division_that_is_not_known_names_what_was_registered():
    timm_mix.register_division("mynet[0-9]", narrower)
    with pytest.raises(ValueError, match=r"and what was registered: mynet\[0-9\]"):
        timm_mix.divide("mixer_b16_224", 2)
