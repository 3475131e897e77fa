"""A run of a comparison that nobody trained."""

import dataclasses

from pipelines.comparison.runs import ComparedRun
from segcore.models import DeepLabV3PlusConfig
from tests.pipelines.tiny_inputs import CLASS_NAMES


def compared_run(name: str, **changes: object) -> ComparedRun:
    """A run with half of everything right, and what a test changes of it."""
    base = ComparedRun(
        name=name,
        run_id=f"{name}-0123456789",
        model_folder=name,
        model_digest=name,
        network="dupsampling",
        backbone="resnet50",
        output_stride=32,
        class_names=CLASS_NAMES,
        scores={"mean_iou": 0.5},
        scored_by="evaluate on 'val'",
        scored_digest="e" * 64,
        parameters=10,
        multiply_adds=20,
        cost_size=(48, 64),
        images_per_second=None,
        train_seconds=None,
        settings={"epochs": "3", "model.network": "dupsampling"},
        model_config=DeepLabV3PlusConfig(),
        recipe_name="",
        label_pca="",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]  # names of fields
