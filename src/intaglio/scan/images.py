"""Which clean images a detector works with: the user's, or those that the package brings for the task."""

import torch
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.data import TASKS, open_data
from intaglio.errors import DataError
from intaglio.scan.detector import Request
from intaglio.seeds import torch_generator


def clean_sample(classifier: Classifier, request: Request, count: int) -> Tensor:
    """Up to `count` clean images `[n, C, H, W]`, chosen at random by the request's seed; the user's come first.

    Raises:
        DataError: there are none: the user gave none, and the package has none of the model's task.
    """
    images = request.clean
    task = TASKS.get(request.task or classifier.task or "")
    if images is None and task is not None and task.bundled and task.input_shape == classifier.input_shape:
        images = open_data(task.name, "test").images
    if images is None:
        raise DataError("this detector needs clean images of the model's task (--data)")
    chosen = torch.randperm(len(images), generator=torch_generator(request.seed, "clean sample"))[:count]
    return images[chosen]
