"""Every network that docs/export.md says can be exported gives the same scores from the file, at odd sizes too."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pipelines.checkpoints import ModelBundle, load_model
from pipelines.model_export.graphs import CHECKED_SIZES, TOLERANCE, graph_bytes
from segcore.layers import DUpsample, recompute_batch_norm
from segcore.models import MODELS, blank_model
from tests.pipelines.tiny_inputs import CLASS_NAMES, save_tiny_model
from tests.segcore.models.test_contract import CASES

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "export.md"
SCORING = nn.Conv2d | nn.ConvTranspose2d | DUpsample
CHOSEN = [*MODELS, "deeplab_v3plus, no decoder", "deeplab_v3plus, dupsample"]
"""Of each network its first case; and a backbone with TensorFlow's padding, and a data-dependent decoder."""


def documented() -> dict[str, tuple[bool, bool]]:
    """Whether .pt2 and .onnx are promised, by network: the table of docs/export.md."""
    rows = re.findall(r"^\| `(\w+)` \| (yes|no)[^|]* \| (yes|no)[^|]* \|", DOCUMENT.read_text(), re.MULTILINE)
    return {name: (pt2 == "yes", onnx == "yes") for name, pt2, onnx in rows}


def test_the_table_has_every_network() -> None:
    assert list(documented()) == sorted(MODELS)


def _noise(num_images: int, height: int, width: int) -> torch.Tensor:
    """Uniform noise as the check of an export shows it, normalised about as its model card says."""
    return (torch.rand(num_images, 3, height, width) - 0.45) / 0.225


def _bundle(name: str, folder: Path) -> ModelBundle:
    """A network with random weights whose activations and scores are of the size of a trained one's."""
    torch.manual_seed(0)
    model = blank_model(CASES[name], len(CLASS_NAMES))
    recompute_batch_norm(model, [_noise(4, 224, 288) for _ in range(3)])
    head = model.eval().get_submodule("head")
    weights = [layer.get_parameter("weight") for layer in head.modules() if isinstance(layer, SCORING)]
    blank = [weight for weight in weights if not weight.any()]  # FCN's scores, and a basis that is still to be loaded
    with torch.no_grad():
        for weight in blank:
            weight.normal_()
        largest = max(float(model(_noise(*size)).logits_NCHW.abs().max()) for size in CHECKED_SIZES)
        for weight in blank or weights[-1:]:
            weight.mul_(5 / largest)
    return load_model(save_tiny_model(folder, CASES[name], model))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_files_give_the_scores_of_the_network(name: str, tmp_path: Path) -> None:
    bundle = _bundle(name, tmp_path)
    for file_format, promised in zip(("pt2", "onnx"), documented()[name.partition(",")[0]], strict=True):
        if not promised:
            with pytest.raises(ValueError, match=f"cannot be exported to {file_format}: .*; choose another format"):
                graph_bytes(bundle, file_format=file_format, metadata={})
            continue
        _, parities = graph_bytes(bundle, file_format=file_format, metadata={})
        assert [parity.size for parity in parities] == list(CHECKED_SIZES)
        assert max(parity.largest_logit for parity in parities) > 1  # else a difference of 1e-4 would say nothing
        assert max(parity.difference for parity in parities) < TOLERANCE
