"""Inference against probabilities computed the long way: whole tensors, no strips, no tricks.

Statistics of a class map: test_class_maps.
"""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segcore import class_maps
from segcore.class_maps import ClassMap
from segcore.dense_crf import DenseCRFConfig, Method
from segcore.dense_crf import refine as refine_by_crf
from segcore.inference import (
    InferenceConfig,
    Member,
    class_probabilities,
    inference_from_dict,
    inference_to_dict,
    mean_probabilities,
    predict,
    predict_ensemble,
    prepare,
    working_size,
)
from segcore.models import DeepLabV3PlusConfig, SegmentationOutput, build_model
from segcore.proposals import ProposalConfig
from tests.segcore.test_class_maps import check

MEAN = (0.4, 0.5, 0.6)
STD = (0.2, 0.25, 0.3)
NUM_CLASSES = 5
CRF = DenseCRFConfig(iterations=3, theta_alpha=5.0, theta_beta=30.0)


class PixelNetwork(nn.Module):
    """Scores each pixel from its colour alone, so that windows and whole images must agree."""

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(num_classes, 3, 1, 1, generator=generator))
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        self.sizes.append((images_N3HW.shape[-2], images_N3HW.shape[-1]))
        return SegmentationOutput(logits_NCHW=F.conv2d(images_N3HW, self.weight))


