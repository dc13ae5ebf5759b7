"""The registry holds the published models: sizes, costs, names and the official weight layout."""

import subprocess
import sys

import pytest
import torch

from na_deploy.errors import UsageError
from na_deploy.models import build_model, get_model, list_models
from na_deploy.models.build import expected_shapes

# Millions of parameters as printed by the official repository's models, by what the name starts with.
PUBLISHED_PARAMETERS = {
    "nat_mini": 19.984,
    "nat_tiny": 27.902,
    "nat_small": 50.743,
    "nat_base": 89.770,
    "dinat_mini": 19.984,
    "dinat_tiny": 27.902,
    "dinat_small": 50.720,
    "dinat_base": 89.770,
    "dinat_large": 200.944,
    "dinat_large_384": 200.944,
    "dinat_large_384_11x11": 201.144,
    # 21,841 instead of 1,000 classes on 1,536 features, each with a bias.
    "dinat_large_in22k_224": 200.943514 + 20841 * 1537e-6,
    "dinat_large_in22k_224_11x11": 201.14425 + 20841 * 1537e-6,
    "dinat_s_tiny": 28.288,
    "dinat_s_small": 49.606,
    "dinat_s_base": 87.768,
    "dinat_s_large": 196.532,
    "dinat_s_large_384": 196.532,
    "dinat_s_large_in22k_224": 196.532476 + 20841 * 1537e-6,
    "nat_isotropic_small": 22.000,
    "nat_isotropic_base": 86.466,
    "dinat_isotropic_small": 22.000,
    "dinat_isotropic_base": 86.466,
}
NAMES = [entry.name for entry in list_models()]


