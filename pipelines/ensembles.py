"""Models that are asked together: which they are, how each is shown an image, and whether they fit one another.

A single model is an ensemble of one, with its own digest.
"""

import dataclasses
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
        leave_out: classes of the model that are not asked for: see `segcore.inference.Member.classes`.
    """

    model_uri: str
    model_version: str
    model_folder: str
    model_digest: str
    inference: InferenceConfig
    leave_out: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What its probabilities depend on, beside the image."""
        values = {"model_digest": self.model_digest, "inference": inference_to_dict(self.inference)}
        return values | ({"leave_out": list(self.leave_out)} if self.leave_out else {})

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
    inference, leave_out = inference_from_dict(values["inference"]), tuple(values.get("leave_out", ()))
    return MemberModel(**{**values, "inference": inference, "leave_out": leave_out})


def find_members(
    models: "Sequence[ResolvedModel]",
    inference: InferenceConfig,
    *,
    recipe_inference: bool,
    leave_out: Sequence[str] = (),
) -> tuple[tuple[MemberModel, ...], ModelCard]:
    """Read the cards of the models that a job was asked for, and see that they know the same classes.

    Args:
        models: one or more.
        inference: how all of them are shown an image.
        recipe_inference: each as its own recipe says, in place of `inference`.
        leave_out: classes that are not asked for, by name; each of them one of some model's.

    Returns:
        The members, and the first one's card without those classes: its class table is everybody's.

    Raises:
        ValueError: a model is missing or broken; class tables differ; no model has a class to leave out, or no class is
            left; a model has another CRF than the first (`check_one_crf`); see also `chosen_inference`.
    """
    members: list[MemberModel] = []
    cards: list[ModelCard] = []
    unknown = {*leave_out}
    for model in models:
        folder = storage.absolute(model.folder_uri)  # workers run in other folders
        card, model_digest = read_card(folder)
        left_out = tuple(name for name in card.class_names if name in leave_out)
        unknown -= {*left_out}
        card = _without(card, left_out)
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
                leave_out=left_out,
            )
        )
    if unknown:
        raise ValueError(
            f"no model has the class {sorted(unknown)[0]!r} to leave out; without those left out, the first has "
            f"{', '.join(cards[0].class_names)}"
        )
    check_one_crf([member.inference for member in members])
    return tuple(members), cards[0]


def _without(card: ModelCard, left_out: Sequence[str]) -> ModelCard:
    kept = [index for index, name in enumerate(card.class_names) if name not in left_out]
    if not kept:
        raise ValueError(f"all classes are left out: {', '.join(card.class_names)}; leave at least one")
    names, palette = tuple(card.class_names[index] for index in kept), tuple(card.palette[index] for index in kept)
    return dataclasses.replace(card, class_names=names, palette=palette)


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


def joined_digests(members: Sequence[MemberModel]) -> str:
    """The digest of each model between commas, so that MLflow finds a run by any of them."""
    return f",{','.join(member.model_digest for member in members)},"


def registered_version(members: Sequence[MemberModel]) -> str:
    """`models:/name/3` where one registered version was asked for, or ""."""
    return members[0].model_uri if len(members) == 1 and members[0].model_version else ""


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
    names = bundle.card.class_names
    kept = tuple(index for index, name in enumerate(names) if name not in member.leave_out)
    return dataclasses.replace(member_of(bundle, member.inference), classes=kept if len(kept) < len(names) else ())


def member_of(bundle: ModelBundle, inference: InferenceConfig) -> Member:
    """A loaded model, and how it is shown an image."""
    return Member(model=bundle.model, mean=bundle.card.mean, std=bundle.card.std, config=inference)
