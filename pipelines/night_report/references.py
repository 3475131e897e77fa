"""What a model said of the images that it was validated on, for nights to be held against: `reference.json`.

`train` measures it once, of the best weights, on the validation split, with the recipe's inference, image by image as
`segment` does. At most `MAX_IMAGES` images at even distances are taken, fewer where the recipe shows each of them to
the network many times (`MAX_NETWORK_INPUTS`, but at least `MIN_IMAGES`): it costs about the validation of one epoch.
The same weights on the same machine give the same file.

The model folder's manifest names the file with its SHA-256. It is no part of the folder's digest, which says that two
folders give the same masks. A folder without one, of an older version, stays as good as it was; its nights say that
there is nothing to hold them against.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines import storage
from pipelines.checkpoints import KIND
from pipelines.ensembles import MemberModel, load_member
from pipelines.intake.images import decode_image
from pipelines.manifests import read_manifest, write_manifest
from pipelines.night_report.drift import Distribution, mean_brightness
from pipelines.shards import PreparedDataset, spread_rows
from segcore.inference import Member, inference_to_dict, predict_ensemble, prepare

logger = logging.getLogger(__name__)

REFERENCE_FILE = "reference.json"
REFERENCE_VERSION = 1
MAX_IMAGES = 200
MIN_IMAGES = 40
MAX_NETWORK_INPUTS = 2000

QUANTITIES = ("confidence", "entropy", "brightness", "pixels")
"""What is measured of an image beside its class fractions: mean largest probability, mean entropy in nats, mean of its
RGB values (0 to 1), height * width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReference:
    """How the validation images look to a model.

    Attributes:
        dataset_digest: of the prepared dataset.
        split: of it.
        num_images: that were measured.
        inference: fields of the `InferenceConfig`.
        class_names: by class index.
        class_fractions: of each class.
        quantities: of each of `QUANTITIES`.
    """

    dataset_digest: str
    split: str
    num_images: int
    inference: dict[str, Any]
    class_names: tuple[str, ...]
    class_fractions: tuple[Distribution, ...]
    quantities: dict[str, Distribution]

    @property
    def distributions(self) -> tuple[Distribution, ...]:
        """Of everything that is measured of an image: class fractions, then `QUANTITIES`."""
        return (*self.class_fractions, *(self.quantities[name] for name in QUANTITIES))

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return storage.sha256(_reference_bytes(self))


def measure_reference(member: MemberModel, dataset: PreparedDataset, *, split: str, device: str) -> ModelReference:
    """Run a model over images of a split.

    Args:
        member: the model, and how it is shown an image; with all its classes.
        dataset: whose classes are the model's.
        split: of it, not empty.
        device: that the network runs on.
    """
    network = load_member(member)
    prepare(network.model, device)
    ((_, num_inputs),) = _measured(network, dataset, split=split, count=1)
    affordable = max(MIN_IMAGES, MAX_NETWORK_INPUTS // num_inputs)
    rows = [values for values, _ in _measured(network, dataset, split=split, count=min(MAX_IMAGES, affordable))]
    values_NQ = np.asarray(rows, dtype=np.float64)
    # As the tables hold all but the pixels, which are integers: equal values are then equal.
    values_NQ[:, :-1] = values_NQ[:, :-1].astype(np.float32)
    distributions = [Distribution.of(values_N) for values_N in values_NQ.T]
    num_classes = dataset.num_classes
    return ModelReference(
        dataset_digest=dataset.digest,
        split=split,
        num_images=len(rows),
        inference=json.loads(json.dumps(inference_to_dict(member.inference))),  # lists, as it reads back
        class_names=dataset.class_names,
        class_fractions=tuple(distributions[:num_classes]),
        quantities=dict(zip(QUANTITIES, distributions[num_classes:], strict=True)),
    )


def _measured(network: Member, dataset: PreparedDataset, *, split: str, count: int) -> list[tuple[list[float], int]]:
    """Class fractions and `QUANTITIES` of some images, and how many network inputs each took."""
    found: list[tuple[list[float], int]] = []
    for row in spread_rows(dataset, split, count=count, columns=("image_id", "image")):
        pixels_HW3 = decode_image(row["image"]).pixels_HW3
        images_13HW = torch.from_numpy(np.array(pixels_HW3)).permute(2, 0, 1)[None]
        seen = predict_ensemble([network], images_13HW, image_ids=[row["image_id"]])
        num_pixels = pixels_HW3.shape[0] * pixels_HW3.shape[1]
        values = [
            *(seen.class_pixels_NC[0] / num_pixels).tolist(),
            float(seen.mean_confidence_N[0]),
            float(seen.mean_entropy_N[0]),
            mean_brightness(pixels_HW3),
            float(num_pixels),
        ]
        found.append((values, int(seen.num_inputs_N[0])))
    return found


def write_reference(model_folder: str, reference: ModelReference) -> None:
    """Put a reference into a finished model folder, whose digest stays as it is; replaces an older one."""
    data = _reference_bytes(reference)
    storage.write_atomic(storage.join(model_folder, REFERENCE_FILE), data)
    manifest = read_manifest(model_folder, kind=KIND)
    entry = {"sha256": storage.sha256(data), "num_bytes": len(data)}
    write_manifest(model_folder, kind=KIND, content=manifest | {"reference": entry})


def read_reference(model_folder: str) -> ModelReference | None:
    """The reference of a model folder, or None where it has none.

    Raises:
        ValueError: the folder is no finished model; or its reference is missing, has changed, or is of a version that
            this one does not read.
    """
    entry = read_manifest(model_folder, kind=KIND).get("reference")
    if entry is None:
        return None
    uri = storage.join(model_folder, REFERENCE_FILE)
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        raise ValueError(f"{uri} is missing though the model's manifest lists it; copy the whole folder") from None
    if storage.sha256(data) != entry["sha256"]:
        raise ValueError(f"{uri} has changed since it was written (its SHA-256 differs); restore it or train again")
    values = storage.read_json(uri)
    if values["version"] != REFERENCE_VERSION:
        raise ValueError(f"{uri} has version {values['version']}, expected {REFERENCE_VERSION}; update this package")
    return ModelReference(
        dataset_digest=values["dataset_digest"],
        split=values["split"],
        num_images=values["num_images"],
        inference=values["inference"],
        class_names=tuple(values["class_names"]),
        class_fractions=tuple(Distribution.from_dict(each) for each in values["class_fractions"]),
        quantities={name: Distribution.from_dict(each) for name, each in values["quantities"].items()},
    )


def _reference_bytes(reference: ModelReference) -> bytes:
    values = {
        "version": REFERENCE_VERSION,
        "dataset_digest": reference.dataset_digest,
        "split": reference.split,
        "num_images": reference.num_images,
        "inference": reference.inference,
        "class_names": list(reference.class_names),
        "class_fractions": [each.to_dict() for each in reference.class_fractions],
        "quantities": {name: each.to_dict() for name, each in reference.quantities.items()},
    }
    return storage.json_bytes(values)
