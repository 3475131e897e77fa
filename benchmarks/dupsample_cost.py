r"""Time of DUpsample beside the DeepLabV3+ decoder that it replaces, at 513 x 513, output stride 16, 21 classes.

    python benchmarks/dupsample_cost.py

Both start at ASPP's 256 channels on 33 x 33 and end in scores at 513 x 513; neither backbone nor ASPP is timed.
- DUpsample alone: from the code of 64 channels, cut to 513. Target: below 0.35 of the DeepLabV3+ decoder.
- DeepLabV3+ decoder: ResNet-50's stride-4 feature, separable convolutions, classifier, bilinear enlargement.
- Whole DUpsampling decoders, for information: fusions, prediction of the code, DUpsample, temperature.
One image, float32, torch's own number of threads, contiguous and channels_last; all interleaved, medians of ratios.
Writes its section into docs/benchmarks.md and ends with 1 where the target is missed.
"""

import os
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from report import interleaved_seconds, median_ratio, table, write_section
from torch import Tensor, nn

from segcore.models.block_codes import blank_block_code
from segcore.models.deeplab import DeepLabV3Plus, DeepLabV3PlusConfig
from segcore.models.dupsampling import DUpsampling, DUpsamplingConfig

SIZE = 513
OUTPUT_STRIDE = 16
NUM_CLASSES = 21
FEATURES: tuple[tuple[int, ...], ...] = ((), (2, 16))
ROUNDS = 15
TARGET = 0.35
REFERENCE = "DeepLabV3+ decoder"
OURS = "DUpsample alone"

Decoder = Callable[[], Tensor]


def maps(stride: int, channels: int, layout: torch.memory_format) -> Tensor:
    """A random feature map of a stride, whose gradient is wanted where there are any."""
    side = -(-SIZE // stride)
    return torch.randn(1, channels, side, side).to(memory_format=layout).requires_grad_()


def plain(model: DeepLabV3Plus, x: Tensor, features: dict[int, Tensor]) -> Tensor:
    """The end of `DeepLabV3Plus.forward`."""
    assert model.decoder is not None
    scores: Tensor = model.head(model.decoder(x, features), height=SIZE, width=SIZE).logits_NCHW
    return scores


def proposed(model: DUpsampling, x: Tensor, features: dict[int, Tensor]) -> Tensor:
    """The end of `DUpsampling.forward`."""
    for stride, fusion in zip(model.feature_strides, model.fusions, strict=True):
        x = fusion(x, features[stride])
    scores: Tensor = model.head(model.depthwise(x), height=SIZE, width=SIZE).logits_NCHW
    return scores


def expand(layer: nn.Module, code: Tensor) -> Tensor:
    """DUpsample and the cut."""
    scores: Tensor = layer(code)[..., :SIZE, :SIZE]
    return scores


def decoders(layout: torch.memory_format, *, training: bool) -> dict[str, Decoder]:
    """Everything that is timed, by its name in the table."""
    deeplab = DeepLabV3Plus(DeepLabV3PlusConfig(backbone="resnet50", output_stride=OUTPUT_STRIDE), NUM_CLASSES)
    deeplab = deeplab.to(memory_format=layout).train(training)
    backbone = deeplab.backbone
    maps_by_stride = {
        stride: maps(backbone.feature_strides[stride], channels, layout)
        for stride, channels in backbone.channels.items()
    }
    aspp = maps(OUTPUT_STRIDE, DeepLabV3PlusConfig().aspp_channels, layout)
    found: dict[str, Decoder] = {REFERENCE: partial(plain, deeplab, aspp, maps_by_stride)}
    for features in FEATURES:
        config = DUpsamplingConfig(backbone="resnet50", output_stride=OUTPUT_STRIDE, features=features)
        code = blank_block_code(config.dupsample, block_side=OUTPUT_STRIDE, num_classes=NUM_CLASSES)
        model = DUpsampling(config, NUM_CLASSES, code)
        model = model.to(memory_format=layout).train(training)
        nn.init.normal_(model.head.dupsample.weight)
        if OURS not in found:
            found[OURS] = partial(
                expand, model.head.dupsample, maps(OUTPUT_STRIDE, config.dupsample.num_components, layout)
            )
        names = " and ".join(str(stride) for stride in features)
        name = f"DUpsampling decoder, {f'features of stride {names}' if features else 'no low-level features'}"
        found[name] = partial(proposed, model, aspp, maps_by_stride)
    return found


def forward_and_backward(decoder: Decoder, gradient: Tensor) -> None:
    """One training step's share of the decoder."""
    decoder().backward(gradient)


def measure(layout: torch.memory_format, *, training: bool) -> dict[str, tuple[float, float]]:
    """Median milliseconds, and median over rounds of the ratio to the DeepLabV3+ decoder."""
    found = decoders(layout, training=training)
    gradient = torch.randn(1, NUM_CLASSES, SIZE, SIZE).to(memory_format=layout)
    sides: dict[str, Callable[[], object]] = {
        name: partial(forward_and_backward, decoder, gradient) if training else decoder
        for name, decoder in found.items()
    }
    with torch.set_grad_enabled(training):
        for side in sides.values():
            side()
        seconds = interleaved_seconds(sides, rounds=ROUNDS)
    return {
        name: (1e3 * statistics.median(times), median_ratio(times, seconds[REFERENCE]))
        for name, times in seconds.items()
    }


def section(results: dict[str, dict[str, tuple[float, float]]], load: float) -> str:
    """Markdown of the results."""
    rows = [
        (name, *(f"{milliseconds:.1f} ({ratio:.2f})" for milliseconds, ratio in (found[name] for found in columns)))
        for columns in [list(results.values())]
        for name in columns[0]
    ]
    return f"""## Cost of DUpsample

`python benchmarks/dupsample_cost.py`: one image of {SIZE} x {SIZE}, output stride {OUTPUT_STRIDE}, {NUM_CLASSES}
classes, {torch.get_num_threads()} threads, from ASPP's output to scores at full size; ResNet-50's feature widths.
Milliseconds, and in brackets the median over {ROUNDS} rounds of the ratio to the DeepLabV3+ decoder. Training is
forward and backward. Target for DUpsample alone, eval: below {TARGET}. Load before: {load:.1f}.

{table(("", *results), rows)}"""


def main() -> int:
    """Measure, print, write the section."""
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    results = {
        f"{'training' if training else 'eval'}, {name}": measure(layout, training=training)
        for training in (False, True)
        for name, layout in layouts.items()
    }
    text = section(results, load)
    print(text)
    write_section("dupsample_cost", text)
    return int(any(results[f"eval, {name}"][OURS][1] >= TARGET for name in layouts))


if __name__ == "__main__":
    sys.exit(main())
