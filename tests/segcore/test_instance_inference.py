"""Scores of proposals against their definition, pixel by pixel; and what becomes of pixels and images without any."""

import logging
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segcore import instance_inference
from segcore.inference import InferenceConfig, class_probabilities, predict
from segcore.instance_inference import CROPS_PER_PASS, Aggregate, boxes_to_show, proposal_scores
from segcore.proposals import ProposalConfig, Proposals, enlarge_box
from tests.segcore.test_inference import MEAN, NUM_CLASSES, STD, PixelNetwork

CROP_PX = 8
HEIGHT, WIDTH = 23, 37
CONFIG = InferenceConfig(mode="proposals", crop_px=CROP_PX)


def network(crops_K3ss: Tensor) -> Tensor:
    """Scores from a pixel's colour and its place in the crop, so that every box says something else; of both signs."""
    ramp_ss = torch.linspace(-1, 1, CROP_PX)[:, None] * torch.linspace(0, 2, CROP_PX)
    colours_CK = torch.linspace(-2, 1, NUM_CLASSES * 3).view(NUM_CLASSES, 3, 1, 1)
    return F.conv2d(crops_K3ss, colours_CK) + torch.arange(NUM_CLASSES).view(1, -1, 1, 1) * ramp_ss - 1


def random_image(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(3))


def random_boxes(count: int, *, side_px: int | None = None) -> NDArray[np.int32]:
    """In the upper 20 of 23 rows, so that some pixels are outside of all."""
    rng = np.random.default_rng(5)
    heights = rng.integers(1, 20, count) if side_px is None else np.full(count, side_px)
    widths = rng.integers(1, WIDTH, count) if side_px is None else np.full(count, side_px)
    top, left = rng.integers(0, 21 - heights), rng.integers(0, WIDTH + 1 - widths)
    return np.stack([top, left, top + heights, left + widths], axis=1).astype(np.int32)


def show(monkeypatch: pytest.MonkeyPatch, boxes_K4: NDArray[np.int32]) -> None:
    """Let every image have these proposals."""
    found = Proposals(boxes_K4=boxes_K4, scores_K=np.ones(len(boxes_K4), np.float32))
    monkeypatch.setattr(instance_inference, "propose", lambda image_HW3, config: found)


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_scores_are_the_maximum_or_the_mean_over_the_boxes_that_cover_a_pixel(aggregate: Aggregate) -> None:
    image_3HW, boxes_K4 = random_image(), random_boxes(CROPS_PER_PASS + 3, side_px=CROP_PX)
    found_CHW = proposal_scores(network, image_3HW, boxes_K4, crop_px=CROP_PX, aggregate=aggregate)
    said: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for top, left, bottom, right in boxes_K4.tolist():
        scores_Css = network(image_3HW[None, :, top:bottom, left:right])[0]
        for row in range(top, bottom):
            for column in range(left, right):
                said[row, column].append(scores_Css[:, row - top, column - left])
    assert max(map(len, said.values())) > 2 and len(said) < HEIGHT * WIDTH
    for (row, column), scores in said.items():
        stacked = torch.stack(scores)
        expected_C = stacked.amax(dim=0) if aggregate == "max" else stacked.mean(dim=0)
        torch.testing.assert_close(found_CHW[:, row, column], expected_C)
    lost = [place for place, scores in said.items() if (torch.stack(scores).amax(dim=0) < 0).any()]
    assert lost, "negative maxima, which a canvas of zeros loses"


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_the_order_of_the_proposals_does_not_matter(aggregate: Aggregate) -> None:
    image_3HW, boxes_K4 = random_image(), random_boxes(2 * CROPS_PER_PASS + 1)
    order = np.random.default_rng(0).permutation(len(boxes_K4))
    first, second = (
        proposal_scores(network, image_3HW, boxes, crop_px=CROP_PX, aggregate=aggregate)
        for boxes in (boxes_K4, boxes_K4[order])
    )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_outside_every_box_there_is_background_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, aggregate: Aggregate
) -> None:
    boxes_K4 = np.array([[2, 3, 10, 20], [5, 15, 18, 30]], np.int32)
    show(monkeypatch, boxes_K4)
    config = replace(CONFIG, aggregate=aggregate, proposals=ProposalConfig(enlarge=1))
    model = PixelNetwork().eval()
    images = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found_CHW = class_probabilities(model, images, mean=MEAN, std=STD, config=config)[0]
    outside_HW = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    for top, left, bottom, right in boxes_K4.tolist():
        outside_HW[top:bottom, left:right] = False
    assert (found_CHW[0][outside_HW] == 1).all() and (found_CHW[1:, outside_HW] == 0).all()
    assert (found_CHW[:, ~outside_HW] > 0).all()
    torch.testing.assert_close(found_CHW.sum(dim=0), torch.ones(HEIGHT, WIDTH))
    predicted = predict(model, images, mean=MEAN, std=STD, config=config)
    assert (predicted.predictions_NHW[0][outside_HW] == 0).all()
    np.testing.assert_array_equal(predicted.predictions_NHW[0], found_CHW.argmax(dim=0).numpy())
    assert np.isfinite([predicted.mean_entropy_N, predicted.mean_margin_N, predicted.mean_confidence_N]).all()
    assert predicted.num_inputs_N.tolist() == [2]


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_one_proposal_of_the_whole_image_is_plain_inference_at_that_size(
    monkeypatch: pytest.MonkeyPatch, aggregate: Aggregate
) -> None:
    model = PixelNetwork().eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    show(monkeypatch, np.array([[0, 0, 16, 16]], np.int32))
    config = replace(CONFIG, aggregate=aggregate, crop_px=16)
    found = class_probabilities(model, images, mean=MEAN, std=STD, config=config)
    plain = class_probabilities(model, images, mean=MEAN, std=STD, config=InferenceConfig())
    torch.testing.assert_close(found, plain)
    assert model.sizes == [(16, 16)] * 3  # two images one by one; both at once


