"""Exponential moving average of a network's weights."""

import math

import torch
from torch import nn


def average_decay(step: int, *, decay: float) -> float:
    """Share of the old average that is kept after optimiser step `step` (1 for the first).

    min(decay, 1 - step^(-2/3)): the first step's weights are taken as they are, and the first thousands of steps are
    averaged over a window that grows with them, so that initial weights are soon forgotten.

    Source: timm 1.0, `ModelEmaV3` with `use_warmup`, its gamma 1 and power 2/3; 0.999 is reached after 31 600 steps.
    """
    return min(decay, 1 - math.pow(step, -2 / 3))


@torch.no_grad()
def update_average(averaged: nn.Module, network: nn.Module, *, step: int, decay: float) -> None:
    """Move a copy of a network towards it: average = d * average + (1 - d) * value, d from `average_decay`.

    Running means and variances of batch normalisation are averaged as the weights are (so in timm); integers copied.

    Args:
        averaged: a deep copy of `network` from an earlier step; changed in place.
        network: after its optimiser step.
        step: optimiser steps done, this one included.
        decay: in the long run; below 1.
    """
    share = 1 - average_decay(step, decay=decay)
    own, values = averaged.state_dict(), network.state_dict()
    moving = [name for name, value in values.items() if value.is_floating_point()]
    torch._foreach_lerp_([own[name] for name in moving], [values[name] for name in moving], share)
    for name in values.keys() - set(moving):
        own[name].copy_(values[name])
