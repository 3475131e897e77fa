"""Joint augmentation: labels stay labels, pictures and labels stay together, and the draws are what the config says.

Windows of images that are classified as a whole: their areas and ratios, and the centre that validation shows.
"""

import dataclasses
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from segcore import IGNORE_INDEX
from segcore.augment import augment, centre_crop, random_resized_crop
from segcore.augment_config import AugmentConfig, ClassificationAugmentConfig

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


def test_deformation_bends_image_and_labels_together_and_ignores_what_lies_beyond() -> None:
    labels_HW = striped_labels(96, 96)
    config = AugmentConfig(crop_height=96, crop_width=96, scale_min=1.0, scale_max=1.0, flip=False, elastic_px=6.0)
    for seed in range(20):
        image_3hw, labels_hw = augment(image_of(labels_HW), labels_HW, config, generator(seed), fill=GREY)
        assert not torch.equal(labels_hw, labels_HW)
        assert set(labels_hw.unique().tolist()) <= set(labels_HW.unique().tolist()) | {IGNORE_INDEX}
        inside = labels_hw != IGNORE_INDEX
        assert inside[36:60, 36:60].all()
        wrong = (image_3hw[0][inside].int() - 4 * labels_hw[inside].int()).abs() > 8
        assert wrong.double().mean() < 0.25  # mixed at the borders of the 12-pixel blocks
        beyond = F.max_pool2d(inside[None].float(), 5, stride=1, padding=2)[0] == 0  # but for the mixed border
        assert set(image_3hw[1][beyond].tolist()) <= {GREY[1]}


def test_displacements_have_their_deviation_and_are_smooth() -> None:
    """An image that spells its rows and columns shows from where each pixel came."""
    image_3HW = coordinates(101, 101)
    labels_HW = torch.zeros(101, 101, dtype=torch.uint8)
    config = AugmentConfig(crop_height=101, crop_width=101, scale_min=1.0, scale_max=1.0, flip=False, elastic_px=3.0)
    centre, steps = [], []
    for seed in range(200):
        image_3hw, _ = augment(image_3HW, labels_HW, config, generator(seed))
        shift_2hw = image_3hw[:2].double() / 2 - image_3HW[:2].double() / 2
        centre.append(shift_2hw[:, 50, 50])  # the middle of the grid
        steps.append(shift_2hw[:, 40:61, 40:61].diff(dim=2).abs().max())
    shifts = torch.stack(centre)
    assert abs(float(shifts.mean())) < 0.6 and float(shifts.std()) == pytest.approx(3.0, abs=0.45)  # four deviations
    assert abs(float(torch.corrcoef(shifts.T)[0, 1])) < 0.3
    assert max(steps) < 1.1  # a whole displacement of 3 px or more takes 50 px


def test_without_deformation_the_draws_are_as_before() -> None:
    labels_HW = striped_labels(72, 96)
    plain, deformed = (AugmentConfig(crop_height=40, crop_width=40, elastic_px=value) for value in (0.0, 1e-9))
    for seed in range(5):
        one, other = (augment(image_of(labels_HW), labels_HW, each, generator(seed)) for each in (plain, deformed))
        assert torch.equal(one[1], other[1])


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
        ({"elastic_px": -1.0}, r"elastic_px is -1.0; give 0 \(off\) or more"),
    ],
)
def test_geometry_out_of_range_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(crop_height=8, crop_width=8, **changes)  # type: ignore[arg-type]


WHOLE = ClassificationAugmentConfig(crop_height=32, crop_width=32, validation_short_side_px=36)


def coordinates(height: int, width: int) -> Tensor:
    """An image whose first channel grows by 2 from row to row and whose second by 2 from column to column."""
    rows, columns = torch.arange(height)[:, None] * 2, torch.arange(width)[None] * 2
    return torch.stack([rows.expand(height, width), columns.expand(height, width), rows + columns]).to(torch.uint8)


def window_of(crop_3HW: Tensor) -> tuple[float, float]:
    """Height and width of the source window of a crop of `coordinates`, from the slope of its values."""
    rows, columns = crop_3HW[0].float().mean(dim=1), crop_3HW[1].float().mean(dim=0)
    inner = slice(4, 28)  # away from the border, where the filter is cut
    return tuple(float((line[inner][-1] - line[inner][0]) / 2 * 32 / 23) for line in (rows, columns))  # type: ignore[return-value]


def test_windows_have_the_areas_and_ratios_of_the_config() -> None:
    image_3HW = coordinates(96, 120)
    config = dataclasses.replace(WHOLE, flip=False)
    windows = [window_of(random_resized_crop(image_3HW, config, generator(seed))) for seed in range(300)]
    areas = [height * width / (96 * 120) for height, width in windows]
    ratios = [width / height for height, width in windows]
    assert 0.06 < min(areas) < 0.12 and 0.85 < max(areas) < 1.02
    assert 0.4 < sum(areas) / len(areas) < 0.56  # uniform: 0.54, less the windows that did not fit
    assert 0.72 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.38
    assert 0.35 < sum(ratio < 1 for ratio in ratios) / len(ratios) < 0.6  # uniform in the logarithm: one half


