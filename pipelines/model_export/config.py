"""What is exported, in which form, and where to."""

from dataclasses import dataclass
from typing import Literal

ModelFormat = Literal["pt2", "onnx", "hf"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelExportConfig:
    """A trained segmentation network for programs that do not have this code; docs/export.md."""

    model: str
    """Model folder, or models:/name@alias."""
    output: str
    """Folder or URI of the export: new, empty, or begun by the same command."""
    format: ModelFormat
    """pt2: a graph of torch.export. onnx: a graph of ONNX. Both take uint8 RGB images of any size, normalise them
    themselves and give class scores of that size. hf: a folder in the Hugging Face layout, which loads back."""
    scores: str = ""
    """Folder of an evaluation of this model (evaluate --output), for the model card; default: training's own scores."""
    tracking_uri: str | None = None
    """MLflow server or SQLite file, where --model is one of its; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db
    here."""
