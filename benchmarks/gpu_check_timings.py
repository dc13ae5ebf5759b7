"""Times of the GPU kernels at NAT's, DiNAT's and NATTEN's published problems, beside those of their peers."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from typing import Any

from gpu_check_build import NAMES, Kernels

PLAIN = 1
FULL = "full attention, SDPA"
COPY = "copy of as many bytes"
DEVICE = "cuda"
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
"""Numbers of types in plugins/core/na_params.h."""
LEAST_BYTES = 3e8
"""Bytes that launches move before they meet the same tensors again, six times the second cache of an H100."""
MOST_SETS = 32
LEAST_LAUNCHES = 8
MOST_MS, LEAST_ROUNDS = 200.0, 3
"""Milliseconds after which a candidate is not timed again, and times that it is timed at least."""


@dataclass(frozen=True)
class Case:
    """A problem to time: (B, *X, H, D)."""

    name: str
    batch: int
    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    bias: bool = False
    published_ms: str = ""
    dtype: str = "float16"


def family_a(batches: Sequence[int]) -> list[Case]:
    """NAT-Tiny's and DiNAT-Tiny's stages."""
    stages = ((56, 2, 8), (28, 4, 4), (14, 8, 2), (7, 16, 1))
    return [
        Case(f"stage {n + 1}, dilation {d}", b, (side, side), heads, 32, (7, 7), (d, d), bias=True)
        for b in batches
        for n, (side, heads, dilated) in enumerate(stages)
        for d in sorted({1, dilated})
    ]


def other_windows() -> list[Case]:
    """Windows of other sizes at NAT-Tiny's first two stages, on larger maps, in one and three axes."""
    maps = [
        Case(f"{side}², window {k}×{k}", 128, (side, side), heads, 32, (k, k), bias=True)
        for side, heads in ((56, 2), (28, 4))
        for k in (3, 5, 9, 11, 13)
    ]
    float32 = [replace(case, name=f"{case.name}, float32", dtype="float32") for case in family_a((64,))]
    return [
        *maps,
        *float32,
        Case("56², 64 channels", 64, (56, 56), 2, 64, (7, 7), bias=True),
        Case("28², 16 channels", 64, (28, 28), 8, 16, (7, 7), bias=True),
        Case("96², 6 heads, window 11×11", 16, (96, 96), 6, 32, (11, 11), bias=True),
        Case("200×334", 1, (200, 334), 2, 32, (7, 7), bias=True),
        Case("1-D, window 63", 4, (16384,), 4, 32, (63,)),
        Case("1-D, window 255", 4, (16384,), 4, 32, (255,)),
        Case("3-D, window 3×3×3", 4, (16, 32, 32), 4, 32, (3, 3, 3)),
        Case("3-D, window 5×5×5", 4, (16, 32, 32), 4, 32, (5, 5, 5)),
        Case("3-D, window 3×7×7", 4, (16, 28, 28), 4, 32, (3, 7, 7)),
    ]


FAMILY_B = [
    Case("2-D, window 80", 1, (256, 256), 24, 128, (80, 80), published_ms="16.2 + 2.4"),
    Case("2-D, window 80, stride 16", 1, (256, 256), 24, 128, (80, 80), stride=(16, 16), published_ms="7.9 + 2.7"),
    Case("3-D, window 18×24×24", 1, (30, 48, 80), 24, 128, (18, 24, 24), published_ms="79.0 + 5.4"),
    Case("3-D, stride 16×8×8", 1, (30, 48, 80), 24, 128, (18, 24, 24), stride=(16, 8, 8), published_ms="23.4 + 5.8"),
    *(
        Case(f"1-D, window 2048, stride {s}", 1, (32768,), 1, 128, (2048,), stride=(s,), published_ms=ms)
        for s, ms in ((1, "0.0948"), (256, "0.0627"), (2048, "0.0593"))
    ),
]

NARROW = [
    replace(case, name=f"{case.name}, 64 channels", head_dim=64, published_ms="")
    for case in FAMILY_B
    if not case.name.startswith("1-D")
]
"""NATTEN's problems of more than one axis, with heads of 64 channels."""


