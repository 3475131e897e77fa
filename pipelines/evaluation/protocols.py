"""Ways to show a network an image that `evaluate --protocols` scores side by side, on the same images.

What makes a protocol is set by it, the rest stays as `--inference.*` or the recipe says: the working size, the output
stride, the precision, the size of windows.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from pipelines.ensembles import MemberModel
from pipelines.recipes.published import DEEPLAB_CRF, SCALES
from segcore.dense_crf import DenseCRFConfig
from segcore.inference import InferenceConfig

CHEAPEST = "single"
"""What the others' cost is compared with."""


def _given(inference: InferenceConfig) -> InferenceConfig:
    return inference


def _single(inference: InferenceConfig) -> InferenceConfig:
    return replace(inference, mode="whole", scales=(1.0,), flip=False, crf=DenseCRFConfig())


def _multi_scale_flip(inference: InferenceConfig) -> InferenceConfig:
    return replace(_single(inference), scales=SCALES, flip=True)


def _sliding(inference: InferenceConfig) -> InferenceConfig:
    return replace(_single(inference), mode="sliding")


def _crf(inference: InferenceConfig) -> InferenceConfig:
    crf = inference.crf if inference.crf.iterations else DEEPLAB_CRF
    return replace(_single(inference), crf=crf)


PROTOCOLS: dict[str, Callable[[InferenceConfig], InferenceConfig]] = {
    "given": _given,  # as --inference.* or --recipe-inference says
    "single": _single,  # the whole image, once
    "multi_scale_flip": _multi_scale_flip,  # DeepLab's and PSPNet's six scales, each with its mirror image
    "sliding": _sliding,  # windows of --inference.window-px
    "crf": _crf,  # single, then a dense CRF: --inference.crf.*, or DeepLab's
}


def protocol_members(members: Sequence[MemberModel], names: Sequence[str]) -> dict[str, tuple[MemberModel, ...]]:
    """The models of each protocol, by its name; `given` alone without names.

    Raises:
        ValueError: a name is unknown or there twice; a setting of the models' inference has no effect in any protocol.
    """
    names = list(names) or ["given"]
    unknown = sorted(set(names) - set(PROTOCOLS))
    if unknown or len(names) != len(set(names)):
        raise ValueError(
            f"--protocols {' '.join(names)}: {', '.join(unknown) or 'a name'} is "
            f"{'unknown' if unknown else 'there twice'}; choose among {', '.join(PROTOCOLS)}, each once"
        )
    chosen = {
        name: tuple(replace(member, inference=PROTOCOLS[name](member.inference)) for member in members)
        for name in names
    }
    for number, member in enumerate(members):
        _refuse_ignored(member.inference, [each[number].inference for each in chosen.values()], names)
    return chosen


def _refuse_ignored(given: InferenceConfig, shown: Sequence[InferenceConfig], names: Sequence[str]) -> None:
    plain = InferenceConfig()
    for one in fields(InferenceConfig):
        value = getattr(given, one.name)
        if value != getattr(plain, one.name) and all(getattr(each, one.name) != value for each in shown):
            raise ValueError(
                f"--inference.{one.name.replace('_', '-')} (or the recipe's) is {value}, which none of --protocols "
                f"{' '.join(names)} keeps; leave it out, or add the protocol 'given'"
            )
