"""The published models by name: description, accuracy, cost, preprocessing. No PyTorch here.

Sources: NAT (https://arxiv.org/abs/2204.07143), DiNAT (https://arxiv.org/abs/2209.15001) and the tables of
the official repository. Names are the official functions' with the in22k models named like their files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from na_deploy.errors import UsageError
from na_deploy.models.config import Family, ModelConfig, ones
from na_deploy.models.cost import Operations, count_operations, count_parameters
from na_deploy.models.dilations import PRESETS
from na_deploy.models.preprocessing import Preprocessing, official_classification

IMAGENET_22K_CLASSES = 21841
DINAT_S_LARGE_OLD_HEADS = (4, 8, 16, 32)
"""Heads of DiNAT_s-L in files made before February 2024."""


@dataclass(frozen=True)
class ModelEntry:
    """One published model.

    Attributes:
        name: the word that ``--arch`` takes.
        title: the paper's name for it.
        config: the network.
        image_size: side of the square images it was trained on.
        published_gflops: the paper's figure, multiply-adds in 10⁹, ``None`` if not given.
        top1: published ImageNet-1K accuracy in percent, ``None`` for ImageNet-22K heads.
        aliases: other names in use: official functions, file names, Hugging Face names.
    """

    name: str
    title: str
    config: ModelConfig
    image_size: int
    published_gflops: float | None
    top1: float | None
    aliases: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Trained values."""
        return count_parameters(self.config)

    @property
    def operations(self) -> Operations:
        """Multiply-adds for one image at the trained size, attention's apart."""
        return count_operations(self.config, self.image_size, self.image_size)

    @property
    def gflops(self) -> float:
        """Multiply-adds for one image at the trained size, in 10⁹, counted by us."""
        return self.operations.total / 1e9

    @property
    def preprocessing(self) -> Preprocessing:
        """The official preprocessing."""
        return official_classification(self.image_size)

    @property
    def kind(self) -> str:
        """The name up to its size, one of :data:`KINDS`."""
        return re.split(r"_(?:mini|tiny|small|base|large)", self.name)[0]


KINDS = ("nat", "dinat", "dinat_s", "nat_isotropic", "dinat_isotropic", "vitrpb_isotropic")
"""Families that ``--arch`` takes where the size is not a published one."""

_NAT_SIZES: dict[
    str, tuple[int, int, float, bool]
] = {  # embed_dim, blocks of the third level, mlp_ratio, NAT's layer scale
    "mini": (64, 6, 3.0, False),
    "tiny": (64, 18, 3.0, False),
    "small": (96, 18, 2.0, True),
    "base": (128, 18, 2.0, True),
    "large": (192, 18, 2.0, False),
}
_DINAT_S_SIZES = {"tiny": (96, 6), "small": (96, 18), "base": (128, 18), "large": (192, 18)}


