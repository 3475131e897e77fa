"""Object proposals through a network of one input size, and their scores pasted into the image.

Noh, Hong, Han, Learning Deconvolution Network for Semantic Segmentation, ICCV 2015, arXiv 1505.04366, section 4.3
(inference; the number is from memory): about 2000 Edge Boxes, the best 50 enlarged 1.2 times, each cropped and resized
to the network's input; its score map is resized back to its box, and the image's score of a class at a pixel is the
maximum over the proposals, or their mean; softmax afterwards.

Where we differ:

- The paper pastes into a canvas of zeros, and so does the released Matlab: negative scores of a pixel are lost, which
  changes its probabilities, wherever some proposal leaves it out. Here only the proposals that cover a pixel count.
- A pixel that no proposal covers is class 0, the background, with probability 1. In the paper all its scores are zero:
  a uniform distribution, whose largest is class 0 by the order of the classes alone. A dataset whose class 0 is no
  background (CamVid: sky) needs the whole image as a further proposal, `InferenceConfig.whole_image`.
- An image without proposals is shown as a whole, with a warning.
- The released code also leaves out boxes whose shorter side is below 112 pixels; here none is.
"""

import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segcore.layers import resize_smoothly
from segcore.proposals import ProposalConfig, enlarge_box, propose

logger = logging.getLogger(__name__)

Aggregate = Literal["max", "mean"]

CROPS_PER_PASS = 10
"""Crops that the network sees at once; bounds its memory and changes nothing else but rounding."""


def boxes_to_show(
    image_HW3: NDArray[np.uint8], config: ProposalConfig, *, whole_image: bool, image_id: str
) -> NDArray[np.int32]:
    """Boxes of an image, (K, 4) with K >= 1: top, left, bottom, right in pixels, half-open, within the image.

    Args:
        image_HW3: RGB.
        config: which boxes, and the factor by which they are enlarged.
        whole_image: the whole image comes first, as a further box.
        image_id: for the warning where there are no proposals; "" where it has none.
    """
    height, width = image_HW3.shape[:2]
    whole_14 = np.array([[0, 0, height, width]], dtype=np.int32)
    found_K4 = propose(image_HW3, config).boxes_K4
    if not len(found_K4):
        what = f"image {image_id!r}" if image_id else f"an image of {height} x {width} pixels"
        logger.warning("no object proposals in %s: the network is shown the whole image", what)
        return whole_14
    enlarged_K4 = np.array([enlarge_box(box, config.enlarge, height, width) for box in found_K4], dtype=np.int32)
    return np.concatenate([whole_14, enlarged_K4]) if whole_image else enlarged_K4


def proposal_scores(
    network: Callable[[Tensor], Tensor],
    image_3HW: Tensor,
    boxes_K4: NDArray[np.int32],
    *,
    crop_px: int,
    aggregate: Aggregate,
) -> Tensor:
    """Scores (C, H, W) of an image from those of its boxes; the order of the boxes does not matter.

    S(c, y, x) = max over k, or mean over k, of S_k(c, y, x), for all boxes k that cover (y, x). Where none does,
    S is 0 for class 0 and -inf for the others: the softmax is then 1 and 0.

    Args:
        network: crops (K, 3, crop_px, crop_px) to scores before softmax (K, C, crop_px, crop_px), float32.
        image_3HW: normalised, on the network's device.
        boxes_K4: K >= 1 boxes as `boxes_to_show` gives them.
        crop_px: side of the square that crops are resized to, whatever their shape.
        aggregate: maximum or mean over the boxes that cover a pixel.
    """
    assert len(boxes_K4), "an image without boxes has no scores"
    height, width = image_3HW.shape[-2:]
    count_HW = torch.zeros(height, width, dtype=torch.int32, device=image_3HW.device)
    scores_CHW: Tensor | None = None
    for start in range(0, len(boxes_K4), CROPS_PER_PASS):
        places = [
            (slice(top, bottom), slice(left, right))
            for top, left, bottom, right in boxes_K4[start : start + CROPS_PER_PASS].tolist()
        ]
        crops = [resize_smoothly(image_3HW[None, :, *place], height=crop_px, width=crop_px) for place in places]
        for place, crop_scores_Css in zip(places, network(torch.cat(crops)), strict=True):
            if scores_CHW is None:
                nothing = -torch.inf if aggregate == "max" else 0.0
                scores_CHW = crop_scores_Css.new_full((len(crop_scores_Css), height, width), nothing)
            _paste(scores_CHW[:, *place], crop_scores_Css, aggregate)
            count_HW[place] += 1
    assert scores_CHW is not None
    if aggregate == "mean":
        scores_CHW /= count_HW.clamp(min=1)
    uncovered_HW = count_HW == 0
    scores_CHW.masked_fill_(uncovered_HW, -torch.inf)
    scores_CHW[0].masked_fill_(uncovered_HW, 0.0)
    return scores_CHW


def _paste(box_Crw: Tensor, crop_scores_Css: Tensor, aggregate: Aggregate) -> None:
    """Resize a crop's scores to their box, and enter them there in place."""
    rows, columns = box_Crw.shape[-2:]
    found_Crw = resize_smoothly(crop_scores_Css[None], height=rows, width=columns)[0]
    if aggregate == "max":
        torch.maximum(box_Crw, found_Crw, out=box_Crw)
    else:
        box_Crw += found_Crw


def as_pixels(image_3HW: Tensor) -> NDArray[np.uint8]:
    """A uint8 image from any device in the layout that `propose` takes: (H, W, 3), contiguous."""
    return np.ascontiguousarray(image_3HW.permute(1, 2, 0).cpu().numpy())
