"""Model cards: scores with their data, classes, cost and origin."""

import dataclasses

import pytest

from pipelines.checkpoints import InputPolicy, ModelCard
from pipelines.model_cards import EvaluatedScores, front_matter, model_card, network_cost
from segcore.classifier import ClassifierConfig
from segcore.cost import count_multiply_adds, count_parameters
from segcore.models import UNetConfig, build_model

CARD = ModelCard(
    model_config=UNetConfig(width=4),
    class_names=("sky", "car | van"),
    palette=((70, 130, 180), (0, 0, 255)),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    dataset_digest="d" * 64,
    label_pca_digest="e" * 64,
    recipe={"recipe_name": "camvid.unet", "epochs": 7},
    scores={"val/mean_iou": 0.5, "val/iou/sky": 0.75},
    input_policy=InputPolicy(image_height=40, image_width=60, crop_height=32, crop_width=48),
)


def _text(card: ModelCard = CARD, evaluated: EvaluatedScores | None = None, *, with_classes: bool = True) -> str:
    return model_card(
        card,
        title="street",
        model_digest="a" * 64,
        code_commit="c0ffee",
        evaluated=evaluated,
        with_classes=with_classes,
    )


def test_without_an_evaluation_training_s_own_scores_are_shown_as_such() -> None:
    text = _text()
    assert text.startswith("# street\n\n`unet` on `unet`: names one of 2 classes for every pixel of an image.\n")
    assert "Of the validation at the end of training, which also chose these weights" in text
    assert "| val/mean_iou | 50.00 % |" in text
    assert "| 0 | sky | `#4682b4` | 75.00 % |" in text
    assert "| 1 | car \\| van | `#0000ff` |  |" in text  # a bar would end the cell; no score is no zero


def test_an_evaluation_s_scores_come_with_their_data_and_intervals() -> None:
    evaluated = EvaluatedScores(
        data="split `test`, 9 images",
        scores={"mean_iou": 0.4, "pixel_accuracy": 0.8, "iou/sky": 0.7, "speed/images_per_second": 3.0},
        intervals={"mean_iou": (0.35, 0.45), "iou/sky": (0.6, 0.8)},
    )
    text = _text(evaluated=evaluated)
    assert "Evaluated on split `test`, 9 images." in text and "speed" not in text
    assert "| mean_iou | 40.00 % | 35.00 to 45.00 % |" in text
    assert "| pixel_accuracy | 80.00 % |  |" in text
    assert "| 0 | sky | `#4682b4` | 70.00 % (60.00 to 80.00 %) |" in text
    assert "val/mean_iou" not in text


def test_input_cost_and_origin_are_stated() -> None:
    text = _text(with_classes=False)
    network = build_model(UNetConfig(width=4), 2)
    cost = network_cost(CARD)
    assert cost.parameters == count_parameters(network).total
    assert cost.multiply_adds == count_multiply_adds(network, 40, 60) > 0
    assert f"{cost.parameters:,} parameters" in text and "an image of 40 x 60 pixels" in text
    assert "less 0.5, 0.4, 0.3, divided by 0.2, 0.2, 0.2" in text and "crops of 32 x 48" in text
    for line in (f"| dataset digest | `{'d' * 64}` |", f"| label PCA digest | `{'e' * 64}` |", "| epochs | `7` |"):
        assert line in text
    assert "| code commit | `c0ffee` |" in text and "| recipe name | `camvid.unet` |" in text
    assert "## Classes" not in text


def test_a_classifier_has_a_card_too() -> None:
    card = dataclasses.replace(CARD, model_config=ClassifierConfig(backbone="resnet18"), palette=())
    assert "`classifier` on `resnet18`: names one of 2 classes for a whole image." in _text(card)


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"a": "b"}, "---\na: b\n---\n\n"), ({"tags": ["x", "y"]}, "---\ntags:\n- x\n- y\n---\n\n")],
)
def test_front_matter_is_yaml(values: dict[str, str | list[str]], expected: str) -> None:
    assert front_matter(values) == expected
