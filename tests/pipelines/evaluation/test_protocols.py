"""Protocols change what makes them, keep the rest, and never leave a setting without effect unsaid."""

from dataclasses import replace

import pytest

from pipelines.ensembles import MemberModel
from pipelines.evaluation.protocols import PROTOCOLS, protocol_members
from pipelines.recipes.published import DEEPLAB_CRF, SCALES
from segcore.dense_crf import DenseCRFConfig
from segcore.inference import InferenceConfig


def member(inference: InferenceConfig) -> MemberModel:
    return MemberModel(model_uri="m", model_version="", model_folder="m", model_digest="d", inference=inference)


def shown(inference: InferenceConfig, *names: str) -> dict[str, InferenceConfig]:
    return {name: each[0].inference for name, each in protocol_members([member(inference)], names).items()}


def test_each_protocol_is_what_its_name_says() -> None:
    base = InferenceConfig(short_side_px=300, output_stride=8, precision="bfloat16", window_px=128)
    found = shown(base, *PROTOCOLS)
    assert found["given"] == found["single"] == base
    assert found["multi_scale_flip"] == replace(base, scales=SCALES, flip=True)
    assert found["sliding"] == replace(base, mode="sliding")
    assert found["crf"] == replace(base, crf=DEEPLAB_CRF)


def test_without_names_the_models_are_shown_images_as_given() -> None:
    base = InferenceConfig(scales=(0.5, 1.0), flip=True, crf=DenseCRFConfig(iterations=3))
    assert shown(base) == {"given": base}


def test_a_given_crf_is_the_protocols_and_the_others_have_none() -> None:
    crf = DenseCRFConfig(iterations=2, w1=1.5)
    found = shown(InferenceConfig(crf=crf), "single", "crf")
    assert found["crf"].crf == crf and found["single"].crf == DenseCRFConfig()


def test_every_model_of_an_ensemble_keeps_its_own_size() -> None:
    models = [member(InferenceConfig(short_side_px=size)) for size in (100, 200)]
    found = protocol_members(models, ("sliding",))["sliding"]
    assert [(each.inference.mode, each.inference.short_side_px) for each in found] == [
        ("sliding", 100),
        ("sliding", 200),
    ]


def test_settings_that_no_protocol_keeps_are_refused() -> None:
    base = InferenceConfig(scales=(0.5, 1.0))
    with pytest.raises(
        ValueError, match=r"--inference\.scales .* is \(0\.5, 1\.0\), which none of --protocols single crf"
    ):
        shown(base, "single", "crf")
    assert shown(base, "single", "given")["given"] == base
    with pytest.raises(ValueError, match=r"--inference\.mode .* is proposals"):
        shown(InferenceConfig(mode="proposals"), "single")


@pytest.mark.parametrize(
    ("names", "message"),
    [(("single", "double"), "double is unknown; choose among given, single"), (("crf", "crf"), "there twice")],
)
def test_unknown_and_repeated_names_are_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocol_members([member(InferenceConfig())], names)
