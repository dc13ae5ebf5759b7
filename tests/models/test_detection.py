"""Structure is read from shapes; dilations from evidence only, and without evidence the user is asked."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from na_deploy.errors import AmbiguousArchitectureError, UsageError
from na_deploy.models import ModelConfig, get_model, list_models
from na_deploy.models.build import expected_shapes
from na_deploy.models.checkpoint import Checkpoint, Evidence, _embedded_evidence
from na_deploy.models.config import ones
from na_deploy.models.detect import read_structure
from na_deploy.models.dilations import PRESETS, parse_dilations
from na_deploy.models.registry import DINAT_S_LARGE_OLD_HEADS
from na_deploy.models.resolve_architecture import ResolvedArchitecture, resolve_architecture

NAMES = [entry.name for entry in list_models()]
BACKBONE = {"num_classes": 0, "out_indices": (0, 1, 2, 3)}


def shapes_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in expected_shapes(config).items()}


def decide(
    config: ModelConfig | str, file: str = "x.pth", evidence: tuple[Evidence, ...] = (), **wishes: Any
) -> ResolvedArchitecture:
    """Settle weights of the shapes of ``config`` in a file of that name."""
    config = get_model(config).config if isinstance(config, str) else config
    structure = read_structure(shapes_of(config), Path(file))
    return resolve_architecture(structure, Checkpoint(Path(file), file, {}, "", evidence), **wishes)


@pytest.mark.parametrize("name", NAMES)
def test_structure_follows_from_shapes(name: str) -> None:
    config = get_model(name).config
    assert read_structure(shapes_of(config), Path("x.pth")) == replace(config, dilations=ones(config.depths))


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("nat", 48, (1, 2, 3, 1), (2, 4, 8, 16), 5, ones((1, 2, 3, 1)), 2.5, True, 10),
        ModelConfig("nat", 40, (1, 2), (5, 8), 9, ones((1, 2)), 1.0, num_classes=0, out_indices=(1,), in_channels=4),
        ModelConfig("dinat_s", 24, (2, 1, 1), (3, 2, 1), 3, ones((2, 1, 1)), 4.0, num_classes=3, patch_size=2),
        ModelConfig("isotropic", 36, (5,), (3,), 5, ones((5,)), 3.0, num_classes=0, patch_size=8, qkv_bias=False),
    ],
)
def test_other_sizes_follow_from_shapes_too(config: ModelConfig) -> None:
    assert read_structure(shapes_of(config), Path("x.pth")) == config


OFFICIAL_FILES = {
    "nat_mini.pth": "nat_mini",
    "nat_base.pth": "nat_base",
    "dinat_mini_in1k_224.pth": "dinat_mini",
    "dinat_base_in1k_224.pth": "dinat_base",
    "dinat_large_in22k_in1k_224.pth": "dinat_large",
    "dinat_large_in22k_in1k_384.pth": "dinat_large_384",
    "dinat_large_in22k_in1k_384_11x11.pth": "dinat_large_384_11x11",
    "dinat_large_in22k_224.pth": "dinat_large_in22k_224",
    "dinat_large_in22k_224_11x11interp.pth": "dinat_large_in22k_224_11x11",
    "dinat_s_large_in1k_384.pth": "dinat_s_large_384",
    "dinat_s_large_in1k_224.pth": "dinat_s_large",
    "nat_isotropic_small_in1k_224.pth": "nat_isotropic_small",
    "dinat_isotropic_base_in1k_224.pth": "dinat_isotropic_base",
    "vitrpb_base_in1k_224.pth": "vitrpb_isotropic_base",
    "my-DiNAT-tiny-flowers-v2.pt": "dinat_tiny",
}


@pytest.mark.parametrize("file", OFFICIAL_FILES)
def test_the_file_name_settles_it(file: str) -> None:
    resolved = decide(OFFICIAL_FILES[file], file)
    assert resolved.architecture == OFFICIAL_FILES[file]
    assert resolved.config == get_model(OFFICIAL_FILES[file]).config
    assert resolved.warnings == ()


@pytest.mark.parametrize(
    "name",
    [
        "nat_small",
        "dinat_small",
        "dinat_s_tiny",
        "dinat_s_base",
        "vitrpb_isotropic_small",
        "dinat_large_in22k_224",
        "dinat_large_384_11x11",
    ],
)
def test_shapes_that_only_one_model_has_settle_it(name: str) -> None:
    resolved = decide(name)
    assert (resolved.architecture, resolved.config) == (name, get_model(name).config)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("dinat_mini", ["nat_mini", "dinat_mini"]),
        ("nat_base", ["nat_base", "dinat_base"]),
        ("dinat_large", ["dinat_large", "dinat_large_384"]),
        ("dinat_s_large_384", ["dinat_s_large", "dinat_s_large_384"]),
        ("nat_isotropic_base", ["nat_isotropic_base", "dinat_isotropic_base"]),
    ],
)
@pytest.mark.parametrize("file", ["x.pth", "nat.pth", "dinat.pth", "best_checkpoint.pt"])
def test_without_evidence_the_fitting_names_are_listed(name: str, choices: list[str], file: str) -> None:
    with pytest.raises(AmbiguousArchitectureError) as error:
        decide(name, file)
    assert " or ".join(f"--arch {choice}" for choice in choices) in str(error.value)
    assert error.value.exit_code == 2


def test_a_large_model_of_another_head_needs_its_resolution() -> None:
    config = replace(get_model("dinat_large").config, num_classes=10)
    with pytest.raises(AmbiguousArchitectureError, match="dinat_large_384"):
        decide(config, "dinat_large_flowers.pth")
    assert decide(config, "dinat_large_flowers_384.pth").architecture == "dinat_large_384"


EMBEDDED: dict[str, tuple[dict[str, Any], str]] = {
    "timm's arch": ({"arch": "dinat_mini"}, "dinat_mini"),
    "timm's args": ({"args": argparse.Namespace(model="nat_mini", lr=0.1)}, "nat_mini"),
    "a config with dilations": (
        {"config": {"dilations": [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 3, [1] * 5]}},
        "dinat_mini",
    ),
    "a config with a name": ({"config": {"model": "shi-labs/nat-mini-in1k-224"}}, "nat_mini"),
    "arch and args that agree": (
        {"arch": "nat_mini", "args": argparse.Namespace(model="nat_mini")},
        "nat_mini",
    ),
}


@pytest.mark.parametrize("case", EMBEDDED)
def test_what_training_stored_settles_it(case: str) -> None:
    content, name = EMBEDDED[case]
    resolved = decide("nat_mini", evidence=tuple(_embedded_evidence(content)))
    assert (resolved.architecture, resolved.config.dilations) == (name, get_model(name).config.dilations)


def test_a_detector_s_configuration_settles_it() -> None:
    dilations = "[[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7], [1, 3, 1, 3, 1]]"
    text = f"model = dict(backbone=dict(\n  type='DiNAT',\n  dilations={dilations}), neck=dict(type='FPN'))"
    config = replace(get_model("nat_mini").config, **BACKBONE)
    for key in ("config", "cfg"):  # mmcv's, mmengine's
        resolved = decide(config, evidence=tuple(_embedded_evidence({"meta": {key: text}})))
        assert (resolved.architecture, resolved.config.dilations[0]) == ("dinat_mini", (1, 28, 1))
    plain = tuple(_embedded_evidence({"meta": {"config": "model = dict(backbone=dict(\n  type='NAT', embed_dim=64))"}}))
    assert decide(config, evidence=plain).architecture == "nat_mini"


@pytest.mark.parametrize(
    ("name", "file", "preset"),
    [
        ("dinat_mini", "maskrcnn_dinat_mini.pth", "coco"),
        ("dinat_large", "cascadedmaskrcnn_dinat_large.pth", "coco"),
        ("dinat_s_tiny", "maskrcnn_dinat_s_tiny.pth", "coco"),
        ("dinat_tiny", "upernet_dinat_tiny.pth", "ade20k-512"),
        ("dinat_large", "upernet_dinat_large.pth", "ade20k-640"),
        ("dinat_large_384_11x11", "mask2former_dinat_large_coco_instance.pth", "mask2former"),
        ("dinat_large_384_11x11", "250_16_dinat_l_oneformer_ade20k_160k.pth", "oneformer-coco"),
        ("dinat_large_384_11x11", "896x896_250_16_dinat_l_oneformer_ade20k_160k.pth", "oneformer-coco"),
        ("dinat_large_384_11x11", "1280x1280_250_16_dinat_l_oneformer_ade20k_160k.pth", "oneformer-1280"),
        ("dinat_large_384_11x11", "coco_pretrain_1280x1280_150_16_dinat_l_oneformer_ade20k_160k.pth", "oneformer-1280"),
        ("dinat_large_384_11x11", "150_16_dinat_l_oneformer_coco_100ep.pth", "oneformer-coco"),
        ("dinat_large_384_11x11", "250_16_dinat_l_oneformer_mapillary_300k.pth", "oneformer-coco"),
        ("dinat_large", "250_16_dinat_l_oneformer_cityscapes_90k.pth", "oneformer-cityscapes"),
        ("dinat_large", "oneformer_cityscapes_dinat_large", "oneformer-cityscapes"),
    ],
)
def test_a_dense_task_s_file_name_settles_a_backbone(name: str, file: str, preset: str) -> None:
    config = replace(get_model(name).config, **BACKBONE)
    resolved = decide(config, file)
    assert resolved.config.dilations == PRESETS[preset].for_config(config)
    assert resolved.preset == PRESETS[preset]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dinat_mini", "mask2former_dinat_mini_coco.pth"),
        ("dinat_large", "mask2former_dinat_large_coco.pth"),  # 7×7 windows
        ("dinat_large", "250_16_dinat_l_oneformer_coco_100ep.pth"),
        ("dinat_large_384_11x11", "250_16_dinat_l_oneformer_cityscapes_90k.pth"),
        ("dinat_large_384_11x11", "maskrcnn_dinat_large.pth"),
    ],
)
def test_a_task_published_for_other_models_settles_nothing(name: str, file: str) -> None:
    config = replace(get_model(name).config, **BACKBONE)
    with pytest.raises(AmbiguousArchitectureError, match=r"were published for other models.* with --dilations coco"):
        decide(config, file)
    explicit = decide(config, file, arch="dinat", dilations="mask2former")
    assert explicit.preset == PRESETS["mask2former"]


@pytest.mark.parametrize(
    ("name", "file", "named"),
    [
        ("nat_mini", "student_nat_mini_teacher_dinat_mini.pth", ("nat_mini", "dinat_mini")),
        ("nat_mini", "dinat_mini-nat_mini-distilled.pth", ("nat_mini", "dinat_mini")),
        ("nat_mini", "dinat_from_nat_mini.pth", ("nat_mini", "dinat_mini")),
        ("nat_tiny", "nat_t_vs_dinat_t.pth", ("nat_tiny", "dinat_tiny")),
        ("dinat_large", "dinat_large_224_to_384.pth", ("dinat_large", "dinat_large_384")),
    ],
)
def test_a_name_of_two_architectures_settles_nothing_and_both_are_named(
    name: str, file: str, named: tuple[str, str]
) -> None:
    with pytest.raises(AmbiguousArchitectureError) as error:
        decide(name, file)
    assert all(f"--arch {one}" in str(error.value) for one in named)
    evidence = (Evidence("its entry 'arch'", named[0]),)
    assert decide(name, file, evidence=evidence).architecture == named[0]


def test_a_second_architecture_that_the_shapes_exclude_is_only_mentioned() -> None:
    resolved = decide("nat_mini", "student_nat_mini_teacher_dinat_base.pth")
    assert resolved.architecture == "nat_mini"
    assert resolved.warnings == ("the file's name also says dinat_base, whose weights have other shapes",)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("dinat_tiny", "my_dinat_t_run3.pth"),
        ("dinat_small", "dinat_s.pth"),
        ("dinat_s_tiny", "dinat_s_t_in1k.pth"),
        ("nat_base", "natbase.pth"),
    ],
)
def test_short_names_are_understood(name: str, file: str) -> None:
    assert decide(name, file).architecture == name


def test_two_tasks_in_one_name_settle_nothing() -> None:
    config = replace(get_model("dinat_mini").config, **BACKBONE)
    with pytest.raises(AmbiguousArchitectureError, match="in which both ade20k and coco stand"):
        decide(config, "upernet_dinat_mini_coco.pth")


def test_a_backbone_s_own_name_does_not_settle_its_dilations() -> None:
    config = replace(get_model("dinat_mini").config, **BACKBONE)
    with pytest.raises(AmbiguousArchitectureError, match="--arch nat_mini, or --arch dinat_mini with --dilations coco"):
        decide(config, "dinat_mini_in1k_224.pth")
    assert decide(config, "nat_mini.pth").config.dilations == ones(config.depths)
    for arch in ("dinat", "dinat_mini"):
        wider = decide(config, "upernet_dinat_mini.pth", arch=arch)
        assert wider.config.dilations == PRESETS["ade20k-512"].for_config(config)
        assert (wider.architecture, wider.warnings[1:]) == ("dinat_mini", ())
    resolved = decide(config, arch="dinat_mini")
    assert resolved.config.dilations == get_model("dinat_mini").config.dilations
    assert any("detection and segmentation use others" in warning for warning in resolved.warnings)


def test_explicit_arch_wins_over_the_name_with_a_warning() -> None:
    resolved = decide("nat_tiny", "dinat_tiny_in1k_224.pth", arch="nat_tiny")
    assert (resolved.architecture, resolved.config.is_dilated) == ("nat_tiny", False)
    assert resolved.warnings == (
        "the file's name says dinat_tiny_in1k_224, which is not what was asked for; the request wins",
    )


def test_an_arch_of_other_shapes_is_refused() -> None:
    with pytest.raises(
        UsageError,
        match=r"--arch dinat_base does not fit x\.pth: it has embed_dim 128 \(found 64\); "
        r".*what fits: --arch nat_mini or dinat_mini",
    ) as error:
        decide("nat_mini", arch="dinat_base")
    assert not isinstance(error.value, AmbiguousArchitectureError)
    with pytest.raises(UsageError, match=r"layer scale yes \(found no\)"):
        decide("dinat_small", arch="nat_small")
    with pytest.raises(UsageError, match="holds another layout"):
        decide("nat_mini", arch="dinat_s")
    with pytest.raises(UsageError, match="unknown architecture"):
        decide("nat_mini", arch="natt")


CUSTOM = ModelConfig("nat", 48, (1, 2, 3, 1), (2, 4, 8, 16), 5, ones((1, 2, 3, 1)), 2.5, num_classes=10)


def test_other_sizes_take_the_family_and_dilations() -> None:
    with pytest.raises(AmbiguousArchitectureError, match="--arch nat or --arch dinat --dilations"):
        decide(CUSTOM, "dinat.pth")
    assert decide(CUSTOM, arch="nat").architecture == "nat"
    with pytest.raises(AmbiguousArchitectureError, match="--arch dinat does not settle the dilations"):
        decide(CUSTOM, arch="dinat")
    resolved = decide(CUSTOM, arch="dinat", dilations="1/1,2/1,2,1/1")
    assert (resolved.architecture, resolved.config.dilations) == ("dinat", ((1,), (1, 2), (1, 2, 1), (1,)))
    assert decide(CUSTOM, dilations="none").architecture == "nat"
    assert decide(CUSTOM, dilations=[[1], [1, 2], [1, 2, 1], [1]]).architecture == "dinat"
    with pytest.raises(UsageError, match="--arch nat has no dilations"):
        decide(CUSTOM, arch="nat", dilations="1/1,2/1,2,1/1")


@pytest.mark.parametrize(("kind", "name"), [("nat", "nat_mini"), ("dinat", "dinat_mini")])
def test_the_family_is_enough_for_a_published_size(kind: str, name: str) -> None:
    resolved = decide("nat_mini", arch=kind)
    assert (resolved.architecture, resolved.config.dilations) == (name, get_model(name).config.dilations)


def test_evidence_that_contradicts_itself_or_the_shapes_is_reported() -> None:
    with pytest.raises(
        AmbiguousArchitectureError, match="its entry 'arch' says nat_mini and the file's name says dinat_mini"
    ):
        decide("nat_mini", "dinat_mini.pth", (Evidence("its entry 'arch'", "nat_mini"),))
    with pytest.raises(
        AmbiguousArchitectureError,
        match=r"the file's name says dinat_tiny.*what fits: --arch nat_mini or dinat_mini",
    ):
        decide("nat_mini", "dinat_tiny.pth")
    with pytest.raises(AmbiguousArchitectureError, match="contradicts itself"):
        decide("nat_small", "dinat_small.pth")


def test_old_dinat_s_large_files_keep_their_heads() -> None:
    old = replace(get_model("dinat_s_large").config, heads=DINAT_S_LARGE_OLD_HEADS)
    resolved = decide(old, "dinat_s_large_in1k_224.pth")
    assert (resolved.architecture, resolved.config.heads) == ("dinat_s_large", (4, 8, 16, 32))
    assert any("before February 2024" in warning for warning in resolved.warnings)


LARGE = get_model("dinat_large").config


@pytest.mark.parametrize(
    ("name", "model", "levels"),
    [
        ("coco", "dinat_mini", "1,28,1/1,7,1,14/1,3,1,5,1,7/1,3,1,3,1"),
        ("coco", "dinat_s_small", "1,28/1,14/1,3,1,5,1,7,1,3,1,5,1,7,1,3,1,5,1,7/1,3"),
        ("ade20k", "dinat_base", "1,16,1/1,4,1,8/1,2,1,3,1,4,1,2,1,3,1,4,1,2,1,3,1,4/1,2,1,2,1"),
        ("ade20k", "dinat_large", "1,20,1/1,5,1,10/1,2,1,3,1,4,1,5,1,2,1,3,1,4,1,5,1,5/1,2,1,2,1"),
        (
            "mask2former",
            "dinat_large_384_11x11",
            "1,14,1/1,4,1,7/1,2,1,3,1,2,1,3,1,2,1,3,1,2,1,3,1,3/1,1,1,1,1",
        ),
        (
            "oneformer",
            "dinat_large_384_11x11",
            "1,28,1/1,7,1,14/1,3,1,5,1,5,1,7,1,3,1,5,1,5,1,7,1,7/1,3,1,3,1",
        ),
        (
            "oneformer-cityscapes",
            "dinat_large",
            "1,18,1/1,5,1,9/1,2,1,3,1,4,1,2,1,3,1,4,1,2,1,3,1,4/1,2,1,2,1",
        ),
        ("imagenet-384", "dinat_s_large", "1,13/1,6/1,3,1,3,1,3,1,3,1,3,1,3,1,3,1,3,1,3/1,1"),
        ("none", "dinat_s_tiny", "1,1/1,1/1,1,1,1,1,1/1,1"),
    ],
)
def test_presets_are_those_of_the_published_configurations(name: str, model: str, levels: str) -> None:
    config = get_model(model).config
    parsed = parse_dilations(name, config)
    assert parsed.dilations == parse_dilations(levels, config).dilations
    assert "/".join(",".join(map(str, level)) for level in parsed.dilations) == levels


def test_names_that_stand_for_several_configurations_say_which_was_taken() -> None:
    assert "oneformer-coco, oneformer-cityscapes" in str(parse_dilations("oneformer", LARGE).remark)
    assert "ade20k-640" in str(parse_dilations("ade20k", LARGE).remark)


@pytest.mark.parametrize(
    ("text", "config", "message"),
    [
        ("cocoa", LARGE, "cannot read the dilations 'cocoa'; give one of none, ade20k, oneformer, .*coco"),
        ("1,8,1/1,4", LARGE, r"given for \[3, 2\] blocks per level, the model has \[3, 4, 18, 5\]"),
        ("1,8,x/1", LARGE, "cannot read the dilations"),
        ("coco", CUSTOM, "'coco' are not defined for nat of depths"),
        ("mask2former", get_model("dinat_s_tiny").config, "not defined for dinat_s"),
        ("1/1,0/1,1,1/1", CUSTOM, "at least 1, got 0"),
    ],
)
def test_dilations_that_do_not_suit_are_refused(text: str, config: ModelConfig, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_dilations(text, config)


def test_every_preset_suits_a_published_model() -> None:
    build: Callable[[str], ModelConfig] = lambda name: get_model(name).config  # noqa: E731
    for preset in PRESETS.values():
        assert preset.for_config(build("dinat_large"))[0][1] > 1