class PositionNetwork(nn.Module):
    """Class 1 is likelier the further right a pixel lies in what the network is shown; not symmetric."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, images_N3HW: Tensor) -> SegmentationOutput:
        count, _, height, width = images_N3HW.shape
        ramp = torch.linspace(-2, 2, width).expand(count, 1, height, width)
        return SegmentationOutput(logits_NCHW=torch.cat([-ramp, ramp], dim=1))


def _images(count: int = 2, height: int = 23, width: int = 37) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def _naive_probabilities(model: nn.Module, images_N3HW: Tensor) -> Tensor:
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    with torch.inference_mode():
        probabilities: Tensor = model((images_N3HW / 255 - mean) / std).logits_NCHW.softmax(dim=1)
    return probabilities


@pytest.mark.parametrize("num_classes", [1, 2, NUM_CLASSES])
def test_predictions_and_statistics_equal_the_long_way(num_classes: int) -> None:
    model, images = PixelNetwork(num_classes).eval(), _images()
    found = predict(model, images, mean=MEAN, std=STD, config=InferenceConfig())
    p_NCHW = _naive_probabilities(model, images).double()
    for image, p_CHW in enumerate(p_NCHW):
        of_image = ClassMap(classes_HW=found.predictions_NHW[image], statistics=found.statistics(image))
        check(of_image, p_CHW, rtol=1e-5)


@pytest.mark.parametrize("window_px, stride_fraction", [(8, 1.0), (10, 0.5), (30, 2 / 3), (64, 0.5), (1, 1.0)])
def test_sliding_windows_equal_the_whole_image_for_a_network_without_context(
    window_px: int, stride_fraction: float
) -> None:
    model, images = PixelNetwork().eval(), _images()
    config = InferenceConfig(mode="sliding", window_px=window_px, stride_fraction=stride_fraction)
    found = class_probabilities(model, images, mean=MEAN, std=STD, config=config)
    torch.testing.assert_close(found, _naive_probabilities(model, images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(23, 37), (8, 100), (64, 65)])
def test_windows_have_one_size_and_stand_no_further_apart_than_the_stride(size: tuple[int, int]) -> None:
    model = PixelNetwork().eval()
    config = InferenceConfig(mode="sliding", window_px=16, stride_fraction=0.75)
    found = predict(model, _images(1, *size), mean=MEAN, std=STD, config=config)
    assert set(model.sizes) == {(min(16, size[0]), min(16, size[1]))}
    per_side = [1 + max(0, math.ceil((side - 16) / 12)) for side in size]
    assert len(model.sizes) == per_side[0] * per_side[1] == found.num_inputs_N[0]


def test_overlapping_windows_are_averaged_as_probabilities() -> None:
    config = InferenceConfig(mode="sliding", window_px=8, stride_fraction=0.5)
    found = class_probabilities(PositionNetwork().eval(), _images(1, 4, 12), mean=MEAN, std=STD, config=config)
    window = torch.softmax(torch.stack([-torch.linspace(-2, 2, 8), torch.linspace(-2, 2, 8)]), dim=0)
    expected = torch.cat([window[:, :4], (window[:, 4:] + window[:, :4]) / 2, window[:, 4:]], dim=1)
    torch.testing.assert_close(found[0, :, 0], expected)


def test_a_mirrored_pass_makes_an_asymmetric_network_symmetric() -> None:
    config = InferenceConfig(flip=True)
    found = class_probabilities(PositionNetwork().eval(), _images(), mean=MEAN, std=STD, config=config)
    torch.testing.assert_close(found, found.flip(-1))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 23, 37))
    assert predict(PositionNetwork().eval(), _images(), mean=MEAN, std=STD, config=config).num_inputs_N.tolist() == [
        2,
        2,
    ]


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(short_side_px=12),
        InferenceConfig(short_side_px=50),
        InferenceConfig(scales=(0.5, 1.0, 1.5), flip=True),
        InferenceConfig(scales=(0.5,)),
    ],
    ids=["smaller", "larger", "scales and flip", "half"],
)
@pytest.mark.parametrize("strip_bytes", [1, 2**12, 2**30])
@pytest.mark.parametrize("on_device", [False, True], ids=["kernel", "torch"])
def test_strips_of_resized_probabilities_equal_the_resized_map(
    monkeypatch: pytest.MonkeyPatch, config: InferenceConfig, strip_bytes: int, on_device: bool
) -> None:
    monkeypatch.setattr(class_maps, "_STRIP_BYTES_CPU", strip_bytes)
    monkeypatch.setattr(class_maps, "_STRIP_BYTES_DEVICE", strip_bytes)
    if on_device:
        monkeypatch.setattr(class_maps, "_describe_on_cpu", class_maps._describe_on_device)
    model, images = PixelNetwork().eval(), _images()
    whole = class_probabilities(model, images, mean=MEAN, std=STD, config=config)
    assert whole.shape == (2, NUM_CLASSES, 23, 37)
    torch.testing.assert_close(whole.sum(dim=1), torch.ones(2, 23, 37))
    found = predict(model, images, mean=MEAN, std=STD, config=config)
    assert (found.predictions_NHW == whole.argmax(dim=1).numpy()).mean() > 0.999  # equal but for ties by rounding
    np.testing.assert_allclose(found.mean_confidence_N, whole.amax(dim=1).mean(dim=(1, 2)), rtol=1e-5)


def test_the_network_sees_the_size_that_was_asked_for() -> None:
    model = PixelNetwork().eval()
    predict(model, _images(1, 40, 80), mean=MEAN, std=STD, config=InferenceConfig(short_side_px=20, scales=(1.0, 2.0)))
    assert model.sizes == [(20, 40), (40, 80)]
    assert working_size(600, 400, short_side_px=360) == (540, 360)
    assert working_size(600, 400, short_side_px=0) == (600, 400)


def test_bfloat16_stays_close_to_float32() -> None:
    model, images = PixelNetwork().eval(), _images()
    exact = predict(model, images, mean=MEAN, std=STD, config=InferenceConfig())
    rough = predict(model, images, mean=MEAN, std=STD, config=InferenceConfig(precision="bfloat16"))
    np.testing.assert_allclose(rough.mean_confidence_N, exact.mean_confidence_N, atol=0.01)
    assert (rough.mean_confidence_N != exact.mean_confidence_N).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mode": "tiles"}, "mode is 'tiles'; expected 'whole', 'sliding' or 'proposals'"),
        ({"mode": "proposals", "flip": True}, "shows every crop once, at crop_px; leave the three out"),
        ({"mode": "proposals", "scales": (0.5, 1.0)}, r"mode 'proposals' with short_side_px 0, scales \(0.5, 1.0\)"),
        ({"mode": "proposals", "short_side_px": 300}, "mode 'proposals' with short_side_px 300"),
        ({"aggregate": "sum"}, "aggregate is 'sum'; expected 'max' or 'mean'"),
        ({"crop_px": 0}, "crop_px is 0; expected 1 pixel or more"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"window_px": 0}, "window_px 0; expected >= 0 and >= 1"),
        ({"stride_fraction": 1.5}, "above 1 windows leave gaps"),
        ({"scales": ()}, "expected at least one"),
        ({"scales": (1.0, 0.0)}, "each above 0"),
        ({"output_stride": 4}, r"output_stride is 4; expected 0 \(as trained\) or one of \(8, 16, 32\)"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(InferenceConfig(), **changes)  # type: ignore[arg-type]  # what is refused


def test_settings_come_back_from_json() -> None:
    config = InferenceConfig(mode="sliding", scales=(0.5, 1.0), flip=True, output_stride=8)
    proposals = InferenceConfig(mode="proposals", crop_px=96, aggregate="mean", proposals=ProposalConfig(best=20))
    for each in (config, replace(config, crf=CRF), proposals):
        assert inference_from_dict(json.loads(json.dumps(inference_to_dict(each)))) == each
        assert inference_from_dict(json.loads(json.dumps(asdict(each)))) == each
    assert inference_from_dict({"flip": True}) == InferenceConfig(flip=True)


def test_settings_without_a_crf_or_proposals_are_stored_as_before_there_were_any() -> None:
    stored = {
        "mode": "whole",
        "short_side_px": 0,
        "window_px": 512,
        "stride_fraction": 2 / 3,
        "scales": (1.0,),
        "flip": False,
        "output_stride": 0,
        "precision": "float32",
    }
    assert inference_to_dict(InferenceConfig()) == stored
    assert inference_to_dict(InferenceConfig(crf=CRF)) == stored | {"crf": asdict(CRF)}


@pytest.mark.parametrize(
    "config",
    [InferenceConfig(), InferenceConfig(short_side_px=12), InferenceConfig(flip=True)],
    ids=["whole", "resized", "mirrored"],
)
@pytest.mark.parametrize("method", ["lattice", "dense"])
def test_a_crf_refines_the_averaged_probabilities_at_the_images_size(config: InferenceConfig, method: Method) -> None:
    model, images = PixelNetwork().eval(), _images()
    crf = replace(CRF, method=method)
    plain = class_probabilities(model, images, mean=MEAN, std=STD, config=config)
    expected = refine_by_crf(plain, images, crf)
    found = class_probabilities(model, images, mean=MEAN, std=STD, config=replace(config, crf=crf))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    predicted = predict(model, images, mean=MEAN, std=STD, config=replace(config, crf=crf))
    np.testing.assert_array_equal(predicted.predictions_NHW, expected.argmax(dim=1).numpy())
    np.testing.assert_allclose(predicted.mean_confidence_N, expected.amax(dim=1).mean(dim=(1, 2)), rtol=1e-5)
    assert (expected.argmax(dim=1) != plain.argmax(dim=1)).any()


def test_the_mean_of_identical_maps_is_the_map_and_of_others_a_distribution() -> None:
    maps = [torch.randn(2, NUM_CLASSES, 3, 4, generator=torch.Generator().manual_seed(i)).softmax(1) for i in range(3)]
    before = [each.clone() for each in maps]
    torch.testing.assert_close(mean_probabilities([maps[0]] * 2), maps[0], rtol=0, atol=0)
    torch.testing.assert_close(mean_probabilities([maps[0]] * 3), maps[0])
    torch.testing.assert_close(mean_probabilities(iter(maps)), torch.stack(maps).mean(dim=0))
    torch.testing.assert_close(mean_probabilities(maps).sum(dim=1), torch.ones(2, 3, 4))
    assert all(torch.equal(*pair) for pair in zip(maps, before, strict=True))
    with pytest.raises(
        ValueError, match=r"shapes \(2, 5, 3, 4\) and \(2, 4, 3, 4\) have no mean; average networks of one"
    ):
        mean_probabilities([maps[0], maps[1][:, :4]])
    with pytest.raises(ValueError, match="there are no maps to average"):
        mean_probabilities([])


def test_an_ensemble_predicts_from_the_mean_of_probabilities_each_found_in_its_own_way() -> None:
    images = _images(2, 40, 50)
    torch.manual_seed(4)
    other = PixelNetwork().eval()
    other.weight.data.normal_()
    configs = (InferenceConfig(mode="proposals", crop_px=16, whole_image=True), InferenceConfig(scales=(0.5, 1.0)))
    members = [
        Member(model=model, mean=MEAN, std=std, config=config)
        for model, std, config in zip((PixelNetwork().eval(), other), (STD, (0.3, 0.3, 0.3)), configs, strict=True)
    ]
    maps = [
        class_probabilities(each.model, images, mean=each.mean, std=each.std, config=each.config) for each in members
    ]
    found = predict_ensemble(members, images)
    mean_NCHW = (maps[0] + maps[1]) / 2
    np.testing.assert_array_equal(found.predictions_NHW, mean_NCHW.argmax(dim=1).numpy())
    np.testing.assert_allclose(found.mean_confidence_N, mean_NCHW.amax(dim=1).mean(dim=(1, 2)), rtol=1e-5)
    assert (found.predictions_NHW != maps[0].argmax(dim=1).numpy()).any()
    assert (found.predictions_NHW != maps[1].argmax(dim=1).numpy()).any()
    alone = predict_ensemble(members[:1], images)
    np.testing.assert_array_equal(alone.predictions_NHW, maps[0].argmax(dim=1).numpy())
    np.testing.assert_array_equal(found.num_inputs_N, alone.num_inputs_N + 2)
    twice = predict_ensemble([members[0]] * 2, images)
    np.testing.assert_array_equal(twice.predictions_NHW, alone.predictions_NHW)


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(mode="sliding", window_px=16, flip=True),
        InferenceConfig(mode="proposals", crop_px=16, whole_image=True),
    ],
    ids=["whole", "sliding", "proposals"],
)
def test_classes_that_are_left_out_share_their_probability_among_the_others(config: InferenceConfig) -> None:
    images, network = _images(2, 40, 50), PixelNetwork().eval()
    member = Member(model=network, mean=MEAN, std=STD, config=config, classes=(1, 2, 4))
    narrow = PixelNetwork(3).eval()
    narrow.weight.data = network.weight.data[[1, 2, 4]]
    expected = predict(narrow, images, mean=MEAN, std=STD, config=config)
    found = predict_ensemble([member], images)
    np.testing.assert_array_equal(found.predictions_NHW, expected.predictions_NHW)
    np.testing.assert_allclose(found.mean_confidence_N, expected.mean_confidence_N, rtol=1e-5)
    assert found.class_pixels_NC.shape == (2, 3)


def test_an_ensemble_s_mean_is_refined_by_the_first_member_s_crf() -> None:
    images = _images()
    first = Member(model=PixelNetwork().eval(), mean=MEAN, std=STD, config=InferenceConfig(crf=CRF))
    plain, mirrored = (replace(first, config=InferenceConfig(flip=flip)) for flip in (False, True))
    maps = [
        class_probabilities(each.model, images, mean=MEAN, std=STD, config=each.config) for each in (plain, mirrored)
    ]
    expected = refine_by_crf(mean_probabilities(maps), images, CRF).argmax(dim=1).numpy()
    np.testing.assert_array_equal(predict_ensemble([first, mirrored], images).predictions_NHW, expected)
    np.testing.assert_array_equal(predict_ensemble([first, first], images).predictions_NHW, expected)
    with pytest.raises(
        ValueError, match="model 2 of the ensemble has a CRF, .*: give the model whose CRF is meant first"
    ):
        predict_ensemble([mirrored, first], images)


TINY = DeepLabV3PlusConfig(
    backbone="mobilenet_v3_small", output_stride=32, aspp_channels=8, low_level_features=(), decoder_channels=8
)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 5), (31, 33)])
def test_images_smaller_than_the_networks_stride_are_segmented_in_every_mode(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build_model(TINY, NUM_CLASSES)
    prepare(model, "cpu")
    configs = (
        InferenceConfig(),
        InferenceConfig(scales=(0.5, 1.75), flip=True),
        InferenceConfig(short_side_px=48),
        InferenceConfig(mode="sliding", window_px=16),
        InferenceConfig(mode="sliding", window_px=1) if max(size) == 1 else InferenceConfig(mode="sliding"),
        InferenceConfig(mode="proposals", crop_px=32),
        InferenceConfig(mode="proposals", crop_px=32, whole_image=True, aggregate="mean"),
        InferenceConfig(crf=CRF),
    )
    for config in configs:
        found = predict(model, _images(2, *size), mean=MEAN, std=STD, config=config)
        assert found.predictions_NHW.shape == (2, *size), config
        assert (found.class_pixels_NC.sum(axis=1) == size[0] * size[1]).all()
        assert ((found.mean_confidence_N > 0.99 / NUM_CLASSES) & (found.mean_confidence_N <= 1)).all()