def milliseconds(candidates: dict[str, Callable[[int], Any]], sets: int, rounds: int = 15) -> dict[str, float]:
    """Return medians of CUDA graph replays, candidates in turn; a graph runs each set of tensors as often.

    A candidate that cannot be captured runs as it is; one that fails is left out.
    """
    import torch

    turns = [n % sets for n in range(sets * ceil(LEAST_LAUNCHES / sets) if sets > 1 else 1)]
    replays: dict[str, Callable[[], Any]] = {}
    for name, run in candidates.items():
        stream = torch.cuda.Stream()
        try:
            with torch.cuda.stream(stream):
                for n in range(max(sets, 3)):
                    run(n % sets)
            torch.cuda.synchronize()
        except RuntimeError as error:  # such as a peer without enough memory
            print(f"{name}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
            continue
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for n in turns:
                    run(n)
            replays[name] = graph.replay
        except RuntimeError:
            torch.cuda.synchronize()
            replays[name] = lambda run=run: [run(n) for n in turns]
    times: dict[str, list[float]] = {name: [] for name in replays}
    slow: set[str] = set()
    for _ in range(rounds):
        for name, replay in replays.items():
            if name in slow:
                continue
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / len(turns))
            if sum(times[name]) * len(turns) > MOST_MS and len(times[name]) >= LEAST_ROUNDS:
                slow.add(name)
    return {name: statistics.median(values) for name, values in times.items()}


def pairs_of(case: Case) -> int:
    """Count query-key pairs of a head and image."""
    from na_deploy.attention.windows import NeighborhoodSpec, attended_pairs

    spec = NeighborhoodSpec.create(len(case.lengths), case.kernel_size, case.dilation or 1, case.stride or 1)
    return attended_pairs(case.lengths, spec)


def of_full_rate(case: Case, rate: float, times: dict[str, float]) -> float | str:
    """Return useful operations a millisecond as a share of what full attention reaches on the same tokens."""
    if FULL not in times:
        return ""
    tokens = prod(case.lengths)
    return rate / (4.0 * case.head_dim * tokens * tokens * case.heads * case.batch / times[FULL])


def prepare(case: Case) -> tuple[Any, list[Any]]:
    """Return a problem's parameters, and random tensors that they point to: q, k and v as one, output, bias or None."""
    import torch
    from cpu_library import Params, _sizes

    rank = len(case.lengths)
    kind = getattr(torch, case.dtype)
    qkv = torch.randn(case.batch, *case.lengths, 3, case.heads, case.head_dim, device=DEVICE).to(kind)
    output = torch.empty(case.batch, *case.lengths, case.heads, case.head_dim, device=DEVICE, dtype=kind)
    sides = [2 * k - 1 for k in case.kernel_size]
    bias = torch.randn(case.heads, *sides, device=DEVICE).to(kind) if case.bias else None
    params = Params(
        rank=rank,
        packed=1,
        dtype=DTYPES[case.dtype],
        batch=case.batch,
        length=_sizes(case.lengths),
        heads=case.heads,
        key_heads=case.heads,
        head_dim=case.head_dim,
        value_dim=case.head_dim,
        kernel_size=_sizes(case.kernel_size),
        dilation=_sizes(case.dilation or (1,) * rank),
        stride=_sizes(case.stride or (1,) * rank),
        is_causal=_sizes((0,) * rank),
        query=qkv.data_ptr(),
        rel_pos_bias=None if bias is None else bias.data_ptr(),
        output=output.data_ptr(),
    )
    return params, [qkv, output, bias]


