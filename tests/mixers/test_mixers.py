"""Mixers in the seat of timm's Mixup."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup as TimmMixup

import timm_mix
from timm_mix.functional.plan import apply_mix, mix_targets, plan_cutmix, plan_mixup, plan_resizemix
from timm_mix.mixers import MIXERS

B, C, H, W, K = 6, 3, 8, 10, 13


def _mixer(name, **settings):
    return timm_mix.create_mixer(name, num_classes=K, **settings)


def _batch(batch=B, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, C, H, W, generator=generator), torch.randint(K, (batch,), generator=generator)


# the function that each mixer is the shell of
DRAWS = {
    "mixup": lambda rng: plan_mixup(B, rng=rng, mode="elem"),
    "cutmix": lambda rng: plan_cutmix(B, (H, W), rng=rng, mode="elem"),
    "resizemix": lambda rng: plan_resizemix(B, (H, W), rng=rng, mode="elem"),
}


def test_every_mixer_that_draws_itself_has_its_function():
    assert {*DRAWS, "switch"} == set(MIXERS)


@pytest.mark.parametrize(("name", "draw"), DRAWS.items(), ids=DRAWS)
def test_a_mixer_is_its_function(name, draw):
    x, y = _batch()
    mixed, targets = _mixer(name, seed=3, mode="elem", label_smoothing=0.1)(x, y)
    plan = draw(np.random.default_rng(3))
    assert torch.equal(mixed, apply_mix(x, plan))
    assert torch.equal(targets, mix_targets(y, plan, K, 0.1))


@pytest.mark.parametrize("batch", [6, 7])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("name", ["mixup", "cutmix", "resizemix"])
def test_prob_is_the_share_of_mixed_batches_pairs_or_samples(name, mode, batch):
    """One uniform number decides per batch or pair (i, B - 1 - i): the twin draws the same ones, sample by sample."""
    prob, steps, size = 0.3, 400, (64, 64)
    mixer, twin = _mixer(name, seed=5, prob=prob, mode=mode), np.random.default_rng(5)
    shares = []
    for _ in range(steps):
        lam = mixer.plan(batch, size).lam
        alpha = {"mixup": 0.8}.get(name, 1.0)
        drawn, chance = twin.beta(alpha, alpha, size=batch), twin.random(batch)
        first = {"batch": [0] * batch, "pair": [min(i, batch - 1 - i) for i in range(batch)], "elem": range(batch)}
        mixed = np.array([chance[i] < prob for i in first[mode]])
        assert (lam[~mixed] == 1).all()
        if name != "cutmix":
            assert (lam[mixed] < 1).all()
        else:  # a box of less than two pixels is empty
            assert (lam[mixed & (drawn[list(first[mode])] < 0.99)] < 1).all()
            twin.integers(size[0], size=batch), twin.integers(size[1], size=batch)
        if name == "resizemix":
            twin.uniform(0.1, 0.8, size=batch), twin.random(batch), twin.random(batch)
        shares.append(mixed[: {"batch": 1, "pair": (batch + 1) // 2, "elem": batch}[mode]].mean())
    assert mixer.rng.bit_generator.state == twin.bit_generator.state
    assert np.mean(shares) == pytest.approx(prob, abs=3 * (prob * (1 - prob) / steps) ** 0.5)


@pytest.mark.parametrize("mode", ["batch", "pair"])
def test_prob_zero_mixes_nothing_and_prob_one_everything(mode):
    for name in ("mixup", "resizemix"):
        for prob in (0.0, 1.0):
            mixer = _mixer(name, seed=1, prob=prob, mode=mode)
            lam = np.stack([mixer.plan(5, (32, 32)).lam for _ in range(100)])
            assert (lam < 1).mean() == prob


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_given_the_same_lam_and_boxes_timm_mixes_alike(kind, mode, monkeypatch):
    """timm pairs i with B - 1 - i, pastes the partner's place, and corrects lam; the draws differ."""
    x, y = _batch()
    ours = _mixer(kind, seed=1, mode=mode, label_smoothing=0.1)
    plan = type(ours).plan(_mixer(kind, seed=1, mode=mode, label_smoothing=0.1), B, (H, W))
    alphas = {"mixup_alpha": 0.8 * (kind == "mixup"), "cutmix_alpha": 1.0 * (kind == "cutmix")}
    theirs = TimmMixup(**alphas, mode=mode, label_smoothing=0.1, num_classes=K)
    draws = iter(range(B))
    monkeypatch.setattr(
        "timm.data.mixup.cutmix_bbox_and_lam",
        lambda *args, **kwargs: (plan.boxes[i := next(draws)], plan.lam[i]) if plan.boxes is not None else None,
    )
    lam = np.where(plan.lam < 1, plan.lam, 0.999999)  # timm skips a sample whose lam is 1
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (float(lam[0]), kind == "cutmix"))
    monkeypatch.setattr(
        theirs, "_params_per_elem", lambda n: (lam[:n].astype(np.float32), np.full(n, kind == "cutmix"))
    )
    expected, labels = theirs(x.clone(), y)
    mixed, targets = ours(x, y)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(targets, labels, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("name", DRAWS)
def test_any_batch_size_is_taken(name, mode, batch):
    x, y = _batch(batch)
    mixed, targets = _mixer(name, mode=mode)(x, y)
    assert mixed.shape == x.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(batch))


