"""Makes the Fashion-MNIST subset inside the package: of each class the first 1,000 training and 200 test images.

python -m benchmarks.bundle_fashion_mnist
"""

from pathlib import Path

import torch

from benchmarks.fetch import fashion_mnist
from intaglio.data.idx import read_idx, write_idx
from intaglio.files import write_bytes

OUT = Path(__file__).parents[1] / "src" / "intaglio" / "data" / "bundled" / "fashion-mnist"
PER_CLASS = {"train": 1000, "t10k": 200}


def main() -> None:
    source = fashion_mnist()
    for prefix, count in PER_CLASS.items():
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        chosen = torch.cat([(labels == label).nonzero().flatten()[:count] for label in range(10)]).sort().values
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{prefix}-{kind}-ubyte.gz"
            write_bytes(OUT / name, write_idx(read_idx(source / name)[chosen]))
            print(OUT / name)


if __name__ == "__main__":
    main()
