"""`check_lock`: the leak table of a locked model, what it answers to whom and what can be made of it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.data import Data, ImageData, check_answerable, check_labelled, evenly_spaced, image_data
from intaglio.errors import DataError
from intaglio.lock.channel import rounded
from intaglio.lock.codes import random_planes, wrong_secret
from intaglio.lock.decoys import keyed_by_decoys
from intaglio.lock.frames import frame_count
from intaglio.lock.frames import keyed as with_key
from intaglio.lock.leaks import HELD, PROBES, READERS, by_chance, chance, read, right
from intaglio.lock.lock import Lock, listed
from intaglio.lock.negatives import before_in
from intaglio.lock.noise import matched_noise
from intaglio.lock.quality import psnr, ssim
from intaglio.lock.votes import vote
from intaglio.lock.wrong_keys import KEYS, keys_that_open
from intaglio.results import Result
from intaglio.seeds import derive_seed, torch_generator
from intaglio.tampering import Jpeg
from intaglio.triggers.batches import batch_size

#: How far from chance an unauthorised reader may get.
MARGIN = 0.02
JPEG_QUALITY = 75
KEYED = "keyed, PNG"
KEYED_JPEG = f"keyed, JPEG {JPEG_QUALITY}"
SAME_CLASS = "foreign residual, same class"
LOUD = "noise, four times as loud"
#: Harder than what a lock has to refuse: measured and reported.
BEYOND = (LOUD, SAME_CLASS)
_TIMES = 4.0
#: Of so few images every kind is drawn anew until it was tried on about so many, but not more often than that: one of
#: 160 images is 0.6 points, and chance alone reads some where answers differ at all.
_TRIED, _MOST_DRAWS = 2000, 20
#: Votes over such noise: questions about each image, and images asked about.
VOTES, _VOTED = 30, 200


class Leak(Result):
    """One kind of input: the share of images whose class each reader finds in the answers.

    `chance` is what as many answers of each class would find if they had nothing to do with the images. An authorised
    kind is keyed; of the others the lock has to `hold` most at chance, and some are only reported.
    """

    inputs: str
    authorised: bool
    held: bool
    recovered: dict[str, float]
    chance: dict[str, float]

    @property
    def distance(self) -> float:
        """How far from chance any of the ways of reading gets that must stay there."""
        return max(abs(self.recovered[reader] - self.chance[reader]) for reader in HELD)


class LeakTable(Result):
    """What a locked model gives away; `tight` if nobody without a key is more than 2 points from chance.

    A model that doesn't answer keyed images either (`opens`) is tight too, and of no use to anybody. Below chance is a
    leak as well. Readings of more than the one class that is answered, and kinds of input that are harder than a lock
    has to refuse (`BEYOND`), are reported only. `chance` is what always naming the commonest class finds.
    `psnr` (dB) and `ssim` are means over keyed images, or frames of clips, after rounding to 8 bits; `worst_psnr` is
    that of one. Of few images all are means over `draws` of keys, noise and other images' residuals, but for probes,
    which are fitted to the first.
    """

    subject: str
    images: int
    draws: int = 1
    chance: float
    rows: tuple[Leak, ...]
    psnr: float
    worst_psnr: float
    ssim: float
    tight: bool
    voted: float | None = None  #: share of images whose class votes over loud noise find (`vote`); reported only
    wrong_keys: int | None = None  #: how many of `KEYS` wrong keys open the model (`keys_that_open`); reported only

    def row(self, inputs: str) -> Leak:
        """The row of this name."""
        return next(row for row in self.rows if row.inputs == inputs)

    @property
    def authorised_accuracy(self) -> float:
        """Accuracy on keyed images as PNG keeps them."""
        return self.row(KEYED).recovered["argmax"]

    @property
    def opens(self) -> bool:
        """Whether keyed images are answered any better than chance: what opens for nobody gives nothing away."""
        return self.authorised_accuracy > self.row(KEYED).chance["argmax"] + MARGIN

    @property
    def worst(self) -> float:
        """The largest distance from chance among what must stay there."""
        return max(row.distance for row in self.rows if row.held)

    def lines(self) -> list[str]:
        """The table as text, with what it comes to."""
        titles = ["input", *READERS]
        body = [[row.inputs, *(f"{row.recovered[reader]:.1%}" for reader in READERS)] for row in self.rows]
        widths = [max(len(line[column]) for line in (titles, *body)) for column in range(len(titles))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                 for line in (titles, *body)]  # fmt: skip
        verdict = "tight if asked once" if self.tight else "LEAKS"
        shut = [] if self.opens else ["keyed images are NOT ANSWERED: is this the lock of this model?"]
        return [
            *table,
            f"keyed images: {self.psnr:.1f} dB (worst {self.worst_psnr:.1f}), SSIM {self.ssim:.3f}; "
            f"{self.authorised_accuracy:.1%} answered rightly",
            *shut,
            *([f"means over {self.draws} draws, for {self.images} images are few"] if self.draws > 1 else []),
            f"{verdict}: without a key, {self.worst:.1%} from chance ({self.chance:.1%}) at most over the first "
            f"{len(HELD)} columns; {MARGIN:.0%} are allowed",
            *(
                f"not judged: {row.inputs}, {row.distance:.1%} from chance"
                for row in self.rows
                if not (row.held or row.authorised)
            ),
            *self._of_votes(),
            *(
                ()
                if self.wrong_keys is None
                else (f"not judged: wrong keys that open the model: {self.wrong_keys} of {KEYS}",)
            ),
        ]

    def _of_votes(self) -> list[str]:
        if self.voted is None:
            return []
        asked = f"{VOTES} times each, with new {LOUD}"
        return [
            f"not judged: commonest answer but the one that all get, of images asked {asked}: {self.voted:.1%} right"
        ]


def check_lock(
    classifier: Classifier,
    lock: Lock,
    data: Data,
    *,
    other: Lock | Sequence[Lock] | None = None,
    draws: int | None = None,
    seed: int = 0,
) -> LeakTable:
    """Measures every reader on every kind of input. Keys are those of users who do not exist.

    Args:
        classifier: the locked model.
        data: labelled images that it was not trained on; the more, the narrower the table's own noise.
        other: another owner's lock, or another generation of this one, whose keyed images are tried as well; several
            have a row each.
        draws: how often every kind is drawn anew; of fewer than 2,000 images, if not given, so often that each is tried
            about 2,000 times, but 20 times at most.
        seed: of the first draw.

    Raises:
        DataError: images without labels, of another size, or of classes that the model doesn't know.
    """
    data = image_data(data)
    others = listed(other)
    for one in (lock, *others):
        one.check(data.images)
    check_measurable(data, classifier.num_classes)
    draws = draws or min(_MOST_DRAWS, math.ceil(_TRIED / len(data)))
    answers: dict[str, list[list[Tensor]]] = {name: [[] for _ in range(draws)] for name in _kinds(len(others))}
    loudness, alike = [], []
    for draw in range(draws):
        drawn_by = derive_seed(seed, "lock", "check", draw) if draw else seed
        for part in parts_to_try(lock, data.images, data.labels, others=others, seed=drawn_by):
            answers[part.inputs][draw].append(classifier.log_probs(part.images))
            if part.inputs == KEYED:
                loudness.append(psnr(part.originals, part.images))
                alike.append(ssim(part.originals, part.images))
    psnrs = torch.cat(loudness)
    table = LeakTable(
        subject=classifier.source,
        images=len(data),
        draws=draws,
        chance=chance(data.labels),
        rows=tuple(_leak(name, [torch.cat(draw) for draw in drawn], data.labels) for name, drawn in answers.items()),
        psnr=float(psnrs.mean()),
        worst_psnr=float(psnrs.min()),
        ssim=float(torch.cat(alike).mean()),
        tight=False,
        voted=_voted(classifier, data, _TIMES * 10 ** (-float(psnrs.mean()) / 20), seed),
    )
    opened = keys_that_open(classifier, lock, data, table.authorised_accuracy, seed=seed) if table.opens else None
    return table.model_copy(update={"tight": table.worst <= MARGIN, "wrong_keys": opened})


def _leak(name: str, drawn: Sequence[Tensor], labels: Tensor) -> Leak:
    """The row of a kind of input, from what the model answers to all images of it, draw by draw."""
    found = {
        way: [read(reader, scores, labels) for scores in (drawn[:1] if way in PROBES else drawn)]
        for way, reader in READERS.items()
    }
    authorised = name in (KEYED, KEYED_JPEG)
    return Leak(
        inputs=name,
        authorised=authorised,
        held=not authorised and name not in BEYOND,
        recovered={way: fmean(right(classes, labels) for classes in each) for way, each in found.items()},
        chance={way: fmean(by_chance(classes, labels) for classes in each) for way, each in found.items()},
    )


def _voted(classifier: Classifier, data: ImageData, loudness: float, seed: int) -> float:
    """Share of images, evenly spaced, whose class votes over noise find."""
    some = data.take(evenly_spaced(len(data), _VOTED))
    return right(vote(classifier, some.images, draws=VOTES, loudness=loudness, seed=seed), some.labels)


def check_measurable(data: ImageData, classes: int) -> None:
    """Refuses what no leak table can be made of, for a model of so many classes.

    Raises:
        DataError: see `check_lock`.
    """
    check_labelled(data.labels, data.name, "a leak table")
    if len(data) < 4:
        raise DataError(f"{data.name}: a leak table needs four images or more")
    check_answerable(data.labels, data.name, classes)


class Part(NamedTuple):
    """Some images of one kind, and what they were made of, both `[N, ...]`."""

    inputs: str
    originals: Tensor
    images: Tensor


def parts_to_try(
    lock: Lock, images: Tensor, labels: Tensor | None = None, *, others: Sequence[Lock] = (), seed: int = 0
) -> Iterator[Part]:
    """Every kind of input, of 8-bit values, batch by batch in the order of `images`.

    `KEYED` and `KEYED_JPEG` are authorised. Every image is keyed for another user, and every wrong key is another one;
    of several other locks each has a row. Without `labels` there is no `SAME_CLASS`.

    Holds all keyed images, as bytes, and a batch of each kind.
    """
    generator = torch_generator(seed, "lock", "check")
    size = max(1, batch_size(images.shape) // frame_count(images))
    batches = torch.split(torch.arange(len(images)), size)
    keyed: list[Tensor] = []
    for batch in batches:
        originals, made = images[batch], {"no key": images[batch]}
        with torch.inference_mode():
            planes = random_planes(len(batch), lock.secrets.carriers, generator)
            as_drawn = with_key(lock.network.encoder, originals, planes, lock.secrets.mixing)
            made[KEYED] = rounded(as_drawn)
            secret = wrong_secret(lock.network.encoder, planes, generator)
            made["wrong key"] = with_key(lock.network.encoder, originals, *secret)
            made["matched noise"] = matched_noise(originals, as_drawn, generator)
            made["decoy's key"] = keyed_by_decoys(originals, generator, grid=lock.network.encoder.grid)
            for number, one in enumerate(others):
                planes = random_planes(len(batch), one.secrets.carriers, generator)
                made[_of_another(number)] = with_key(one.network.encoder, originals, planes, one.secrets.mixing)
            made[KEYED_JPEG] = Jpeg(quality=JPEG_QUALITY)(made[KEYED])
        keyed.append((255 * made[KEYED]).round().byte())
        yield from _received(originals, made)
    levels = torch.cat(keyed)
    order = torch.randperm(len(images), generator=generator)  # whose residual is tried must not hang on how data lie
    donors = {"foreign residual": before_in(order)}
    if labels is not None:
        donors[SAME_CLASS] = _of_its_class(order, labels)
    louder = torch_generator(seed, "lock", "check", "louder")
    for batch in batches:
        originals = images[batch]
        made = {LOUD: matched_noise(originals, levels[batch] / 255, louder, _TIMES)}
        for name, before in donors.items():
            made[name] = originals + levels[before[batch]] / 255 - images[before[batch]]
        yield from _received(originals, made)


def _received(originals: Tensor, made: Mapping[str, Tensor]) -> Iterator[Part]:
    """What was made, as it arrives."""
    for name, images in made.items():
        yield Part(name, originals, rounded(images.clamp(0, 1)).clone())


def inputs_to_try(
    lock: Lock, images: Tensor, labels: Tensor | None = None, *, others: Sequence[Lock] = (), seed: int = 0
) -> dict[str, Tensor]:
    """All of `parts_to_try` by kind, authorised kinds first: as much memory as a dozen times the images."""
    made: dict[str, list[Tensor]] = {name: [] for name in _kinds(len(others))}
    for part in parts_to_try(lock, images, labels, others=others, seed=seed):
        made[part.inputs].append(part.images)
    return {name: torch.cat(parts) for name, parts in made.items() if parts}


def _kinds(others: int) -> tuple[str, ...]:
    """All kinds of input in the order of the table, with so many other locks."""
    strangers = (_of_another(number) for number in range(others))
    refused = ("no key", "wrong key", "decoy's key", "foreign residual", "matched noise", *strangers)
    return (KEYED, KEYED_JPEG, *refused, *BEYOND)


def _of_its_class(order: Tensor, labels: Tensor) -> Tensor:
    """For each of N images the one before it in an order, of its class; of any class where it is the only one."""
    donors = before_in(order)
    for label in range(int(labels.max()) + 1):
        own = order[labels[order] == label]
        if len(own) > 1:
            donors[own] = own.roll(1)
    return donors


def _of_another(number: int) -> str:
    """The row of one of the other locks."""
    return "another lock's key" + (f" ({number + 1})" if number else "")
