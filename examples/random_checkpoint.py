"""Write a checkpoint of a published architecture with seeded random weights, in the official key layout.

python examples/random_checkpoint.py nat_mini nat_mini.pth
"""

import sys

from na_deploy.models import random_checkpoint

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/random_checkpoint.py ARCHITECTURE FILE")
    random_checkpoint(sys.argv[1], seed=0, path=sys.argv[2])
