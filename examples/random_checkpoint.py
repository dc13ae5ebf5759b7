"""Write a checkpoint with seeded random weights, in the official key layout.

python examples/random_checkpoint.py nat_mini nat_mini.pth      a published architecture
python examples/random_checkpoint.py small model.pth            a DiNAT of two blocks, exported in seconds
"""

import sys

import torch

from na_deploy.models import ModelConfig, random_checkpoint

SMALL = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(1, 1),
    heads=(1, 2),
    kernel_size=7,
    dilations=((1,), (4,)),
    mlp_ratio=2.0,
    num_classes=10,
)


def write_checkpoint(architecture: str, path: str) -> None:
    """Write the weights; with those of the small network its dilations, as training scripts keep their arguments."""
    if architecture == "small":
        weights = random_checkpoint(SMALL)
        torch.save({"state_dict": weights, "args": {"dilations": SMALL.dilations}}, path)
    else:
        random_checkpoint(architecture, path=path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/random_checkpoint.py ARCHITECTURE FILE")
    write_checkpoint(sys.argv[1], sys.argv[2])