def test_a_window_depends_on_the_generator_alone_and_draws_the_same_number_for_every_image() -> None:
    config = dataclasses.replace(WHOLE, brightness=0.3, hue=0.1)
    first, second = generator(5), generator(5)
    one = random_resized_crop(coordinates(90, 70), config, first)
    assert one.shape == (3, 32, 32) and one.dtype == torch.uint8 and one.is_contiguous()
    assert torch.equal(one, random_resized_crop(coordinates(90, 70), config, second))
    random_resized_crop(coordinates(10, 100), config, second)
    random_resized_crop(coordinates(90, 70), config, first)
    assert torch.equal(torch.rand(1, generator=first), torch.rand(1, generator=second))
    assert not torch.equal(one, random_resized_crop(coordinates(90, 70), config, generator(6)))


def test_half_of_the_windows_are_mirrored_and_the_whole_image_may_be_the_window() -> None:
    image_3HW = coordinates(32, 32)
    config = dataclasses.replace(WHOLE, area_min=1.0, ratio_min=1.0, ratio_max=1.0)
    crops = [random_resized_crop(image_3HW, config, generator(seed)) for seed in range(60)]
    mirrored = [torch.equal(crop, image_3HW.flip(-1)) for crop in crops]
    assert all(torch.equal(crop, image_3HW) for crop, flipped in zip(crops, mirrored, strict=True) if not flipped)
    assert 18 <= sum(mirrored) <= 42


def test_an_image_too_narrow_for_any_window_is_cut_in_its_centre() -> None:
    config = dataclasses.replace(WHOLE, area_min=1.0, flip=False)
    crop_3HW = random_resized_crop(coordinates(16, 120), config, generator(0))
    height, width = window_of(crop_3HW)
    assert height == pytest.approx(16, abs=1) and width == pytest.approx(16 * 4 / 3, abs=1)
    assert float(crop_3HW[1].float().mean()) / 2 == pytest.approx(60 - 0.5, abs=1)


@pytest.mark.parametrize(("height", "width"), [(50, 75), (75, 50), (36, 36), (20, 31)])
def test_validation_shows_torchvision_s_resized_centre(height: int, width: int) -> None:
    image_3HW = torch.randint(0, 256, (3, height, width), generator=generator(1)).to(torch.uint8)
    expected = v2.Compose([v2.Resize(36, antialias=True), v2.CenterCrop(32)])(image_3HW)
    assert torch.equal(centre_crop(image_3HW, WHOLE), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_height": 0}, "the crop is 0 x 32 pixels"),
        ({"crop_width": 40}, "validation_short_side_px is 36, less than the crop's 32 x 40 pixels; give at least 40"),
        ({"area_min": 0.5, "area_max": 0.4}, "areas run from 0.5 to 0.4; give 0 < area_min <= area_max <= 1"),
        ({"area_max": 1.5}, "areas run from 0.08 to 1.5"),
        ({"ratio_min": 0.0}, "ratios run from 0.0 to"),
        ({"contrast": 2.0}, "contrast is 2.0; give 0 .off. to 1"),
        ({"hue": 0.6}, "hue is 0.6; give 0 .off. to 0.5"),
    ],
)
def test_windows_that_make_no_sense_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassificationAugmentConfig(**(dataclasses.asdict(WHOLE) | change))


@pytest.mark.parametrize(("source", "crop"), [(40, 64), (64, 40), (2, 97), (33, 100), (150, 37)])
def test_labels_are_resized_to_the_nearest_pixel_centres(source: int, crop: int) -> None:
    """Two that are as near: the right or lower one, without rounding in between."""
    config = AugmentConfig(
        crop_height=crop, crop_width=crop, scale_min=crop / source, scale_max=crop / source, flip=False
    )
    columns_HW = torch.arange(source, dtype=torch.uint8).expand(source, source)
    for labels_HW, axis in ((columns_HW, 0), (columns_HW.T, 1)):
        _, resized_HW = augment(torch.zeros(3, source, source, dtype=torch.uint8), labels_HW, config, generator(0))
        # In units of half an output pixel of `source` input pixels: every centre is a whole number.
        centres = [[abs((2 * out + 1) * source - (2 * own + 1) * crop) for own in range(source)] for out in range(crop)]
        nearest = [max(own for own in range(source) if row[own] == min(row)) for row in centres]
        assert resized_HW.select(axis, crop // 2).tolist() == nearest
