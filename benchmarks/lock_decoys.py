"""Writes the decoys of `intaglio.lock.decoys` from the key networks of locks of grey images.

    python -m benchmarks.lock_decoys --out decoys.safetensors FOLDER:SEED...

Each folder is a lock of the benchmarks' owner of that seed. Those in the package are Fashion-MNIST's owners 0, 1 and 2
as `python -m benchmarks.lock --parts leaks` locked them at commit 80232d0, before there were rivals and decoys.
"""

import argparse
from pathlib import Path

from safetensors.torch import save

from benchmarks.lock import owner_key
from intaglio.files import atomic_path
from intaglio.lock import Lock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", nargs="+", metavar="FOLDER:SEED")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    weights = {}
    for number, named in enumerate(options.locks):
        folder, seed = named.rsplit(":", 1)
        lock = Lock.open(folder, owner_key(int(seed)))
        if lock.facts.settings.stride != 1:
            parser.error(f"{folder}: a decoy mixes features; this lock's residual is made of atoms")
        weights[f"{number}.mixing"] = lock.secrets.mixing
        weights |= {f"{number}.{name}": value for name, value in lock.network.encoder.state_dict().items()}
    with atomic_path(options.out) as temporary:
        temporary.write_bytes(save({name: value.contiguous() for name, value in weights.items()}))
    print(options.out)


if __name__ == "__main__":
    main()
