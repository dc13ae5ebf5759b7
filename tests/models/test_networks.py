"""The networks compute what the papers say, checked against a plain float64 forward without their code."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear

from na_deploy.errors import UsageError
from na_deploy.models import ModelConfig, build_model, random_checkpoint
from na_deploy.models.config import ones
from na_deploy.models.layers import mean_over_map

Weights = dict[str, Tensor]

NAT = ModelConfig("nat", 16, (2, 1, 2, 1), (1, 2, 2, 4), 3, ((1, 3), (2,), (1, 2), (1,)), 3.0, num_classes=7)
DINAT_S = replace(NAT, family="dinat_s", mlp_ratio=4.0)
ISOTROPIC = ModelConfig("isotropic", 16, (3,), (2,), 3, ((1, 2, 1),), 4.0, num_classes=7, patch_size=16)
VIT_RPB = replace(ISOTROPIC, kernel_size=4, dilations=ones((3,)), fixed_map=True)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, kernel: int, dilation: int) -> Tensor:
    """Neighborhood attention query by query: (H, W, heads, D) each, bias (heads, 2K-1, 2K-1)."""
    height, width, _, dim = q.shape

    def window(at: int, length: int) -> list[int]:
        group = list(range(at % dilation, length, dilation))
        first = min(max(group.index(at) - kernel // 2, 0), len(group) - kernel)
        return group[first : first + kernel]

    output = torch.empty_like(q)
    for i in range(height):
        for j in range(width):
            rows, columns = torch.tensor(window(i, height)), torch.tensor(window(j, width))
            keys, values = k[rows][:, columns], v[rows][:, columns]  # (K, K, heads, D)
            scores = torch.einsum("hd,abhd->hab", q[i, j], keys) * dim**-0.5
            at_row = torch.div(rows - i, dilation, rounding_mode="floor") + kernel - 1
            at_column = torch.div(columns - j, dilation, rounding_mode="floor") + kernel - 1
            scores = scores + bias[:, at_row][:, :, at_column]
            weight = scores.flatten(1).softmax(-1).view_as(scores)
            output[i, j] = torch.einsum("hab,abhd->hd", weight, values)
    return output


def plain_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def plain_linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def plain_block(w: Weights, name: str, x: Tensor, heads: int, kernel: int, dilation: int) -> Tensor:
    height, width, channels = x.shape
    y = plain_norm(w, f"{name}.norm1", x)
    padded = torch.zeros(max(height, kernel * dilation), max(width, kernel * dilation), channels, dtype=x.dtype)
    padded[:height, :width] = y
    q, k, v = plain_linear(w, f"{name}.attn.qkv", padded).chunk(3, -1)
    split = (*padded.shape[:2], heads, channels // heads)
    y = plain_attention(q.reshape(split), k.reshape(split), v.reshape(split), w[f"{name}.attn.rpb"], kernel, dilation)
    y = plain_linear(w, f"{name}.attn.proj", y.reshape(padded.shape)[:height, :width])
    x = x + (w[f"{name}.gamma1"] * y if f"{name}.gamma1" in w else y)
    y = plain_linear(w, f"{name}.mlp.fc2", gelu(plain_linear(w, f"{name}.mlp.fc1", plain_norm(w, f"{name}.norm2", x))))
    return x + (w[f"{name}.gamma2"] * y if f"{name}.gamma2" in w else y)


def plain_merging(w: Weights, name: str, x: Tensor) -> Tensor:
    rows, columns = (x.shape[0] + 1) // 2, (x.shape[1] + 1) // 2
    even = torch.zeros(2 * rows, 2 * columns, x.shape[2], dtype=x.dtype)
    even[: x.shape[0], : x.shape[1]] = x
    parts = [even[0::2, 0::2], even[1::2, 0::2], even[0::2, 1::2], even[1::2, 1::2]]
    return plain_linear(w, f"{name}.reduction", plain_norm(w, f"{name}.norm", torch.cat(parts, -1)))


def plain_patches(w: Weights, image: Tensor, patch: int) -> Tensor:
    height, width = (-(-side // patch) * patch for side in image.shape[1:])
    whole = torch.zeros(image.shape[0], height, width, dtype=image.dtype)
    whole[:, : image.shape[1], : image.shape[2]] = image
    x = conv2d(whole[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    return plain_norm(w, "patch_embed.norm", x[0].permute(1, 2, 0))


def plain_forward(w: Weights, config: ModelConfig, image: Tensor) -> list[Tensor]:
    """Class scores, or maps (C, H, W), of one image (3, H, W)."""
    if config.family == "nat":
        x = image[None]
        for index in range(2):
            layer = f"patch_embed.proj.{index}"
            x = conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], stride=2, padding=1)
        x = plain_norm(w, "patch_embed.norm", x[0].permute(1, 2, 0))
    else:
        x = plain_patches(w, image, config.patch_size)
    root = {"nat": "levels.{}.blocks.{}", "dinat_s": "layers.{}.blocks.{}", "isotropic": "layers.{1}"}[config.family]
    maps = []
    for level, dilations in enumerate(config.dilations):
        for block, dilation in enumerate(dilations):
            name = root.format(level, block)
            x = plain_block(w, name, x, config.heads[level], config.kernel_size, dilation)
        if level in config.out_indices:
            maps.append(plain_norm(w, f"norm{level}", x).permute(2, 0, 1))
        if level == len(config.dilations) - 1:
            break
        down = f"{root.split('.')[0]}.{level}.downsample"
        if config.family == "nat":
            y = conv2d(x.permute(2, 0, 1)[None], w[f"{down}.reduction.weight"], stride=2, padding=1)
            x = plain_norm(w, f"{down}.norm", y[0].permute(1, 2, 0))
        else:
            x = plain_merging(w, down, x)
    if maps:
        return maps
    pooled = plain_norm(w, "norm", x).flatten(0, 1).mean(0)
    return [plain_linear(w, "head", pooled) if "head.weight" in w else pooled]


CASES = {
    "NAT's kin, every map larger than its window": (NAT, (200, 168)),
    "with layer scale, odd maps": (replace(NAT, layer_scale=True), (101, 75)),
    "maps smaller than the dilated window": (NAT, (37, 50)),
    "without a head": (replace(NAT, num_classes=0), (64, 64)),
    "without a qkv bias": (replace(NAT, qkv_bias=False), (40, 64)),
    "a backbone of every level": (replace(NAT, num_classes=0, out_indices=(0, 1, 2, 3)), (70, 99)),
    "a backbone of two levels": (replace(NAT, num_classes=0, out_indices=(0, 2)), (70, 99)),
    "DiNAT_s": (DINAT_S, (96, 128)),
    "DiNAT_s on images of no whole patches and odd maps": (DINAT_S, (75, 101)),
    "DiNAT_s as backbone": (replace(DINAT_S, num_classes=0, out_indices=(1, 3)), (75, 101)),
    "isotropic": (ISOTROPIC, (112, 160)),
    "isotropic, map smaller than the dilated window": (ISOTROPIC, (60, 160)),
    "ViT-rpb": (VIT_RPB, (64, 64)),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_agrees_with_the_plain_one(case: str) -> None:
    config, size = CASES[case]
    weights = {
        name: t.double() if t.is_floating_point() else t for name, t in random_checkpoint(config, seed=3).items()
    }
    module = build_model(config).double()
    module.load_state_dict(weights, strict=True)
    image = torch.randn(3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        outputs = module(torch.stack([image, image.flip(-1)]))
        expected = plain_forward(weights, config, image.flip(-1))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output[1], wanted, rtol=1e-10, atol=1e-10)


def test_random_checkpoints_are_seeded_and_keep_activations_sane() -> None:
    first, again, other = (random_checkpoint("nat_mini", seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    module = build_model("nat_mini")
    module.load_state_dict(first, strict=True)
    with torch.inference_mode():
        scores = module(torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    assert 0.2 < scores.std() < 5


def test_every_weight_changes_the_output() -> None:
    config = replace(NAT, layer_scale=True)
    module = build_model(config)
    module.load_state_dict(random_checkpoint(config, seed=3))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    idle = []
    with torch.inference_mode():
        before = module(image)
        for name, parameter in module.named_parameters():
            saved = parameter.clone()
            parameter.copy_(saved.flip(-1) if name.endswith("rpb") else saved.roll(1))
            if (module(image) - before).abs().max() < 1e-5:
                idle.append(name)
            parameter.copy_(saved)
    assert idle == []


def test_the_mean_over_the_map_is_taken_in_float32() -> None:
    config = replace(NAT, num_classes=0)
    module = build_model(config)
    module.load_state_dict(random_checkpoint(config, seed=3))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x = torch.full((1, 64, 64, 2), 1001.0, dtype=torch.float16)  # summing in float16 overflows
    assert torch.equal(mean_over_map(x), torch.full((1, 2), 1001.0, dtype=torch.float16))
    with torch.inference_mode():
        half = module.to(torch.bfloat16)(image.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()


def test_vit_rpb_refuses_other_maps() -> None:
    with pytest.raises(UsageError, match="exactly 4x4, got 5x4"):
        build_model(VIT_RPB)(torch.randn(1, 3, 80, 64))


def test_the_attention_function_can_be_swapped() -> None:
    module = build_model(NAT)
    calls: list[tuple[int, ...]] = []

    def only_values(qkv: Tensor, rel_pos_bias: Tensor | None = None, **attributes: object) -> Tensor:
        calls.append(tuple(qkv.shape))
        return qkv.select(-3, 2)

    for block in module.modules():
        if hasattr(block, "attention"):
            block.attention = only_values
    module(torch.randn(2, 3, 64, 64))
    assert calls[0] == (2, 16, 16, 3, 1, 16)
    assert len(calls) == sum(NAT.depths)


@pytest.mark.parametrize("config", [NAT, DINAT_S, ISOTROPIC], ids=["nat", "dinat_s", "isotropic"])
def test_a_static_graph_has_one_attention_per_block_and_no_padding_it_does_not_need(
    config: ModelConfig,
) -> None:
    program = torch.export.export(build_model(config), (torch.randn(1, 3, 256, 256),))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("neighborhood_attention_qkv" in target for target in targets) == sum(config.depths)
    assert not any("pad" in target or "slice" in target or "copy" in target for target in targets)
    downsampled = 2 * (len(config.depths) - 1) if config.family == "nat" else len(config.depths) - 1
    assert sum("permute" in target for target in targets) == 1 + downsampled


@pytest.mark.parametrize("config", [NAT, DINAT_S], ids=["nat", "dinat_s"])
def test_a_graph_with_free_sizes_attends_to_padding_without_padding_the_map(config: ModelConfig) -> None:
    module = build_model(config)
    module.load_state_dict(random_checkpoint(config, seed=1))
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(module, (torch.randn(2, 3, 250, 333),), dynamic_shapes=({0: free, 2: free, 3: free},))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    attention = [node for node in program.graph.nodes if "neighborhood_attention_qkv" in str(node.target)]
    assert len(attention) == sum(config.depths)
    assert all(node.args[2] is not None for node in attention)
    merges = config.family == "dinat_s"  # 2x2 neighbours, of odd maps with zeros
    assert any("pad" in target for target in targets) == merges
    image = torch.randn(1, 3, 53, 47, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        traced = torch.fx.Interpreter(program.graph_module).run(
            *[program.state_dict[name] for name in program.graph_signature.inputs_to_parameters.values()],
            image,
        )
        torch.testing.assert_close(traced[0], module(image))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (1, 2, 2)}, "one number per level"),
        ({"heads": (1, 2, 3, 4)}, "3 heads do not divide"),
        ({"dilations": ((1, 3), (2,), (1,), (1,))}, r"given for \[2, 1, 1, 1\] blocks per level"),
        ({"dilations": ((1, 0), (2,), (1, 2), (1,))}, "at least 1, got 0"),
        ({"out_indices": (4,)}, "out_indices must lie in 0…3"),
    ],
)
def test_an_impossible_description_says_why(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(NAT, **changes)  # type: ignore[arg-type]


def test_a_description_survives_json() -> None:
    for config in (NAT, DINAT_S, ISOTROPIC, VIT_RPB):
        assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(UsageError, match="not a model description"):
        ModelConfig.from_json("[1, 2]")