def test_crops_and_scores_are_resized_smoothly() -> None:
    image_3HW, boxes_14 = random_image(), np.array([[0, 0, HEIGHT, WIDTH]], np.int32)
    found_CHW = proposal_scores(network, image_3HW, boxes_14, crop_px=CROP_PX, aggregate="max")
    settings: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    crop = F.interpolate(image_3HW[None], (CROP_PX, CROP_PX), **settings)
    torch.testing.assert_close(found_CHW, F.interpolate(network(crop), (HEIGHT, WIDTH), **settings)[0])


def test_proposals_are_enlarged_within_the_image_and_the_whole_image_may_join_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boxes_K4 = np.array([[0, 0, 10, 20], [5, 10, 15, 30]], np.int32)
    show(monkeypatch, boxes_K4)
    image_HW3 = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    found = boxes_to_show(image_HW3, ProposalConfig(enlarge=1.2), whole_image=False, image_id="")
    assert found.tolist() == [list(enlarge_box(box, 1.2, HEIGHT, WIDTH)) for box in boxes_K4]
    assert found.tolist() == [[0, 0, 11, 22], [4, 8, 16, 32]]
    both = boxes_to_show(image_HW3, ProposalConfig(), whole_image=True, image_id="")
    assert both.tolist() == [[0, 0, HEIGHT, WIDTH], *found.tolist()] and both.dtype == np.int32


def test_an_image_without_proposals_is_shown_whole_and_that_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    model = PixelNetwork().eval()
    images = torch.full((2, 3, 40, 60), 77, dtype=torch.uint8)
    caplog.set_level(logging.WARNING)
    found = predict(model, images, mean=MEAN, std=STD, config=CONFIG, image_ids=["plain/1", "plain/2"])
    whole = predict(model, images, mean=MEAN, std=STD, config=InferenceConfig())
    np.testing.assert_array_equal(found.predictions_NHW, whole.predictions_NHW)
    assert found.num_inputs_N.tolist() == [1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"no object proposals in image '{name}': the network is shown the whole image"
        for name in ("plain/1", "plain/2")
    ]
    caplog.clear()
    predict(model, images[:1], mean=MEAN, std=STD, config=CONFIG)
    assert "no object proposals in an image of 40 x 60 pixels" in caplog.text


def test_objects_of_one_colour_get_that_colours_class_through_real_proposals() -> None:
    image_3HW = torch.full((3, 120, 160), 128, dtype=torch.uint8)
    things = (((20, 60), (15, 70), (250, 10, 10)), ((50, 110), (95, 140), (10, 10, 250)))
    for (top, bottom), (left, right), colour in things:
        image_3HW[:, top:bottom, left:right] = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
    model = PixelNetwork().eval()
    config = InferenceConfig(mode="proposals", crop_px=64, whole_image=True)
    found = predict(model, image_3HW[None], mean=MEAN, std=STD, config=config)
    expected = predict(model, image_3HW[None], mean=MEAN, std=STD, config=InferenceConfig()).predictions_NHW[0]
    for (top, bottom), (left, right), _ in things:
        middle = (slice(top + 10, bottom - 10), slice(left + 10, right - 10))
        np.testing.assert_array_equal(found.predictions_NHW[0][middle], expected[middle])
    assert 3 <= found.num_inputs_N[0] <= 51
    assert len(set(expected.ravel())) > 1


def test_images_of_a_batch_have_their_own_proposals() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (3, 3, 50, 60), dtype=torch.uint8, generator=generator)
    images[1] = 30
    model = PixelNetwork().eval()
    together = predict(model, images, mean=MEAN, std=STD, config=CONFIG)
    for index in range(3):
        alone = predict(model, images[index : index + 1], mean=MEAN, std=STD, config=CONFIG)
        np.testing.assert_array_equal(together.predictions_NHW[index], alone.predictions_NHW[0])
        assert together.num_inputs_N[index] == alone.num_inputs_N[0]
    assert together.num_inputs_N[1] == 1