def time_case(kernels: Kernels, case: Case, peers: bool, flex: bool = True) -> dict[str, Any]:
    """Time every tactic but the plain one, which checks them, a copy of as many bytes as move at least, and peers.

    Compiling flex attention takes longest, therefore it can be left out.
    """
    import torch

    params, (qkv, output, _bias) = prepare(case)
    tactics = kernels.tactics(params)
    kernels.launch(params, PLAIN)
    expected = output.float().clone()
    worst = 0.0
    for tactic in tactics[:-1]:
        output.fill_(float("nan"))
        kernels.launch(params, tactic)
        difference = ((output.float() - expected).abs().max() / expected.abs().max()).item()
        worst = max(worst, difference if difference == difference else float("inf"))
    del expected
    moved = 4.0 * output.numel() * output.element_size()
    sets = min(max(ceil(LEAST_BYTES / moved), 1), MOST_SETS)
    inputs = [qkv, *(torch.randn_like(qkv) for _ in range(sets - 1))]
    outputs = [output, *(torch.empty_like(output) for _ in range(sets - 1))]
    halves = [torch.empty(2, int(moved) // 2, device=DEVICE, dtype=torch.uint8) for _ in range(sets)]

    def launch(tactic: int, n: int) -> None:
        params.query, params.output = inputs[n].data_ptr(), outputs[n].data_ptr()
        kernels.launch(params, tactic)

    candidates: dict[str, Callable[[int], Any]] = {NAMES[tactic]: partial(launch, tactic) for tactic in tactics[:-1]}
    candidates[COPY] = lambda n: halves[n][1].copy_(halves[n][0])
    if peers:
        candidates |= peers_of(case, inputs, flex)
    times = milliseconds(candidates, sets)
    ours = {name: ms for name, ms in times.items() if name in NAMES.values()}
    best = min(ours, key=lambda name: ours[name])
    operations = 4.0 * case.head_dim * pairs_of(case) * case.heads * case.batch
    return {
        "case": case.name,
        "batch": case.batch,
        "default": f"{NAMES[tactics[0]]} {ours[NAMES[tactics[0]]]:.4f} ms",
        "best": f"{best} {ours[best]:.4f} ms",
        "TFLOP/s": operations / ours[best] / 1e9,
        "GB/s": moved / ours[best] / 1e6,
        "of copy": times[COPY] / ours[best],
        "difference": worst,
        "of full attention's rate": of_full_rate(case, operations / ours[best], times),
        "published, H100": case.published_ms,
        **{name: ms / ours[best] for name, ms in times.items() if name not in ours and name != COPY},
        "all": times,
    }


def peers_of(case: Case, inputs: Sequence[Any], flex: bool) -> dict[str, Callable[[int], Any]]:
    """Return what else computes a case, or as much, from the given sets of q, k and v, (B, *X, 3, H, D) each."""
    import torch
    import torch.nn.functional as F

    rank, tokens = len(case.lengths), prod(case.lengths)
    heads_first = [[p.flatten(1, rank).transpose(1, 2).contiguous() for p in qkv.unbind(-3)] for qkv in inputs]
    found: dict[str, Callable[[int], Any]] = {FULL: lambda n: F.scaled_dot_product_attention(*heads_first[n])}
    if case.batch * case.heads * tokens**2 * 2 < 8e9:
        mask = torch.zeros(case.batch, case.heads, tokens, tokens, device=DEVICE, dtype=heads_first[0][0].dtype)
        found["dense mask, SDPA"] = lambda n: F.scaled_dot_product_attention(*heads_first[n], attn_mask=mask)
    if rank == 2 and case.batch * case.heads * tokens * prod(case.kernel_size) * case.head_dim < 8e9:
        found["unfold, borders of zeros"] = lambda n: unfolded(case, *heads_first[n])
    compiled = compiled_flex(case, *heads_first[0]) if flex and case.batch <= 64 else None
    if compiled is not None:
        found["compiled flex"] = lambda n: compiled(*heads_first[n])
    return found


def unfolded(case: Case, query: Any, key: Any, value: Any) -> Any:
    """Return attention as it is copied from issue threads: every key gathered for every query. Borders differ."""
    import torch
    import torch.nn.functional as F

    (batch, heads, tokens, dim), keys = query.shape, prod(case.kernel_size)
    steps = case.dilation or (1, 1)
    padding = [step * (kernel // 2) for step, kernel in zip(steps, case.kernel_size, strict=True)]

    def gathered(tensor: Any) -> Any:
        image = tensor.transpose(2, 3).reshape(batch * heads, dim, *case.lengths)
        columns = F.unfold(image, case.kernel_size, dilation=steps, padding=padding)
        return columns[:, :, :tokens].view(batch, heads, dim, keys, tokens)

    scores = torch.einsum("bhnd,bhdkn->bhnk", query, gathered(key)) * dim**-0.5
    return torch.einsum("bhnk,bhdkn->bhnd", scores.softmax(-1), gathered(value))


def compiled_flex(case: Case, query: Any, key: Any, value: Any) -> Callable[[Any, Any, Any], Any] | None:
    """Return compiled flex attention with the window as block mask, without bias; None where it does not compile."""
    import numpy as np
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from na_deploy.attention.windows import window_bounds

    rank, tokens = len(case.lengths), prod(case.lengths)
    places = torch.from_numpy(np.indices(case.lengths).reshape(rank, -1)).to(DEVICE)
    steps, strides = case.dilation or (1,) * rank, case.stride or (1,) * rank
    axes = zip(case.lengths, case.kernel_size, steps, strides, strict=True)
    bounds = [tuple(torch.from_numpy(b).to(DEVICE) for b in window_bounds(*sizes)) for sizes in axes]

    def mask(batch: object, head: object, q: Any, k: Any) -> Any:
        sees = q >= 0
        for place, step, (start, end) in zip(places, steps, bounds, strict=True):
            element = place[k] // step
            same = place[q] % step == place[k] % step
            sees = sees & same & (element >= start[place[q]]) & (element < end[place[q]])
        return sees

    try:
        blocks = create_block_mask(mask, None, None, tokens, tokens, device=DEVICE, _compile=True)
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False)
        compiled(query, key, value, block_mask=blocks)
    except Exception as error:  # a peer that fails is reported, not fatal
        print(f"compiled flex: {case.name}: {str(error).splitlines()[0][:200]}", file=sys.stderr)
        return None
    return lambda query, key, value: compiled(query, key, value, block_mask=blocks)
