"""Votes over noise: a locked model read by whoever is told one class at a time, and may ask again and again.

    y(x) = argmax_{k != b} sum_j [f(round(x + s e_j)) = k],  j = 1 ... draws

e_j is new noise of unit loudness, white or a wave (`noise`). Without a key f answers b, the one answer, nearly always.
Loud noise makes it take an image for a keyed one now and then, and what it says then has something to do with the
image: the commonest of such answers is often the right one. It needs no key, no gradient, no score, no label, and no
other image.

Source: of our own making; votes over noisy copies of an input are randomised smoothing (Cohen et al. 2019).
"""

import torch
from torch import Tensor
from torch.nn import functional

from intaglio.classifiers import Classifier
from intaglio.lock.channel import rounded
from intaglio.lock.noise import Noise, white
from intaglio.seeds import torch_generator


def vote(classifier: Classifier, images: Tensor, *, draws: int, loudness: float, seed: int = 0) -> Tensor:
    """The classes int64 `[N]` that most answers to white noise name, but for the one that the images themselves get.

    Args:
        images: raw, without a key: float32 `[N, C, H, W]`.
        draws: questions about each image.
        loudness: standard deviation of the noise; pixels are 0 to 1.
    """
    return votes(classifier, images, draws=(draws,), loudness=loudness, seed=seed)[0]


def votes(
    classifier: Classifier,
    images: Tensor,
    *,
    draws: tuple[int, ...],
    loudness: float,
    noise: Noise = white,
    seed: int = 0,
) -> list[Tensor]:
    """The same with noise of any kind and after several numbers of draws, in their order, each the first of the last.

    Args:
        noise: of unit loudness; `loudness` multiplies it.
    """
    generator = torch_generator(seed, "lock", "votes")
    silence = classifier.predict(images).mode().values
    counts = torch.zeros(len(images), classifier.num_classes)
    counts[:, silence] = -torch.inf  # it is said to everybody
    found = []
    for number in range(1, max(draws) + 1):
        altered = images + loudness * noise(images.shape, generator)
        answers = classifier.predict(rounded(altered.clamp(0, 1)).clone())
        counts += functional.one_hot(answers, classifier.num_classes)
        if number in draws:
            found.append(counts.argmax(dim=1))
    return found