def test_every_published_family_is_listed() -> None:
    assert set(PUBLISHED_PARAMETERS) | {"vitrpb_isotropic_small", "vitrpb_isotropic_base"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_the_published_ones(name: str) -> None:
    entry = get_model(name)
    with torch.device("meta"):
        module = build_model(name)
    assert sum(parameter.numel() for parameter in module.parameters()) == entry.parameters
    if name in PUBLISHED_PARAMETERS:
        assert round(entry.parameters / 1e6, 3) == round(PUBLISHED_PARAMETERS[name], 3)


@pytest.mark.parametrize("name", [entry.name for entry in list_models() if entry.published_gflops])
def test_operations_are_the_published_ones(name: str) -> None:
    entry = get_model(name)
    # The papers also count normalisations, half a percent in the largest.
    assert entry.gflops == pytest.approx(entry.published_gflops, abs=0.05, rel=0.006)
    assert 0 < entry.operations.attention < entry.operations.other


def test_attention_operations_follow_the_formula() -> None:
    # NAT-Mini: 2 products of every query with 49 keys, over maps of 56, 28, 14 and 7.
    expected = sum(
        2 * 49 * side**2 * width * depth
        for side, width, depth in ((56, 64, 3), (28, 128, 4), (14, 256, 6), (7, 512, 5))
    )
    assert get_model("nat_mini").operations.attention == expected


def test_nat_and_dinat_differ_in_dilations_only() -> None:
    nat, dinat = get_model("nat_tiny").config, get_model("dinat_tiny").config
    assert expected_shapes(nat) == expected_shapes(dinat)
    assert not nat.is_dilated
    assert dinat.dilations == ((1, 8, 1), (1, 4, 1, 4), (1, 2) * 9, (1, 1, 1, 1, 1))
    large = get_model("dinat_large_384").config
    assert large.dilations == ((1, 13, 1), (1, 6, 1, 6), (1, 3) * 9, (1, 1, 1, 1, 1))
    assert get_model("dinat_s_tiny").config.dilations == ((1, 8), (1, 4), (1, 2) * 3, (1, 1))
    assert get_model("dinat_isotropic_base").config.dilations == ((1, 2) * 6,)


def official_block(
    prefix: str, width: int, hidden: int, heads: int, table: int, scale: bool
) -> dict[str, tuple[int, ...]]:
    """The official repository's names and shapes for one block."""
    shapes: dict[str, tuple[int, ...]] = {
        "norm1.weight": (width,), "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
        "attn.rpb": (heads, table, table),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "norm2.weight": (width,), "norm2.bias": (width,),
        "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    if scale:
        shapes |= {"gamma1": (width,), "gamma2": (width,)}
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def test_nat_has_the_official_keys() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.0.weight": (48, 3, 3, 3), "patch_embed.proj.0.bias": (48,),
        "patch_embed.proj.1.weight": (96, 48, 3, 3), "patch_embed.proj.1.bias": (96,),
        "patch_embed.norm.weight": (96,), "patch_embed.norm.bias": (96,),
        "norm.weight": (768,), "norm.bias": (768,), "head.weight": (1000, 768), "head.bias": (1000,),
    }  # fmt: skip
    for level, depth in enumerate((3, 4, 18, 5)):
        width = 96 * 2**level
        for block in range(depth):
            shapes |= official_block(f"levels.{level}.blocks.{block}", width, 2 * width, 3 * 2**level, 13, True)
        if level < 3:
            shapes[f"levels.{level}.downsample.reduction.weight"] = (2 * width, width, 3, 3)
            shapes |= {f"levels.{level}.downsample.norm.{kind}": (2 * width,) for kind in ("weight", "bias")}
    assert expected_shapes(get_model("nat_small").config) == shapes


def test_dinat_s_has_the_official_keys() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (96, 3, 4, 4), "patch_embed.proj.bias": (96,),
        "patch_embed.norm.weight": (96,), "patch_embed.norm.bias": (96,),
        "norm.weight": (768,), "norm.bias": (768,), "head.weight": (1000, 768), "head.bias": (1000,),
    }  # fmt: skip
    for level, depth in enumerate((2, 2, 6, 2)):
        width = 96 * 2**level
        for block in range(depth):
            shapes |= official_block(f"layers.{level}.blocks.{block}", width, 4 * width, 3 * 2**level, 13, False)
        if level < 3:
            shapes[f"layers.{level}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= {f"layers.{level}.downsample.norm.{kind}": (4 * width,) for kind in ("weight", "bias")}
    assert expected_shapes(get_model("dinat_s_tiny").config) == shapes


@pytest.mark.parametrize("whole_map", [False, True])
def test_isotropic_models_have_the_official_keys(whole_map: bool) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (384, 3, 16, 16), "patch_embed.proj.bias": (384,),
        "patch_embed.norm.weight": (384,), "patch_embed.norm.bias": (384,),
        "norm.weight": (384,), "norm.bias": (384,), "head.weight": (1000, 384), "head.bias": (1000,),
    }  # fmt: skip
    for block in range(12):
        shapes |= official_block(f"layers.{block}", 384, 1536, 12, 27 if whole_map else 13, False)
        if whole_map:
            shapes[f"layers.{block}.attn.relative_position_index"] = (196, 196)
    name = "vitrpb_isotropic_small" if whole_map else "nat_isotropic_small"
    assert expected_shapes(get_model(name).config) == shapes


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("dinat_large_21k", "dinat_large_in22k_224"),
        ("dinat_large_in22k_in1k_384_11x11.pth", "dinat_large_384_11x11"),
        ("dinat_large_in22k_224_11x11interp", "dinat_large_in22k_224_11x11"),
        ("shi-labs/nat-mini-in1k-224", "nat_mini"),
        ("DiNAT-Base", "dinat_base"),
        ("vitrpb_small", "vitrpb_isotropic_small"),
        ("dinat_s_large_in22k_in1k_384", "dinat_s_large_384"),
    ],
)
def test_other_names_in_use_are_understood(alias: str, name: str) -> None:
    assert get_model(alias).name == name


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UsageError, match="unknown architecture 'nat_minni'; did you mean nat_mini"):
        get_model("nat_minni")
    with pytest.raises(UsageError, match="na-deploy models"):
        get_model("resnet50")


def test_descriptions_do_not_import_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import na_deploy.models as m, na_deploy.models.dilations\n"
        "assert m.get_model('nat_mini').parameters == 19984174\n"
        "assert m.ModelMetadata.from_props(m.ModelMetadata('nat_mini').to_props())\n"
        "try: m.load_model\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("MissingDependencyError loading checkpoints needs torch, which is not installed")
