"""Train workers outside Ray."""

import torch
from torch import nn

from pipelines.recipes.recipe import Recipe
from pipelines.shards import PreparedDataset
from pipelines.training.worker import TrainJob, Worker
from segcore.optim import build_optimiser, poly_schedule

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def worker_of(network: nn.Module, recipe: Recipe, dataset: PreparedDataset, *, rank: int, world_size: int) -> Worker:
    """A worker of a training of four steps, on the CPU."""
    optimiser = build_optimiser(network, recipe.optim)
    return Worker(
        job=TrainJob(
            recipe=recipe,
            dataset=dataset,
            train_split="train",
            validation_split="val",
            initial_weights="",
            run_id="",
            tracking_uri="",
            steps_per_epoch=4,
            submitted_at=0.0,
            run_folder="",
        ),
        board=None,
        rank=rank,
        world_size=world_size,
        num_threads=2,
        device=torch.device("cpu"),
        network=network,
        replica=network,
        optimiser=optimiser,
        schedule=poly_schedule(optimiser, recipe.optim, total_steps=4),
        mean_1311=MEAN.view(1, 3, 1, 1) * 255,
        std_1311=STD.view(1, 3, 1, 1) * 255,
    )