def _config(
    family: Family,
    embed_dim: int,
    depths: tuple[int, ...],
    mlp_ratio: float,
    dilations: str | None,
    *,
    kernel_size: int = 7,
    layer_scale: bool = False,
    num_classes: int = 1000,
) -> ModelConfig:
    config = ModelConfig(
        family=family,
        embed_dim=embed_dim,
        depths=depths,
        heads=tuple(embed_dim * 2**level // 32 for level in range(len(depths))),
        kernel_size=kernel_size,
        dilations=ones(depths),
        mlp_ratio=mlp_ratio,
        layer_scale=layer_scale,
        num_classes=num_classes,
    )
    return config if dilations is None else replace(config, dilations=PRESETS[dilations].for_config(config))


def _nat(size: str, gflops: float, top1: float) -> ModelEntry:
    width, third, ratio, scale = _NAT_SIZES[size]
    config = _config("nat", width, (3, 4, third, 5), ratio, None, layer_scale=scale)
    aliases = (f"nat_{size}_1k", f"nat_{size}_in1k_224")
    return ModelEntry(f"nat_{size}", f"NAT-{size.capitalize()}", config, 224, gflops, top1, aliases)


def _dinat(
    name: str,
    title: str,
    gflops: float | None,
    top1: float | None,
    aliases: tuple[str, ...],
    *,
    image_size: int = 224,
    kernel_size: int = 7,
    dilations: str = "imagenet-224",
    num_classes: int = 1000,
) -> ModelEntry:
    size = name.split("_")[1]
    width, third, ratio, _ = _NAT_SIZES[size]
    config = _config(
        "nat", width, (3, 4, third, 5), ratio, dilations,
        kernel_size=kernel_size, layer_scale=size == "base", num_classes=num_classes,
    )  # fmt: skip
    return ModelEntry(name, title, config, image_size, gflops, top1, aliases)


def _dinat_s(
    name: str,
    title: str,
    gflops: float | None,
    top1: float | None,
    aliases: tuple[str, ...],
    *,
    image_size: int = 224,
    num_classes: int = 1000,
) -> ModelEntry:
    width, third = _DINAT_S_SIZES[name.split("_")[2]]
    config = _config("dinat_s", width, (2, 2, third, 2), 4.0, f"imagenet-{image_size}", num_classes=num_classes)
    return ModelEntry(name, title, config, image_size, gflops, top1, aliases)


def _isotropic(kind: str, size: str, gflops: float, top1: float) -> ModelEntry:
    width = {"small": 384, "base": 768}[size]
    whole_map = kind == "vitrpb"
    config = ModelConfig(
        family="isotropic",
        embed_dim=width,
        depths=(12,),
        heads=(width // 32,),
        kernel_size=14 if whole_map else 7,
        dilations=((1, 2) * 6,) if kind == "dinat" else ones((12,)),
        mlp_ratio=4.0,
        patch_size=16,
        fixed_map=whole_map,
    )
    titles = {"nat": "NAT-iso", "dinat": "DiNAT-iso", "vitrpb": "ViT-rpb"}
    short = (f"{kind}_{size}", f"{kind}_{size}_1k", f"{kind}_{size}_in1k_224") if whole_map else ()
    long = (f"{kind}_isotropic_{size}_1k", f"{kind}_isotropic_{size}_in1k_224")
    title = f"{titles[kind]}-{size.capitalize()}"
    return ModelEntry(f"{kind}_isotropic_{size}", title, config, 224, gflops, top1, (*short, *long))


def _published() -> Iterable[ModelEntry]:
    yield _nat("mini", 2.7, 81.8)
    yield _nat("tiny", 4.3, 83.2)
    yield _nat("small", 7.8, 83.7)
    yield _nat("base", 13.7, 84.3)
    for size, gflops, top1 in (
        ("mini", 2.7, 81.8),
        ("tiny", 4.3, 82.7),
        ("small", 7.8, 83.8),
        ("base", 13.7, 84.4),
    ):
        name = f"dinat_{size}"
        yield _dinat(name, f"DiNAT-{size.capitalize()}", gflops, top1, (f"{name}_1k", f"{name}_in1k_224"))
    large = "dinat_large"
    yield _dinat(
        large,
        "DiNAT-Large",
        30.6,
        86.6,
        (f"{large}_224", f"{large}_1k", f"{large}_1k_224", f"{large}_in22k_in1k_224"),
    )
    yield _dinat(
        f"{large}_384", "DiNAT-Large 384", 89.7, 87.4, (f"{large}_1k_384", f"{large}_in22k_in1k_384"),
        image_size=384, dilations="imagenet-384",
    )  # fmt: skip
    yield _dinat(
        f"{large}_384_11x11", "DiNAT-Large 384, 11×11", 92.4, 87.5,
        (f"{large}_1k_384_11x11", f"{large}_in22k_in1k_384_11x11", f"{large}_11x11_in22k_in1k_384"),
        image_size=384, kernel_size=11,
    )  # fmt: skip
    yield _dinat(
        f"{large}_in22k_224", "DiNAT-Large, ImageNet-22K", None, None, (f"{large}_21k", f"{large}_in22k"),
        num_classes=IMAGENET_22K_CLASSES,
    )  # fmt: skip
    yield _dinat(
        f"{large}_in22k_224_11x11", "DiNAT-Large, ImageNet-22K, 11×11", None, None,
        (f"{large}_21k_11x11", f"{large}_in22k_224_11x11interp", f"{large}_in22k_11x11"),
        kernel_size=11, num_classes=IMAGENET_22K_CLASSES,
    )  # fmt: skip
    for size, gflops, top1 in (
        ("tiny", 4.5, 81.8),
        ("small", 8.7, 83.5),
        ("base", 15.4, 83.8),
        ("large", 34.5, 86.5),
    ):
        name = f"dinat_s_{size}"
        prefix = (f"{name}_224", f"{name}_in22k_in1k_224") if size == "large" else ()
        aliases = (*prefix, f"{name}_1k", f"{name}_in1k_224", f"{name}_1k_224")
        yield _dinat_s(name, f"DiNAT_s-{size.capitalize()}", gflops, top1, aliases)
    large = "dinat_s_large"
    yield _dinat_s(
        f"{large}_384", "DiNAT_s-Large 384", 101.5, 87.4,
        (f"{large}_1k_384", f"{large}_in1k_384", f"{large}_in22k_in1k_384"), image_size=384,
    )  # fmt: skip
    yield _dinat_s(
        f"{large}_in22k_224", "DiNAT_s-Large, ImageNet-22K", None, None, (f"{large}_21k", f"{large}_in22k"),
        num_classes=IMAGENET_22K_CLASSES,
    )  # fmt: skip
    for kind, figures in (("nat", (80.0, 81.6)), ("dinat", (80.8, 82.1)), ("vitrpb", (81.2, 82.5))):
        costs = (4.6, 17.5) if kind == "vitrpb" else (4.3, 16.9)
        for size, cost, accuracy in zip(("small", "base"), costs, figures, strict=True):
            yield _isotropic(kind, size, cost, accuracy)


_ENTRIES = {entry.name: entry for entry in _published()}
_ALIASES = {alias: entry.name for entry in _ENTRIES.values() for alias in (entry.name, *entry.aliases)}


def list_models() -> list[ModelEntry]:
    """Return every published model, in the papers' order."""
    return list(_ENTRIES.values())


def normalise(name: str) -> str:
    """Return a name in the registry's spelling: lower case, underscores, no owner, no file suffix."""
    name = name.strip().lower().rsplit("/", 1)[-1]
    name = re.sub(r"\.(pth|pt|bin|ckpt|safetensors|tar|pkl)$", "", name)
    return re.sub(r"[-\s.]+", "_", name).replace("dinats_", "dinat_s_")


def find_model(name: str) -> ModelEntry | None:
    """Return the model of a name or alias (official function, file, Hugging Face name), or ``None``."""
    found = _ALIASES.get(normalise(name))
    return None if found is None else _ENTRIES[found]


def get_model(name: str) -> ModelEntry:
    """Return the model of a name or an alias.

    Raises:
        UsageError: unknown; suggests the nearest names.
    """
    entry = find_model(name)
    if entry is None:
        near = difflib.get_close_matches(normalise(name), _ALIASES, n=3, cutoff=0.5)
        suggestions = list(dict.fromkeys(_ALIASES[alias] for alias in near))
        hint = f"did you mean {' or '.join(suggestions)}?" if suggestions else "see `na-deploy models` for the names"
        raise UsageError(f"unknown architecture '{name}'; {hint}")
    return entry
