"""Boxes and intervals: where they lie, what they cover."""

import numpy as np
import pytest
import torch

from timm_mix.functional.boxes import box_masks, boxes_at, draw_boxes, draw_intervals, interval_masks, lam_of

B, H, W = 5, 11, 7


def test_boxes_equal_a_loop_over_samples():
    kappa = np.random.default_rng(1).random(B)
    boxes = draw_boxes(kappa, (H, W), rng=np.random.default_rng(2))
    twin = np.random.default_rng(2)
    rows, cols = twin.integers(H, size=B), twin.integers(W, size=B)
    for b in range(B):
        half_h, half_w = int(H * kappa[b] ** 0.5) // 2, int(W * kappa[b] ** 0.5) // 2
        expected = [
            max(rows[b] - half_h, 0),
            min(rows[b] + half_h, H),
            max(cols[b] - half_w, 0),
            min(cols[b] + half_w, W),
        ]
        assert boxes[b].tolist() == expected


def test_an_odd_side_gives_an_even_box():
    """Published example: kappa .65 at 32 pixels is a side of int(32 sqrt(.65)) = 25, and a box of 24."""
    boxes = draw_boxes(np.full(400, 0.65), (32, 32), rng=np.random.default_rng(0))
    heights = boxes[:, 1] - boxes[:, 0]
    assert heights.max() == 24


@pytest.mark.parametrize(("kappa", "published"), [(0.2, 0.151), (0.5, 0.322), (0.8, 0.465)])
def test_mean_area_of_the_cut_equals_the_published_code(kappa, published):
    """Mean of the first mask over 2,000 draws at 32x32, measured in the published code of arXiv:2103.06132."""
    boxes = draw_boxes(np.full(2000, kappa), (32, 32), rng=np.random.default_rng(0))
    areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / 32**2
    assert abs(areas.mean() - published) < 3 * areas.std() / 2000**0.5 * 2**0.5  # both are means of 2,000 draws


def test_box_masks_are_one_inside_and_zero_outside():
    boxes = np.array([[0, 11, 0, 7], [2, 5, 1, 4], [3, 3, 2, 6], [10, 11, 6, 7], [0, 1, 0, 7]])
    masks = box_masks(torch.from_numpy(boxes), (H, W))
    assert masks.shape == (5, 1, H, W)
    for mask, (top, bottom, left, right) in zip(masks[:, 0], boxes, strict=True):
        twin = torch.zeros(H, W)
        twin[top:bottom, left:right] = 1
        assert torch.equal(mask, twin)


def test_boxes_at_drawn_centres_are_the_drawn_boxes():
    kappa, twin = np.linspace(0, 1, B), np.random.default_rng(2)
    boxes = draw_boxes(kappa, (H, W), rng=np.random.default_rng(2))
    assert np.array_equal(boxes_at([twin.integers(H, size=B), twin.integers(W, size=B)], kappa, (H, W)), boxes)


def test_lam_is_the_share_of_pixels_outside_the_box():
    boxes = draw_boxes(np.linspace(0, 1, B), (H, W), rng=np.random.default_rng(3))
    outside = 1 - box_masks(torch.from_numpy(boxes), (H, W)).double().mean((1, 2, 3))
    np.testing.assert_allclose(lam_of(boxes, (H, W)), outside.numpy(), rtol=1e-6)
    assert lam_of(np.array([[0, 0, 3, 5], [0, H, 0, W]]), (H, W)).tolist() == [1, 0]


def test_intervals_hold_the_first_or_the_last_places():
    kappa = np.full(400, 0.3)
    intervals = draw_intervals(kappa, 11, rng=np.random.default_rng(5))
    assert {tuple(interval) for interval in intervals.tolist()} == {(0, 3), (4, 11)}  # int(3.3), 11 - int(7.7)
    masks = interval_masks(torch.from_numpy(intervals), 11)
    for mask, (first, last) in zip(masks.tolist(), intervals.tolist(), strict=True):
        assert mask == [float(first <= place < last) for place in range(11)]