@pytest.mark.parametrize("name", MIXERS)
def test_switched_off_a_mixer_lets_the_images_pass(name):
    x, y = _batch()
    mixer = _mixer(name)
    mixer.mixup_enabled = False
    same, targets = mixer(x, y)
    assert same is x
    assert torch.equal(targets, F.one_hot(y, K).float())


@pytest.mark.parametrize("name", MIXERS)
def test_a_loaded_state_draws_on_exactly(name):
    x, y = _batch()
    one = _mixer(name, seed=5)
    for _ in range(3):
        one(x, y)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two = _mixer(name, seed=6)
    two.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        a, b = one(x, y), two(x, y)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_the_switch_takes_its_mixers_as_often_as_weighted():
    switch = _mixer("switch", mixers={"mixup": {"alpha": 0.2}, "resizemix": {}, "cutmix": {}}, weights=[2, 1, 1])
    plans = [switch.plan(B, (H, W)) for _ in range(2000)]
    kinds = [("resizemix" if p.resized else "cutmix") if p.boxes is not None else "mixup" for p in plans]
    for kind, share in (("mixup", 0.5), ("resizemix", 0.25), ("cutmix", 0.25)):
        assert np.mean([k == kind for k in kinds]) == pytest.approx(share, abs=3 * np.sqrt(share * (1 - share) / 2000))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mixxup", {}, "mixer must be one of mixup, cutmix, resizemix, switch, got 'mixxup'; did you mean mixup"),
        ("mixup", {"alhpa": 1}, "mixer mixup has no setting 'alhpa'; it has alpha, mode"),
        ("cutmix", {"alpha": -1}, "alpha must be > 0 and finite, got -1"),
        ("mixup", {"prob": 2.0}, r"prob must be in \[0, 1\], got 2.0"),
        ("mixup", {"label_smoothing": 1}, r"label_smoothing must be in \[0, 1\), got 1"),
        ("resizemix", {"scope": (0, 1)}, "scope must be 0 < low"),
        ("switch", {"mixers": ["fmix"]}, r"mixers must be some of mixup, cutmix, resizemix, got \['fmix'\]"),
        ("switch", {"weights": [1]}, "weights must be 2 numbers >= 0, not all 0, got"),
    ],
)
def test_wrong_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        _mixer(name, **settings)


def test_a_bad_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="num_classes must be an integer >= 1, got 0"):
        timm_mix.create_mixer("mixup", num_classes=0)
