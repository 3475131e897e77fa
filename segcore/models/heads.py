"""The last step of every network: from its finest feature map to class scores at the image's size.

`BilinearHead` classifies each location and enlarges the scores; `TransposedHead` does both at once, by a learned
kernel. `DUpsampleHead` predicts, at each location, the code of
a whole R x R block of labels (R = the factor of the enlargement), which a decoder fitted to the training labels
expands: data-dependent upsampling (Tian et al., CVPR 2019, arXiv 1903.02120, section 3). Either head fits any network.

A temperature scales the scores: the decoder reconstructs one-hot values in [0, 1], and with temperature 1 even perfect
ones cost ln(e + C - 1) - 1 = 2.12 nats at 21 classes.

Where the paper is silent (it gives no code):
- The convolution that predicts the code is a plain one with a bias, as every classifier's last: batch normalisation
  there forces each batch's mean code to be the same, whatever the images show, and trains worse. The published sizes
  count it, so `code_batch_norm` has it. It starts at the mean code of the training labels, with next to no weights.
- The decoder is frozen; with `freeze_basis=False` it only starts from the label code.
- T = 0.001 + exp(t), so that it stays positive and never loses its gradient; no weight decay. Start 0.1 rather than 1:
  from 1 it has to fall by a factor of 10 to 30 before the loss means anything.
- `code_scale`. A block of one class is a vector of norm R, so codes reach R while a fresh layer emits about 1. A
  diagonal is absorbed into the decoder, W' = W diag(s): the same span, the same functions, another conditioning.
- The loss on codes counts a block by its share of valid pixels, since the code of ignored pixels is that of nothing.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from segcore.layers import DUpsample, LabelEncoder, enlarge_scores, initialise_convolutions
from segcore.models.block_codes import TEMPERATURE_FLOOR, BlockCode, DUpsampleConfig
from segcore.models.contract import LossTerms, SegmentationOutput
from segcore.models.main_loss import LossConfig, MainLoss

CODE_WEIGHT_STD = 1e-3
"""Of the layer that predicts the code: small, so that training does not start by unlearning random blocks."""
CODE_NORM_GAIN = 0.1
"""Deviation of a normalised code at the start, in units of the labels' own: small for the same reason."""

Decoder = Literal["bilinear", "dupsample"]
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
MIN_ENLARGEMENT = 4
"""Smallest factor of a bilinear last step that a data-dependent one may replace."""


class FixedDecoder:
    """Base of configs whose last step no other decoder can replace.

    It enlarges by less than `MIN_ENLARGEMENT` or not at all, or, as FCN's, its map does not begin where the image does.
    """

    __slots__ = ()

    decoder: ClassVar[Decoder] = "bilinear"
    dupsample: ClassVar[DUpsampleConfig] = DUpsampleConfig()


Predictor = Callable[[int, bool], nn.Module]
"""Makes a network's last layer for a number of outputs (class scores, or a code), with or without a bias: linear in its
input, and made of nothing but `nn.Conv2d`."""


def pointwise(in_channels: int) -> Predictor:
    """A 1x1 convolution: the last layer of most networks."""
    return lambda out_channels, bias: nn.Conv2d(in_channels, out_channels, 1, bias=bias)


class BilinearHead(nn.Module):
    """Classifier, scores enlarged bilinearly."""

    def __init__(self, predictor: Predictor, num_classes: int, *, enlargement: int) -> None:
        super().__init__()
        self.enlargement = enlargement
        self.main_loss = MainLoss(LossConfig())
        self.classifier = predictor(num_classes, True)
        initialise_convolutions(self.classifier)
        for convolution in _convolutions(self.classifier):
            nn.init.trunc_normal_(convolution.weight, std=0.01)

    def forward(self, x_NKhw: Any, *, height: int, width: int) -> SegmentationOutput:
        """Scores at the image's size; `x_NKhw` is what the predictor takes, for most a map."""
        return SegmentationOutput(
            logits_NCHW=enlarge_scores(self.classifier(x_NKhw), self.enlargement, height=height, width=width)
        )

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """Cross-entropy, or the recipe's loss, at full resolution; labels are never resized."""
        terms: LossTerms = self.main_loss(output.logits_NCHW, labels_NHW)
        return terms


class TransposedHead(nn.Module):
    """Transposed convolution of stride 2 without a bias: it enlarges and classifies at once (ENet, ESPNet).

    Args:
        in_channels: of the map at half of the image's size.
        num_classes: C.
        kernel_size: 2, or 3 centred on each location.
    """

    def __init__(self, in_channels: int, num_classes: int, *, kernel_size: Literal[2, 3]) -> None:
        super().__init__()
        self.main_loss = MainLoss(LossConfig())
        centred = kernel_size - 2
        self.enlarge = nn.ConvTranspose2d(
            in_channels, num_classes, kernel_size, stride=2, padding=centred, output_padding=centred, bias=False
        )
        nn.init.trunc_normal_(self.enlarge.weight, std=0.01)

    def forward(self, x_NKhw: Tensor, *, height: int, width: int) -> SegmentationOutput:
        """Scores at the image's size, in the map's memory layout: a copy of them would take longer than it saves."""
        return SegmentationOutput(logits_NCHW=self.enlarge(x_NKhw)[..., :height, :width])

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """Cross-entropy, or the recipe's loss, at full resolution; labels are never resized."""
        terms: LossTerms = self.main_loss(output.logits_NCHW, labels_NHW)
        return terms


