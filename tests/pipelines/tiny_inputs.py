"""A prepared dataset of a few generated images, label PCAs and model folders, for tests of stages that read them."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipelines import storage
from pipelines.checkpoints import InputPolicy, ModelCard, save_model
from pipelines.intake.labels import encode_labels_png
from pipelines.label_pcas import LabelPCAFolder, save_label_pca
from pipelines.manifests import write_manifest
from pipelines.pictures import png_bytes
from pipelines.shards import FORMAT_VERSION, KIND, SHARD_SCHEMA, parquet_bytes, part_path
from segcore import IGNORE_INDEX
from segcore.inference import InferenceConfig, inference_to_dict
from segcore.label_blocks import BlockStatistics
from segcore.label_pca import solve
from segcore.models import DeepLabV3PlusConfig, ModelConfig, build_model

CLASS_NAMES = ("sky", "road", "tree (tall)", "never")
PALETTE = ((70, 130, 180), (128, 64, 128), (107, 142, 35), (255, 255, 255))
NETWORK = DeepLabV3PlusConfig(
    backbone="xception39", output_stride=32, aspp_channels=16, low_level_features=(), decoder_channels=16
)

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def random_pairs(count: int, *, seed: int, sizes: tuple[tuple[int, int], ...] = ((48, 64),)) -> list[Pair]:
    """Images (H, W, 3) and labels (H, W) of three large areas and some ignored pixels; class 3 never occurs."""
    rng = np.random.default_rng(seed)
    pairs: list[Pair] = []
    for index in range(count):
        height, width = sizes[index % len(sizes)]
        labels_HW = np.zeros((height, width), dtype=np.uint8)
        labels_HW[int(rng.integers(10, height - 10)) :] = 1
        labels_HW[:, : int(rng.integers(5, width // 2))] = 2
        labels_HW[: int(rng.integers(1, 6))] = IGNORE_INDEX
        colours = np.asarray((*PALETTE, *[(0, 0, 0)] * 252), dtype=np.int16)[np.minimum(labels_HW, 4)]
        noisy = colours + rng.integers(-40, 40, (height, width, 3))
        pairs.append((np.clip(noisy, 0, 255).astype(np.uint8), labels_HW))
    return pairs


def write_dataset(folder: Path, pairs: list[Pair], *, images_per_part: int, split: str = "val") -> str:
    """Write a prepared dataset with one split as `prepare` would; returns its path."""
    parts = []
    total = np.zeros(len(CLASS_NAMES), dtype=np.int64)
    for number, start in enumerate(range(0, len(pairs), images_per_part)):
        rows = []
        for index, (pixels_HW3, labels_HW) in enumerate(pairs[start : start + images_per_part], start=start):
            image = png_bytes(pixels_HW3)
            counts = np.bincount(labels_HW[labels_HW != IGNORE_INDEX], minlength=len(CLASS_NAMES))
            total += counts
            rows.append(
                {
                    "image_id": f"scene/{index:03d}",
                    "image": image,
                    "label": encode_labels_png(labels_HW),
                    "height": labels_HW.shape[0],
                    "width": labels_HW.shape[1],
                    "class_pixels": counts.tolist(),
                    "source": f"generated-{index}.png",
                    "image_sha256": storage.sha256(image),
                }
            )
        data = parquet_bytes(rows, SHARD_SCHEMA)
        path = part_path(split, number)
        storage.write_atomic(str(folder / path), data)
        digest = storage.sha256(data)
        parts.append({"path": path, "num_rows": len(rows), "num_bytes": len(data), "sha256": digest})
    content = {
        "format_version": FORMAT_VERSION,
        "ignore_index": IGNORE_INDEX,
        "class_names": CLASS_NAMES,
        "palette": PALETTE,
        "channel_mean": [0.5, 0.5, 0.5],
        "channel_std": [0.25, 0.25, 0.25],
        "splits": [{"name": split, "num_images": len(pairs), "class_pixels": total.tolist(), "parts": parts}],
    }
    write_manifest(str(folder), kind=KIND, content=content)
    return str(folder)


def write_model(
    folder: Path,
    *,
    seed: int = 0,
    class_names: tuple[str, ...] = CLASS_NAMES,
    width: int = 16,
    backbone: str = "xception39",
    inference: InferenceConfig | None = None,
) -> str:
    """Write a model folder with random weights, whose class maps vary within an image; returns its path."""
    torch.manual_seed(seed)
    network = DeepLabV3PlusConfig(
        backbone=backbone,
        output_stride=32,
        aspp_channels=width,
        low_level_channels=8,
        decoder_channels=16,
    )
    model = build_model(network, len(class_names))
    with torch.no_grad():
        model.get_submodule("head.classifier").weight.normal_()
    return save_tiny_model(folder, network, model, class_names=class_names, inference=inference)


def save_tiny_model(
    folder: Path,
    network: ModelConfig,
    model: nn.Module,
    *,
    class_names: tuple[str, ...] = CLASS_NAMES,
    inference: InferenceConfig | None = None,
) -> str:
    """Write a built network as a model folder, with its recipe's inference if given; returns its path."""
    card = ModelCard(
        model_config=network,
        class_names=class_names,
        palette=(*PALETTE, (0, 0, 0))[: len(class_names)],
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        dataset_digest="d" * 64,
        label_pca_digest=None,
        recipe={"epochs": 1} | ({"inference": inference_to_dict(inference)} if inference else {}),
        scores={"val/mean_iou": 0.25, "val/iou/sky": 0.5},
        input_policy=InputPolicy(image_height=48, image_width=64, crop_height=48, crop_width=64),
    )
    save_model(str(folder), model, card)
    return str(folder)


def write_label_pca(folder: Path, pairs: list[Pair], *, block_side: int, num_components: int) -> LabelPCAFolder:
    """Write the label PCA of these pairs' labels as `fit_label_pca` would."""
    statistics = BlockStatistics.zero(block_side, len(CLASS_NAMES))
    for _, labels_HW in pairs:
        statistics.update(labels_HW)
    code = solve(statistics, num_components=num_components)
    return save_label_pca(str(folder), code, files={}, content={"class_names": CLASS_NAMES})
