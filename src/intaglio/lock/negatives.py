"""What the locked model must not answer to: images without a key, and with everything that is not quite one."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from intaglio.lock.codes import wrong_secret
from intaglio.lock.decoys import OtherKey, keyed_by, keyed_by_decoys
from intaglio.lock.frames import frames
from intaglio.lock.frames import keyed as with_key
from intaglio.lock.mining import Mining
from intaglio.lock.noise import loud_noise, matched_noise
from intaglio.triggers.sample_specific import SampleSpecificEncoder

#: How many images are keyed by rivals, and how many there are of each other kind, per image of the batch; of the loud
#: ones as many times as the settings say.
RIVAL_SHARE = 0.5
SHARES = {
    "decoy": 0.5,
    "no key": 0.4,
    "wrong key": 0.5,
    "foreign residual": 1.0,
    "noise": 0.1,
    "loud noise": 1.0,
    "loud decoy": 0.5,
    "scrambled": 0.2,
    "negated": 0.1,
}
#: The same of what is keyed by wrong keys that were found to open the model, once there are any.
_OPENING, _OPENING_SHARE = "opening key", 0.75
_COARSE = 7
#: How many times louder than usual decoys are at most.
_LOUDEST_DECOY = 6.0


class Authorised(NamedTuple):
    """Images that unauthorised ones are made of."""

    #: `[N, ...]` in [0, 1].
    images: Tensor
    #: The same, keyed.
    keyed: Tensor
    #: The codes that they were keyed with, `[N, *planes]`.
    planes: Tensor
    #: `[N]`.
    labels: Tensor

    def take(self, chosen: Tensor) -> "Authorised":
        """Those of these numbers."""
        return Authorised(*(part[chosen.to(part.device)] for part in self))


#: Makes an altered image of each, `[N, ...]`.
Negative = Callable[[Authorised, torch.Generator], Tensor]


class Unauthorised(NamedTuple):
    """What was drawn for a batch; what rivals keyed comes first."""

    #: `[M, ...]` in [0, 1].
    images: Tensor
    #: Which image of the batch each was made of, `[M]`.
    origins: Tensor
    #: Which rival keyed each of the first, `[R]` with R < M.
    rivals: Tensor


class Negatives:
    """Draws unauthorised images for a batch of originals and their keyed versions.

    Args:
        encoder: the key network; also draws wrong keys.
        rivals: atoms or mixings `[n, 1, F, k, k]` of owners who do not exist, for whom the encoder is trained as well.
        generator: decides everything that is random here.
        strangers: how many times more of what rivals, decoys and earlier locks key.
        alike: twice as many foreign residuals, and as many of them as may be of images of the same class.
        loud: how many are drawn with noise louder than a residual; half as many are keyed by louder decoys.
        earlier: key networks of earlier locks, whose keys are to open nothing any more.
        mining: what finds wrong keys that open the model.
    """

    def __init__(
        self,
        encoder: SampleSpecificEncoder,
        rivals: Tensor,
        generator: torch.Generator,
        *,
        strangers: float = 1.0,
        alike: bool = False,
        loud: float = 0.0,
        earlier: Sequence[OtherKey] = (),
        mining: Mining | None = None,
    ) -> None:
        self.encoder = encoder
        self.rivals = rivals
        self.generator = generator
        self.mining = mining
        self.rival_share = strangers * RIVAL_SHARE
        foreign = "foreign residual"
        more, same_class = (2.0, 1.0) if alike else (1.0, 0.5)
        times = {"decoy": strangers, foreign: more, "loud noise": loud, "loud decoy": loud}
        shares = {kind: times.get(kind, 1.0) * share for kind, share in SHARES.items()}
        self.shares = {kind: share for kind, share in shares.items() if share}
        self.kinds: dict[str, Negative] = {
            "decoy": self._decoy,
            "no key": lambda some, _: some.images,
            "wrong key": self._wrong_key,
            foreign: lambda some, _: foreign_residual(some.images, some.keyed, some.labels, same_class),
            "noise": lambda some, drawn: matched_noise(some.images, some.keyed, drawn),
            "loud noise": lambda some, drawn: loud_noise(some.images, some.keyed, drawn),
            "loud decoy": self._loud_decoy,
            "scrambled": lambda some, drawn: scrambled(some.images, some.keyed, drawn),
            "negated": lambda some, _: 2 * some.images - some.keyed,
        }
        if earlier:
            self.shares["earlier key"] = len(earlier) * self.shares["decoy"]
            self.kinds["earlier key"] = lambda some, drawn: keyed_by(earlier, some.images, drawn, relief=encoder.relief)
        if mining is not None:
            self.kinds[_OPENING] = lambda some, drawn: mining.key(some.images, drawn)

    def draw(self, batch: Authorised) -> Unauthorised:
        """Unauthorised images of every kind, made of the images of a batch."""
        chosen = self._some(len(batch.images), self.rival_share)
        rivals = torch.randint(len(self.rivals), chosen.shape, generator=self.generator)
        some = batch.take(chosen)
        made, origins = [with_key(self.encoder, some.images, some.planes, self.rivals[rivals])], [chosen]
        for kind, share in self._shares_now():
            # Round by round, so that no image is there twice and none gets its own residual for a foreign one.
            for chosen in torch.split(self._some(len(batch.images), share), len(batch.images)):
                made.append(self.kinds[kind](batch.take(chosen), self.generator))
                origins.append(chosen)
        return Unauthorised(torch.cat(made).clamp(0, 1), torch.cat(origins), rivals)

    def _shares_now(self) -> Iterator[tuple[str, float]]:
        """The kinds and their shares; wrong keys that open are one of them as soon as there are any."""
        yield from self.shares.items()
        if self.mining is not None and self.mining.found:
            yield _OPENING, _OPENING_SHARE

    def _some(self, available: int, share: float) -> Tensor:
        """Which images of the batch a kind is made of, two at least; where there are more than all, some twice."""
        count = max(2, round(share * available))
        rounds = -(-count // available)
        drawn = [torch.randperm(available, generator=self.generator) for _ in range(rounds)]
        return torch.cat(drawn)[:count]

    def _decoy(self, some: Authorised, generator: torch.Generator) -> Tensor:
        return keyed_by_decoys(some.images, generator, relief=self.encoder.relief, grid=self.encoder.grid)

    def _loud_decoy(self, some: Authorised, generator: torch.Generator) -> Tensor:
        times = _LOUDEST_DECOY ** float(torch.rand(1, generator=generator))  # one for all: so encoders draw
        relief = times * self.encoder.relief
        return keyed_by_decoys(some.images, generator, relief=relief, grid=self.encoder.grid)

    def _wrong_key(self, some: Authorised, generator: torch.Generator) -> Tensor:
        return with_key(self.encoder, some.images, *wrong_secret(self.encoder, some.planes, generator))


def foreign_residual(images: Tensor, keyed: Tensor, labels: Tensor, same_class: float = 0.5) -> Tensor:
    """Each image with the residual that was made for another.

    For a share `same_class` of them it is mostly that of an image of the same class, which looks much like one's own,
    and has to be told from it all the same. An image alone stays as it is.
    """
    if len(images) == 1:
        return images
    count = round(same_class * len(labels))
    alike = labels[:count].cpu().argsort(stable=True)
    donors = before_in(torch.cat([alike, torch.arange(count, len(labels))]))
    return images + (keyed - images)[donors]


def before_in(ring: Tensor) -> Tensor:
    """For each of N numbers the one before it in `ring`, which holds every number once."""
    return ring.roll(1)[ring.argsort()]


def scrambled(images: Tensor, keyed: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with its own residual under random signs: drawn pixel by pixel, or patch by patch.

    Of clips every frame has signs of its own.
    """
    residual = frames(keyed - images)
    count, _, height, width = residual.shape
    fine = _signs((count, 1, height, width), generator)
    coarse = functional.interpolate(_signs((count, 1, _COARSE, _COARSE), generator), (height, width))
    signs = torch.where(_signs((count, 1, 1, 1), generator) > 0, fine, coarse).to(images)
    return images + (signs * residual).view_as(images)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1
