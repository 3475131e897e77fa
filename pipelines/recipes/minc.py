"""Recipe on MINC-2500 (materials: 23 classes of 2,500 images; five splits of 85 % training, 5 % validation, 10 % test).

Lay a split out as `train/CLASS/*.jpg` and `val/CLASS/*.jpg` and prepare it with `jobs/prepare.py class_folders`.
"""

from pipelines.recipes.recipe import Recipe
from segcore.augment_config import ClassificationAugmentConfig
from segcore.classifier import ClassifierConfig
from segcore.optim import OptimConfig


def deep_ten_resnet50() -> Recipe:
    """Deep TEN on ResNet-50, 32 codewords: published top-1 80.4 % on MINC-2500 (from memory).

    Zhang et al., arXiv 1612.02844, section 4.1: crops of 352 x 352 from images of 400, batches of 64 (the released
    code); rate 0.01, divided by 10 (poly here), weight decay 1e-4 and windows of 9 % to 100 % are from memory, the
    epochs are ours. Two sizes of crops in turn, with which 81.3 % were published (from memory), are not here. Give
    --weights timm. 10.1 G multiply-adds a crop.
    """
    return Recipe(
        model=ClassifierConfig(num_codewords=32, label_smoothing=0.0),
        augment=ClassificationAugmentConfig(
            crop_height=352, crop_width=352, validation_short_side_px=400, area_min=0.09
        ),
        optim=OptimConfig(optimiser="sgd", learning_rate=0.01, decoder_multiplier=1.0, weight_decay=1e-4),
        epochs=30,
        batch_size=64,
        precision="bfloat16",
        channels_last=True,
    )
