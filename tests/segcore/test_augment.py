"""Joint augmentation: labels stay labels, pictures and labels stay together, and the draws are what the config says."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segcore import IGNORE_INDEX
from segcore.augment import AugmentConfig, augment

GREY = (120, 121, 122)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def striped_labels(height: int, width: int) -> Tensor:
    """Blocks of 12 x 12 pixels of classes 0, 10, 20, ... so that a wrong pairing shows."""
    rows = torch.arange(height) // 12
    columns = torch.arange(width) // 12
    return ((rows[:, None] * 3 + columns[None, :]) % 6 * 10).to(torch.uint8)


def image_of(labels_HW: Tensor) -> Tensor:
    """An image whose every channel spells its label: 4 * label."""
    return (labels_HW * 4)[None].repeat(3, 1, 1)


@pytest.mark.parametrize("seed", range(20))
def test_output_has_the_crop_size_and_no_new_label_value(seed: int) -> None:
    labels_HW = striped_labels(45 + seed, 60 - seed)
    config = AugmentConfig(crop_height=40, crop_width=56)
    image_3hw, labels_hw = augment(image_of(labels_HW), labels_HW, config, generator(seed))
    assert (image_3hw.shape, labels_hw.shape) == ((3, 40, 56), (40, 56))
    assert image_3hw.dtype == labels_hw.dtype == torch.uint8
    assert set(labels_hw.unique().tolist()) <= set(labels_HW.unique().tolist()) | {IGNORE_INDEX}


@pytest.mark.parametrize("seed", range(20))
def test_image_and_labels_stay_aligned_through_scale_crop_flip_and_padding(seed: int) -> None:
    labels_HW = striped_labels(72, 96)
    config = AugmentConfig(crop_height=64, crop_width=64)
    image_3hw, labels_hw = augment(image_of(labels_HW), labels_HW, config, generator(seed), fill=GREY)
    inside = labels_hw != IGNORE_INDEX
    expected = labels_hw[inside].to(torch.int64) * 4
    agree = ((image_3hw[0][inside].to(torch.int64) - expected).abs() <= 4).double().mean()
    # bilinear mixing touches one or two pixels at each border of a 12-pixel block: at half size a half of all pixels
    assert agree > 0.45
    shifted = torch.roll(image_3hw[0], 6, dims=1)[inside].to(torch.int64)
    assert ((shifted - expected).abs() <= 4).double().mean() < agree


def test_at_scale_one_every_pixel_is_the_pixel_of_its_label() -> None:
    labels_HW = striped_labels(72, 96)
    config = AugmentConfig(crop_height=50, crop_width=70, scale_min=1.0, scale_max=1.0)
    for seed in range(10):
        image_3hw, labels_hw = augment(image_of(labels_HW), labels_HW, config, generator(seed))
        assert torch.equal(image_3hw, image_of(labels_hw))


def test_padding_is_the_fill_colour_and_ignored() -> None:
    labels_HW = torch.zeros(20, 30, dtype=torch.uint8)
    image_3HW = torch.full((3, 20, 30), 7, dtype=torch.uint8)
    config = AugmentConfig(crop_height=64, crop_width=64, scale_min=1.0, scale_max=1.0)
    image_3hw, labels_hw = augment(image_3HW, labels_HW, config, generator(0), fill=GREY)
    outside = labels_hw == IGNORE_INDEX
    assert int((~outside).sum()) == 20 * 30
    for channel, value in enumerate(GREY):
        assert set(image_3hw[channel][outside].tolist()) == {value}
        assert set(image_3hw[channel][~outside].tolist()) == {7}


def test_flip_mirrors_image_and_labels_together_half_of_the_time() -> None:
    labels_HW = striped_labels(24, 24)
    config = AugmentConfig(crop_height=24, crop_width=24, scale_min=1.0, scale_max=1.0)
    flipped = 0
    for seed in range(200):
        image_3hw, labels_hw = augment(image_of(labels_HW), labels_HW, config, generator(seed))
        assert torch.equal(image_3hw, image_of(labels_hw))
        flipped += int(torch.equal(labels_hw, labels_HW.flip(-1)))
    assert 70 <= flipped <= 130  # binomial(200, 1/2): four standard deviations are 28
    never = AugmentConfig(crop_height=24, crop_width=24, scale_min=1.0, scale_max=1.0, flip=False)
    assert torch.equal(augment(image_of(labels_HW), labels_HW, never, generator(3))[1], labels_HW)


def test_scales_are_uniform_between_their_limits() -> None:
    """A square of 100 pixels in a crop that holds it at any scale has side 100 * scale."""
    labels_HW = torch.zeros(100, 100, dtype=torch.uint8)
    image_3HW = torch.zeros(3, 100, 100, dtype=torch.uint8)
    config = AugmentConfig(crop_height=200, crop_width=200)
    sides = []
    for seed in range(300):
        _, labels_hw = augment(image_3HW, labels_HW, config, generator(seed))
        sides.append(int((labels_hw == 0).any(dim=0).sum()))
    scales = torch.tensor(sides) / 100
    assert scales.min() >= 0.5 and scales.max() <= 2.0
    # uniform(0.5, 2): mean 1.25, standard deviation 0.433, so 0.025 for the mean of 300
    assert abs(scales.mean() - 1.25) < 0.1
    assert abs(scales.std() - 1.5 / 12**0.5) < 0.05


def test_zoom_of_a_crop_window_is_the_drawn_scale() -> None:
    """Where the crop lies inside the image, columns advance by 1 / scale source columns per output column."""
    ramp = torch.arange(250, dtype=torch.uint8)[None].repeat(250, 1)
    config = AugmentConfig(crop_height=50, crop_width=50, scale_min=2.0, scale_max=2.0, flip=False)
    image_3hw, labels_hw = augment(ramp[None].repeat(3, 1, 1), ramp.clamp(max=200), config, generator(1))
    step = (image_3hw[0, 25, 45].double() - image_3hw[0, 25, 5].double()) / 40
    assert abs(step - 0.5) < 0.05
    assert int(labels_hw.max()) - int(labels_hw.min()) in (24, 0)  # 25 source columns, or all in the clamped part


def test_same_generator_state_gives_the_same_crop_and_another_seed_another() -> None:
    labels_HW = striped_labels(72, 96)
    config = AugmentConfig(crop_height=40, crop_width=40, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)
    image_3HW = torch.randint(0, 256, (3, 72, 96), dtype=torch.uint8, generator=generator(9))
    first = augment(image_3HW, labels_HW, config, generator(4))
    again = augment(image_3HW, labels_HW, config, generator(4))
    other = augment(image_3HW, labels_HW, config, generator(5))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_colour_jitter_leaves_labels_and_geometry_alone() -> None:
    labels_HW = striped_labels(72, 96)
    image_3HW = torch.randint(60, 200, (3, 72, 96), dtype=torch.uint8, generator=generator(9))
    plain = AugmentConfig(crop_height=40, crop_width=40)
    coloured = AugmentConfig(crop_height=40, crop_width=40, brightness=0.4)
    image_plain, labels_plain = augment(image_3HW, labels_HW, plain, generator(4))
    image_coloured, labels_coloured = augment(image_3HW, labels_HW, coloured, generator(4))
    assert torch.equal(labels_plain, labels_coloured)
    inside = labels_plain != IGNORE_INDEX
    ratio = image_coloured[:, inside].double() / image_plain[:, inside].double()
    assert 0.6 <= ratio.mean() <= 1.4 and ratio.std() < 0.02 and abs(ratio.mean() - 1) > 0.01


def test_config_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="both sides must be 1 or more"):
        AugmentConfig(crop_height=0, crop_width=4)
    with pytest.raises(ValueError, match="scale_min <= scale_max"):
        AugmentConfig(crop_height=4, crop_width=4, scale_min=2.0, scale_max=1.0)
    with pytest.raises(ValueError, match="brightness is 2"):
        AugmentConfig(crop_height=4, crop_width=4, brightness=2.0)
    with pytest.raises(ValueError, match="hue is 0.7"):
        AugmentConfig(crop_height=4, crop_width=4, hue=0.7)
    config = AugmentConfig(crop_height=4, crop_width=4)
    assert pickle.loads(pickle.dumps(config)) == config


def test_sizes_that_differ_are_refused() -> None:
    config = AugmentConfig(crop_height=4, crop_width=4)
    with pytest.raises(ValueError, match=r"\(8, 8\) rows and columns and its labels \(8, 9\)"):
        augment(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 9, dtype=torch.uint8), config, generator(0))


def test_zooms_come_in_steps_where_they_are_asked_to() -> None:
    labels_HW = torch.zeros(100, 100, dtype=torch.uint8)
    config = AugmentConfig(crop_height=200, crop_width=200, scale_step=0.25)
    sides = []
    for seed in range(200):
        _, labels_hw = augment(labels_HW[None].repeat(3, 1, 1), labels_HW, config, generator(seed))
        sides.append(int((labels_hw == 0).any(dim=0).sum()))
    assert sorted(set(sides)) == [50, 75, 100, 125, 150, 175, 200]
    assert min(sides.count(side) for side in set(sides)) > 10


@pytest.mark.parametrize(("height", "width"), [(60, 120), (120, 60)])
def test_zooms_may_be_relative_to_a_longer_side(height: int, width: int) -> None:
    labels_HW = torch.zeros(height, width, dtype=torch.uint8)
    config = AugmentConfig(crop_height=99, crop_width=99, scale_min=1.0, scale_max=1.0, long_side_px=80)
    _, labels_hw = augment(labels_HW[None].repeat(3, 1, 1), labels_HW, config, generator(0))
    inside = labels_hw == 0
    assert (int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())) == (height * 80 // 120, width * 80 // 120)


def test_rotation_turns_image_and_labels_together_and_ignores_the_corners() -> None:
    labels_HW = striped_labels(96, 96)
    config = AugmentConfig(crop_height=96, crop_width=96, scale_min=1.0, scale_max=1.0, flip=False, rotation_degrees=10)
    turned = 0
    for seed in range(100):
        image_3hw, labels_hw = augment(image_of(labels_HW), labels_HW, config, generator(seed), fill=GREY)
        if torch.equal(labels_hw, labels_HW):
            continue
        turned += 1
        inside = labels_hw != IGNORE_INDEX
        assert not inside.all() and inside[24:72, 24:72].all()
        wrong = (image_3hw[0][inside].int() - 4 * labels_hw[inside].int()).abs() > 8
        assert wrong.double().mean() < 0.25  # mixed at the borders of the 12-pixel blocks
        beyond = F.max_pool2d(inside[None].float(), 5, stride=1, padding=2)[0] == 0  # but for the mixed border
        assert set(image_3hw[1][beyond].tolist()) <= {GREY[1]}
    assert 30 <= turned <= 70


def test_rotation_has_its_angle_up_to_the_limit() -> None:
    """A bright quadrant boundary along the middle row turns with the image."""
    labels_HW = torch.zeros(201, 201, dtype=torch.uint8)
    labels_HW[100:] = 1
    config = AugmentConfig(
        crop_height=201, crop_width=201, scale_min=1.0, scale_max=1.0, flip=False, rotation_degrees=10
    )
    angles = []
    for seed in range(200):
        _, labels_hw = augment(image_of(labels_HW), labels_HW, config, generator(seed))
        rows = [int((labels_hw[:, column] == 1).nonzero()[0]) for column in (50, 150)]
        angles.append(float(torch.tensor((rows[0] - rows[1]) / 100).atan().rad2deg()))
    drawn = [angle for angle in angles if abs(angle) > 0.6]
    assert max(drawn) > 8 and min(drawn) < -8 and max(map(abs, drawn)) < 10.7


def test_blur_touches_half_of_the_images_and_no_label() -> None:
    labels_HW = striped_labels(48, 48)
    config = AugmentConfig(crop_height=48, crop_width=48, scale_min=1.0, scale_max=1.0, flip=False, blur=True)
    blurred = 0
    for seed in range(100):
        image_3hw, labels_hw = augment(image_of(labels_HW), labels_HW, config, generator(seed))
        assert torch.equal(labels_hw, labels_HW)
        difference = (image_3hw.int() - image_of(labels_HW).int()).abs()[0]
        blurred += bool(difference.any())
        assert not difference[4:8, 4:8].any()  # within a block of one value
    assert 30 <= blurred <= 70


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_step": -0.1}, "scale_step is -0.1 and long_side_px 0; neither may be negative"),
        ({"long_side_px": -1}, "long_side_px -1; neither may be negative"),
        ({"rotation_degrees": 181.0}, r"rotation_degrees is 181.0; give 0 \(off\) to 180"),
    ],
)
def test_geometry_out_of_range_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(crop_height=8, crop_width=8, **changes)  # type: ignore[arg-type]
