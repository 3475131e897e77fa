"""A model folder in the layout of the Hugging Face Hub, which `pipelines.checkpoints.load_model` reads as it is.

<folder>/config.json               the Hub's fields (classes by index), and our `ModelCard` under `segpipe`
<folder>/model.safetensors         every parameter and buffer, as in the folder that it was made from; no pickle
<folder>/preprocessor_config.json  normalisation, in the names of transformers' image processors
<folder>/README.md                 the model card, under the YAML block that the Hub reads
<folder>/manifest.json             written last: SHA-256 of each, and the digest of the folder that it was made from
"""

from typing import Any

from pipelines import storage
from pipelines.checkpoints import (
    CARD_FIELD,
    CONFIG_FILE,
    WEIGHTS_FILE,
    ModelBundle,
    ModelCard,
    card_to_dict,
    state_bytes,
)
from pipelines.model_cards import front_matter
from segcore.networks import network_to_dict

PREPROCESSOR_FILE = "preprocessor_config.json"
README_FILE = "README.md"


def hugging_face_files(bundle: ModelBundle, *, card_markdown: str) -> dict[str, bytes]:
    """The files of the folder but its manifest, by name.

    Args:
        bundle: the loaded model.
        card_markdown: `pipelines.model_cards.model_card`.
    """
    network = str(network_to_dict(bundle.card.model_config)["network"])
    header = front_matter(
        {
            "library_name": "segpipe",
            "pipeline_tag": "image-segmentation",
            "tags": ["semantic-segmentation", network, bundle.card.model_config.backbone],
        }
    )
    return {
        WEIGHTS_FILE: state_bytes(bundle.model.state_dict()),
        CONFIG_FILE: storage.json_bytes(_config(bundle.card, network)),
        PREPROCESSOR_FILE: storage.json_bytes(_preprocessor(bundle.card)),
        README_FILE: (header + card_markdown).encode(),
    }


def _config(card: ModelCard, network: str) -> dict[str, Any]:
    """`id2label` and its inverse are what the Hub shows; JSON has no integer keys."""
    return {
        "model_type": "segpipe",
        "architectures": [network],
        "num_labels": card.num_classes,
        "num_channels": 3,
        "id2label": {str(index): name for index, name in enumerate(card.class_names)},
        "label2id": {name: index for index, name in enumerate(card.class_names)},
        "torch_dtype": "float32",
        CARD_FIELD: card_to_dict(card),
    }


def _preprocessor(card: ModelCard) -> dict[str, Any]:
    """What is done to an image before the network: nothing but its normalisation, at its own size."""
    return {
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
        "data_format": "channels_first",
    }