class DUpsampleHead(nn.Module):
    """Predicted code, expanded to R x R blocks of scores, divided by the temperature.

    `low_resolution_NKhw` of its output is the code in the label code's own units, as `segcore.label_code.project`
    gives it.
    """

    scale_P: Tensor

    def __init__(self, predictor: Predictor, config: DUpsampleConfig, code: BlockCode) -> None:
        super().__init__()
        self.config = config
        self.main_loss = MainLoss(LossConfig())
        dtype = torch.get_default_dtype()
        start_P = (code.mean_P / code.scale_P).to(dtype)
        self.predict_code = predictor(config.num_components, not config.code_batch_norm)
        convolutions = _convolutions(self.predict_code)
        for convolution in convolutions:
            nn.init.normal_(convolution.weight, std=CODE_WEIGHT_STD)
        self.code_norm = nn.BatchNorm2d(config.num_components) if config.code_batch_norm else nn.Identity()
        if isinstance(self.code_norm, nn.BatchNorm2d):
            initialise_convolutions(self.predict_code)
            self.code_norm.weight = nn.Parameter(CODE_NORM_GAIN * (code.std_P / code.scale_P).to(dtype))
            self.code_norm.bias = nn.Parameter(start_P)
        else:
            for convolution in convolutions:  # outputs add up
                convolution.bias = nn.Parameter(start_P / len(convolutions))
        weights = [*(weight for weight, _ in code.hidden), code.basis_DO]
        weights[0] = weights[0] * code.scale_P
        trainable = not config.freeze_basis
        self.hidden = nn.Sequential()
        for weight, (_, bias) in zip(weights[:-1], code.hidden, strict=True):
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
            layer.weight = nn.Parameter(weight[:, :, None, None].to(dtype).clone(), requires_grad=trainable)
            layer.bias = nn.Parameter(bias.to(dtype).clone(), requires_grad=trainable)
            self.hidden.extend([layer, nn.ReLU()])
        self.dupsample = DUpsample(weights[-1], code.bias_D, block_side=code.block_side, trainable=trainable)
        self.register_buffer("scale_P", code.scale_P.to(dtype))
        self.encoder = LabelEncoder(code.encoder, block_side=code.block_side) if config.code_loss_weight else None
        self.log_temperature: nn.Parameter | None = None
        if config.temperature != "off":
            log_temperature = torch.tensor(math.log(config.temperature_init - TEMPERATURE_FLOOR))
            self.log_temperature = nn.Parameter(log_temperature, requires_grad=config.temperature == "learned")

    @property
    def temperature(self) -> Tensor:
        """Softmax temperature T, a scalar to be read (detached from the graph)."""
        return self._temperature().detach()

    def forward(self, x_NKhw: Any, *, height: int, width: int) -> SegmentationOutput:
        """Scores at the image's size, already divided by the temperature; `x_NKhw` is what the predictor takes."""
        code = self.code_norm(self.predict_code(x_NKhw))
        scores = self.dupsample(self.hidden(code))[..., :height, :width]
        return SegmentationOutput(
            logits_NCHW=scores / self._temperature(), low_resolution_NKhw=code * self.scale_P[:, None, None]
        )

    def loss(self, output: SegmentationOutput, labels_NHW: Tensor) -> LossTerms:
        """Cross-entropy (or the recipe's loss) at full resolution, squared distance of codes, or both (section 3.1)."""
        terms: dict[str, Tensor] = {}
        total = output.logits_NCHW.new_zeros((), dtype=torch.float32)
        if self.config.cross_entropy_weight:
            main: LossTerms = self.main_loss(output.logits_NCHW, labels_NHW)
            terms |= main.terms
            total = total + self.config.cross_entropy_weight * main.total
        if self.encoder is not None:
            assert output.low_resolution_NKhw is not None
            loss = self._code_loss(output.low_resolution_NKhw, labels_NHW)
            terms["code"] = loss.detach()
            total = total + self.config.code_loss_weight * loss
        return LossTerms(total=total, terms=terms)

    def _code_loss(self, code_NPhw: Tensor, labels_NHW: Tensor) -> Tensor:
        """Mean over valid pixels of |x - P v|^2 / R^2; 0 where there is no valid pixel."""
        assert self.encoder is not None
        target_NPhw, valid_Nhw = self.encoder(labels_NHW)
        rows, columns = target_NPhw.shape[-2:]
        distance_Nhw = (code_NPhw[..., :rows, :columns].float() - target_NPhw).square().sum(dim=1)
        area = self.dupsample.block_side**2
        loss: Tensor = (distance_Nhw * valid_Nhw).sum() / area / valid_Nhw.sum().clamp(min=1 / area)
        return loss

    def _temperature(self) -> Tensor:
        if self.log_temperature is None:
            return torch.ones(())
        temperature: Tensor = TEMPERATURE_FLOOR + self.log_temperature.exp()
        return temperature


Head = BilinearHead | DUpsampleHead


def build_head(
    predictor: Predictor, num_classes: int, *, enlargement: int, config: DUpsampleConfig, code: BlockCode | None
) -> Head:
    """The bilinear head, or the data-dependent one where there is a code.

    Args:
        predictor: makes the last layer: `pointwise(channels)` for most networks.
        num_classes: C.
        enlargement: image size / size of the map that the head takes.
        config, code: of a data-dependent head.
    """
    if code is None:
        return BilinearHead(predictor, num_classes, enlargement=enlargement)
    return DUpsampleHead(predictor, config, code)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def check_decoder(decoder: str, *, enlargement: int) -> None:
    """Refuse an unknown decoder, and a data-dependent one where there is next to nothing to enlarge.

    Raises:
        ValueError: the message says what is known, or how large the factor must be.
    """
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}; known: {', '.join(DECODERS)}")
    if decoder == "dupsample" and enlargement < MIN_ENLARGEMENT:
        raise ValueError(
            f"decoder 'dupsample' would enlarge by {enlargement} only; it takes the place of bilinear enlargement by "
            f"{MIN_ENLARGEMENT} or more, so keep 'bilinear' here"
        )
