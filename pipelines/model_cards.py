"""The model card: what a person should know before using a model, as Markdown.

Data, intended input, scores with the data that they come from, cost and origin; what is not known is not said.

Source: Mitchell et al., "Model cards for model reporting", FAT* 2019, arXiv 1810.03993, section 4 (what a card holds).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import storage
from pipelines.checkpoints import ModelCard
from pipelines.manifests import read_manifest
from pipelines.markdown import table_line
from segcore.cost import count_multiply_adds, count_parameters
from segcore.networks import meta_network, network_to_dict

SCORES_FILE = "scores.json"
INTERVALS = "intervals"
"""Key of `scores.json` under which an evaluation keeps (lower, upper) by the name of a score."""

_ORDER = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
_CLASS_SCORE = "iou/"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedScores:
    """What `evaluate` found of a model.

    Attributes:
        data: the split, its number of images, and the dataset's digest, in words.
        scores: fractions of 1 by name: `mean_iou`, `iou/<class>`, ...
        intervals: lower and upper bound by the same names, where the evaluation has them.
    """

    data: str
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkCost:
    """Size and work of a network, at the size of a typical training image.

    Attributes:
        parameters: of all layers, those that inference leaves out included.
        multiply_adds: of one image.
        height, width: of that image, pixels.
    """

    parameters: int
    multiply_adds: int
    height: int
    width: int


def network_cost(card: ModelCard) -> NetworkCost:
    """Parameters and multiply-adds, without weights and arithmetic (`segcore.cost`)."""
    network, policy = meta_network(card.model_config, card.num_classes), card.input_policy
    return NetworkCost(
        parameters=count_parameters(network).total,
        multiply_adds=count_multiply_adds(network, policy.image_height, policy.image_width),
        height=policy.image_height,
        width=policy.image_width,
    )


def read_scores(uri: str, *, model_digest: str) -> EvaluatedScores:
    """The scores of an evaluation folder.

    Raises:
        ValueError: it is no finished evaluation, or one of another model.
    """
    manifest = read_manifest(uri, kind="evaluation")
    identity = manifest["identity"]
    if identity["model_digest"] != model_digest:
        raise ValueError(
            f"{uri!r} holds the scores of model {identity['model_digest'][:12]}, expected those of "
            f"{model_digest[:12]}; give the evaluation of this model, or none"
        )
    values: dict[str, Any] = storage.read_json(storage.join(uri, SCORES_FILE))
    scores = {name: value for name, value in values.items() if isinstance(value, float | int)}
    found = values.get(INTERVALS, {})
    intervals = {name: (float(bounds[0]), float(bounds[1])) for name, bounds in found.items()}
    data = f"split `{identity['split']}`, {manifest['num_images']} images, dataset `{identity['dataset_digest'][:12]}`"
    return EvaluatedScores(data=data, scores=scores, intervals=intervals)


def model_card(
    card: ModelCard,
    *,
    title: str,
    model_digest: str,
    code_commit: str,
    evaluated: EvaluatedScores | None = None,
    with_classes: bool = True,
) -> str:
    """The card as Markdown.

    Args:
        card: of the model folder.
        title: the first heading.
        model_digest: of that folder.
        code_commit: of the code that trained it.
        evaluated: scores to be shown; without them those of training's own validation are.
        with_classes: the class table too, one line per class.
    """
    sections = [f"# {title}", _summary(card), _intended_input(card), _scores(card, evaluated)]
    if with_classes:
        sections.append(_classes(card, evaluated))
    sections += [_cost(card), _origin(card, model_digest=model_digest, code_commit=code_commit)]
    return "\n\n".join(sections) + "\n"


def _summary(card: ModelCard) -> str:
    network = network_to_dict(card.model_config)["network"]
    what = {
        "segmentation": f"names one of {card.num_classes} classes for every pixel of an image",
        "classification": f"names one of {card.num_classes} classes for a whole image",
    }[card.task]
    return f"`{network}` on `{card.model_config.backbone}`: {what}."


def _intended_input(card: ModelCard) -> str:
    policy = card.input_policy
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (card.mean, card.std))
    return "\n".join(
        [
            "## Intended input",
            "",
            f"- RGB images, 8 bits a channel, like those of its training data: about {policy.image_height} x "
            f"{policy.image_width} pixels (rows x columns), seen in crops of {policy.crop_height} x "
            f"{policy.crop_width}. Any size is taken; of another scale or kind of picture its scores say nothing.",
            f"- Channels R, G, B divided by 255, less {mean}, divided by {std}. Exported graphs and served models do "
            "this themselves.",
        ]
    )


def _scores(card: ModelCard, evaluated: EvaluatedScores | None) -> str:
    if evaluated is not None:
        rows = [
            (name, _percent(evaluated.scores[name]), _interval(evaluated.intervals.get(name)))
            for name in _ORDER
            if name in evaluated.scores
        ]
        note = f"Evaluated on {evaluated.data}."
        if evaluated.intervals:
            return _section("Scores", note, ("score", "value", "interval"), rows)
        return _section("Scores", note, ("score", "value"), [row[:2] for row in rows])
    rows_of_training = [
        (name, _percent(value)) for name, value in sorted(card.scores.items()) if name.count("/") == 1
    ]  # without single classes
    note = "Of the validation at the end of training, which also chose these weights: no evaluation is at hand."
    return _section("Scores", note, ("score", "value"), rows_of_training)


def _classes(card: ModelCard, evaluated: EvaluatedScores | None) -> str:
    scores = evaluated.scores if evaluated else {}
    if evaluated is None:
        start = f"val/{_CLASS_SCORE}"
        scores = {name.removeprefix("val/"): value for name, value in card.scores.items() if name.startswith(start)}
    intervals = evaluated.intervals if evaluated else {}
    rows = []
    for index, name in enumerate(card.class_names):
        colour = "#{:02x}{:02x}{:02x}".format(*card.palette[index]) if card.palette else ""
        iou, bounds = scores.get(_CLASS_SCORE + name), intervals.get(_CLASS_SCORE + name)
        shown = "" if iou is None else _percent(iou) + (f" ({_interval(bounds)})" if bounds else "")
        rows.append((str(index), name, f"`{colour}`" if colour else "", shown))
    return _section("Classes", "", ("index", "class", "colour", "IoU"), rows)


def _cost(card: ModelCard) -> str:
    cost = network_cost(card)
    return (
        f"## Cost\n\n{cost.parameters:,} parameters; {cost.multiply_adds / 1e9:.4g} G multiply-adds for an image of "
        f"{cost.height} x {cost.width} pixels."
    )


def _origin(card: ModelCard, *, model_digest: str, code_commit: str) -> str:
    rows = [
        ("model digest", f"`{model_digest}`"),
        ("dataset digest", f"`{card.dataset_digest}`"),
        ("label PCA digest", f"`{card.label_pca_digest}`" if card.label_pca_digest else "none: not data-dependent"),
        ("code commit", f"`{code_commit}`"),
    ]
    settings = {name: card.recipe.get(name) for name in ("recipe_name", "epochs", "batch_size")}
    rows += [(name.replace("_", " "), f"`{value}`") for name, value in settings.items() if value]
    return _section("Origin", "", ("what", "value"), rows)


def _section(title: str, note: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"## {title}", ""]
    if note:
        lines += [note, ""]
    lines += [table_line(columns), table_line("---" for _ in columns), *map(table_line, rows)]
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{100 * value:.2f} %"


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f} %"


def front_matter(values: Mapping[str, str | Sequence[str]]) -> str:
    """A YAML block before a card, as the Hugging Face Hub reads it; plain words only, which need no quotes."""
    lines = ["---"]
    for name, value in values.items():
        lines += [f"{name}: {value}"] if isinstance(value, str) else [f"{name}:", *(f"- {each}" for each in value)]
    return "\n".join([*lines, "---", "", ""])
