"""Models that are asked together: which they are, how each is shown an image, and whether they fit one another.

A single model is an ensemble of one, with its own digest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines import storage
from pipelines.checkpoints import ModelBundle, ModelCard, chosen_inference, load_model, read_card
from pipelines.manifests import digest
from segcore.inference import InferenceConfig, Member, check_one_crf, inference_from_dict, inference_to_dict

if TYPE_CHECKING:  # workers, which load members, have no use for MLflow
    from pipelines.tracking import ResolvedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberModel:
    """A model that a job was asked for, fixed once on the driver, and how it is shown an image.

    Attributes:
        model_uri: `models:/name/version`, or the folder as it was given.
        model_version: of the registered model, or "" for a plain folder.
        model_folder: that every worker can read.
        model_digest: of that folder.
        inference: see `InferenceConfig`.
    """

    model_uri: str
    model_version: str
    model_folder: str
    model_digest: str
    inference: InferenceConfig

    def identity(self) -> dict[str, Any]:
        """What its probabilities depend on, beside the image."""
        return {"model_digest": self.model_digest, "inference": inference_to_dict(self.inference)}

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `member_from_dict` reads them."""
        return {
            "model_uri": self.model_uri,
            "model_version": self.model_version,
            "model_folder": self.model_folder,
            **self.identity(),
        }


def member_from_dict(values: Mapping[str, Any]) -> MemberModel:
    """Inverse of `MemberModel.to_dict`."""
    return MemberModel(**{**values, "inference": inference_from_dict(values["inference"])})


def find_members(
    models: "Sequence[ResolvedModel]", inference: InferenceConfig, *, recipe_inference: bool
) -> tuple[tuple[MemberModel, ...], ModelCard]:
    """Read the cards of the models that a job was asked for, and see that they know the same classes.

    Args:
        models: one or more.
        inference: how all of them are shown an image.
        recipe_inference: each as its own recipe says, in place of `inference`.

    Returns:
        The members, and the first one's card, whose class table is everybody's.

    Raises:
        ValueError: a model is missing or broken; class tables differ; the first has not the CRF of another; see also
            `chosen_inference`.
    """
    members: list[MemberModel] = []
    cards: list[ModelCard] = []
    for model in models:
        folder = storage.absolute(model.folder_uri)  # workers run in other folders
        card, model_digest = read_card(folder)
        cards.append(card)
        if card.class_names != cards[0].class_names:
            raise ValueError(
                f"model {model.model_uri!r} and the first of its ensemble, {models[0].model_uri!r}, have different "
                f"class tables: {class_difference(card.class_names, cards[0].class_names)}; give models that were "
                "trained on one class table"
            )
        members.append(
            MemberModel(
                model_uri=model.model_uri,
                model_version=model.version,
                model_folder=folder,
                model_digest=model_digest,
                inference=chosen_inference(card, inference, as_in_recipe=recipe_inference),
            )
        )
    check_one_crf([member.inference for member in members])
    return tuple(members), cards[0]


def class_difference(there: Sequence[str], here: Sequence[str]) -> str:
    """In words, what is not the same in two class tables: their lengths, and the first class."""
    found = [f"{len(there)} classes there and {len(here)} here"]
    for index, (theirs, ours) in enumerate(zip(there, here, strict=False)):
        if theirs != ours:
            found.append(f"class {index} is {theirs!r} there and {ours!r} here")
            break
    return "; ".join(found)


def ensemble_digest(members: Sequence[MemberModel]) -> str:
    """Of the weights of all; of one model its own digest. What each is shown is `MemberModel.identity`."""
    if len(members) == 1:
        return members[0].model_digest
    return digest([member.model_digest for member in members])


def ensemble_uri(members: Sequence[MemberModel]) -> str:
    """What a result names as its model: the URIs of all, joined by " + "."""
    return " + ".join(member.model_uri for member in members)


def load_member(member: MemberModel) -> Member:
    """Load a model, ready for `segcore.inference.prepare`.

    Raises:
        ValueError: the folder is gone or broken, or holds another model by now.
    """
    bundle = load_model(member.model_folder, output_stride=member.inference.output_stride)
    if bundle.digest != member.model_digest:
        raise ValueError(
            f"model folder {member.model_folder!r} has changed since this work was planned: its digest is "
            f"{bundle.digest[:12]}, expected {member.model_digest[:12]}; put the planned model back, or start again"
        )
    return member_of(bundle, member.inference)


def member_of(bundle: ModelBundle, inference: InferenceConfig) -> Member:
    """A loaded model, and how it is shown an image."""
    return Member(model=bundle.model, mean=bundle.card.mean, std=bundle.card.std, config=inference)
