"""Colour jitter against torchvision's, step by step."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from segcore.colour_jitter import LUMA, change_colours


def photo(seed: int = 0) -> Tensor:
    """Smooth colours that reach both ends of the range, channels last in memory."""
    coarse_13hw = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed)) * 360 - 50
    image_13HW = torch.nn.functional.interpolate(coarse_13hw, size=(61, 83), mode="bicubic").clamp(0, 255)
    return image_13HW[0].permute(1, 2, 0).to(torch.uint8).contiguous().permute(2, 0, 1)


def torchvisions(image_3HW: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    image_3HW = F.adjust_brightness_image(image_3HW, brightness)
    image_3HW = F.adjust_contrast_image(image_3HW, contrast)
    image_3HW = F.adjust_saturation_image(image_3HW, saturation)
    changed_3HW: Tensor = F.adjust_hue_image(image_3HW, hue)
    return changed_3HW


@pytest.mark.parametrize("seed", range(20))
def test_levels_are_torchvisions_but_for_its_rounding(seed: int) -> None:
    brightness, contrast, saturation = np.random.default_rng(seed).uniform(0.5, 1.5, 3)
    image_3HW = photo(seed)
    ours = change_colours(image_3HW, brightness=brightness, contrast=contrast, saturation=saturation)
    difference = ours.int() - torchvisions(image_3HW, brightness, contrast, saturation, 0.0).int()
    assert ours.shape == image_3HW.shape and ours.dtype == torch.uint8
    assert difference.abs().max() <= 5
    assert 0 < difference.double().mean() < 2.5, "torchvision cuts off, which darkens"


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation"])
def test_one_change_alone_is_rounded_once(change: str) -> None:
    image_3HW = photo()
    exact_3HW = image_3HW.double()
    luma_HW = torch.tensordot(torch.from_numpy(LUMA), exact_3HW, dims=1)
    about = {"brightness": torch.zeros(()), "contrast": luma_HW.mean(), "saturation": luma_HW}[change]
    exact_3HW = (about + 1.3 * (exact_3HW - about)).clamp(0, 255)
    ours = change_colours(image_3HW, **{change: 1.3})
    assert (ours.double() - exact_3HW).abs().max() < 0.6  # OpenCV counts in 1024ths


def test_hue_is_torchvisions_and_comes_last() -> None:
    image_3HW = photo()
    brighter = change_colours(image_3HW, brightness=1.2)
    assert torch.equal(
        change_colours(image_3HW, brightness=1.2, hue=0.1), F.adjust_hue_image(brighter, 0.1)
    ) and not torch.equal(change_colours(image_3HW, hue=0.1), image_3HW)


def test_no_change_is_none_and_any_layout_of_memory_is_taken() -> None:
    image_3HW = photo()
    before = image_3HW.clone()
    assert change_colours(image_3HW) is image_3HW
    planes_3HW = image_3HW.contiguous()
    assert torch.equal(change_colours(planes_3HW, contrast=0.7), change_colours(image_3HW, contrast=0.7))
    assert torch.equal(image_3HW, before), "the image itself was changed"
