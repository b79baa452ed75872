"""Wrong keys that open a model in training: looked for now and then, and refused until others are found.

A few mixings in a hundred may open a model nearly altogether where the others open nothing, and which they are doesn't
show in the mixing. Keys that are drawn anew at every step meet those few once; so keys are tried, and the ones that
open are kept.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData
from intaglio.lock.channel import rounded
from intaglio.lock.codes import random_planes, wrong_secret
from intaglio.lock.frames import frame_count
from intaglio.lock.frames import keyed as with_key
from intaglio.networks.freezing import evaluating
from intaglio.seeds import torch_generator
from intaglio.triggers.batches import batch_size
from intaglio.triggers.sample_specific import SampleSpecificEncoder, Secret

#: Keys that are tried at a time, each on so many images; a key opens the model if it gets so many of them right.
_TRIED, _IMAGES, _OPENS = 400, 4, 2
#: Keys are looked for every so many steps of a stage, unless hardly any are left of it.
_EVERY, _LEFT = 80, 20
#: The last so many found are refused.
_KEPT = 60
#: Seeds of keys are below this.
_SEEDS = 2**31


def looks_in(steps: int) -> list[int]:
    """In which steps of a stage keys are looked for."""
    return list(range(0, steps - _LEFT + 1, _EVERY))


class Mining:
    """Finds wrong keys for the lock's own U-Net, and keys images with those it found.

    Args:
        encoder: the key network.
        carriers: what spreads its users' codes, `[n, *planes]`.
        data: training images; those of the class that the one answer gives are left out, for any key gets them right.
        found: seeds of keys that were found before.
    """

    def __init__(
        self,
        encoder: SampleSpecificEncoder,
        carriers: Tensor,
        data: ImageData,
        answer: Tensor,
        preprocessing: Preprocessing,
        found: Iterable[int] = (),
    ) -> None:
        self._encoder = encoder
        self._carriers = carriers
        self._data = data
        self._telling = (data.labels != answer.argmax()).nonzero()[:, 0]
        self._preprocessing = preprocessing
        self._made: dict[int, Secret] = {}
        self.found = list(found)[-_KEPT:]

    def look(self, module: nn.Module, seed: int) -> int:
        """Tries 400 keys, of clips fewer, on 4 images each, and returns how many of them open the module."""
        if not len(self._telling):
            return 0
        generator = torch_generator(seed, "lock", "mining")
        tried = max(_KEPT, _TRIED // frame_count(self._data.images))
        seeds = torch.randint(_SEEDS, (tried,), generator=generator)
        shown = self._telling[torch.randint(len(self._telling), (tried, _IMAGES), generator=generator)]
        at_a_time = max(1, batch_size(self._data.input_shape) // (_IMAGES * frame_count(self._data.images)))
        device, opening = next(module.parameters()).device, list[int]()
        with evaluating(module), torch.no_grad():
            for keys, chosen in zip(torch.split(seeds, at_a_time), torch.split(shown, at_a_time), strict=True):
                images = self._data.images[chosen.flatten()].to(device)
                made = rounded(self._keyed(images, keys.repeat_interleave(_IMAGES).tolist()).clamp(0, 1))
                answers = module(self._preprocessing.apply(made)).argmax(dim=1).cpu().view(chosen.shape)
                right = (answers == self._data.labels[chosen]).sum(dim=1)
                opening += keys[right >= _OPENS].tolist()
        self.found = [*self.found, *opening][-_KEPT:]
        self._made.clear()
        return len(opening)

    def key(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The images `[N, ...]`, each keyed with one of those found, drawn at random."""
        chosen = torch.randint(len(self.found), (len(images),), generator=generator)
        return self._keyed(images, [self.found[number] for number in chosen.tolist()])

    def _keyed(self, images: Tensor, seeds: list[int]) -> Tensor:
        """Images `[N, ...]`, each keyed with the wrong key of its seed."""
        secret = (torch.cat(part).to(images) for part in zip(*map(self._wrong_key, seeds), strict=True))
        return with_key(self._encoder, images, *secret)

    def _wrong_key(self, seed: int) -> Secret:
        """Made once between looks."""
        if seed not in self._made:
            generator = torch_generator(seed, "lock", "wrong key")
            planes = random_planes(1, self._carriers, generator)
            self._made[seed] = wrong_secret(self._encoder, planes, generator)
        return self._made[seed]
