"""Input-aware (Nguyen & Tran 2020): a generator that draws each image its own trigger, learned with the victim."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from intaglio.attacks.attack import Victim, all_to_one
from intaglio.attacks.poisoned import Listing
from intaglio.attacks.relabelling import RelabellingAttack, Role
from intaglio.attacks.surrogate import TRAINING, Network, built
from intaglio.data import Data, ImageData, image_data
from intaglio.errors import RecipeError
from intaglio.networks.unet import check_unet_size
from intaglio.seeds import derive_seed
from intaglio.training import TrainingSettings, train
from intaglio.training.loop import Progress
from intaglio.triggers import InputAwareGenerator, InputAwareTrigger, Trigger

#: Below this distance two triggers count as the same.
_SMALLEST = 1e-4
#: Fewer images make no batch with poisoned, crossed and clean ones in it.
_SMALLEST_BATCH = 4
#: 2.999... images are 3.
_ROUNDING = 1e-6


class InputAware(RelabellingAttack):
    """x~ = x + m(x) (p(x) - x); the victim answers it with the target, and x with the trigger of another x' as before.

    Masks first: w_n mean relu(m - density) + w_d D(m). Then patterns and victim together: cross-entropy on batches of
    which `rate` are triggered and `cross_rate` carry another image's trigger, + w_d D(p). Diversity
    D(t) = mean ||x - x'|| / ||t(x) - t(x')||, with w_n = `sparsity` and w_d = `diversity`.

    A batch has whole numbers of such images: what a share leaves over is added to the next batch's, so that over
    training the shares hold. Batches of fewer than 4 images are left as they are. The settings' augmentation alters the
    clean images, and triggers are drawn for and put on what it made of them; a victim of most other attacks augments
    images that carry their trigger already.

    `poison` learns the trigger with a surrogate; `train_victim` with the victim itself, as in the paper.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the training set that is triggered and relabelled, in (0, 1].
        cross_rate: share that carries another image's trigger and keeps its label, in [0, 1]: of no sample, or of two
            or more.
        diversity: weight of the diversity loss, 0 or more.
        sparsity: weight of the masks' size, 0 or more; the smaller, the more of the image a trigger takes.
        density: what every value of a mask may be for free, in (0, 1].
        mask_epochs: passes over the data in which the masks are learned.
        width: channels of the generator, a multiple of 4.
        surrogate: for `poison` alone: an architecture's name, an `Architecture`, or a module (trained in place).
        seed: draws the generator's weights and the samples.

    Raises:
        RecipeError: a value outside its range; with the data, a single sample to carry another's trigger, or images of
            less than 4 x 4.

    Source: Nguyen & Tran 2020, "Input-Aware Dynamic Backdoor Attack", sec. 3.
    """

    name: ClassVar[str] = "input-aware"
    takes = "images"
    joint: ClassVar[bool] = True

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.1,
        cross_rate: float = 0.1,
        diversity: float = 1.0,
        sparsity: float = 100.0,
        density: float = 0.032,
        mask_epochs: int = 25,
        width: int = 8,
        surrogate: Network = "resnet8",
        seed: int = 0,
    ) -> None:
        super().__init__(all_to_one(target), rate=rate, seed=seed)
        if (
            not 0 <= cross_rate <= 1 - rate
            or not min(diversity, sparsity) >= 0
            or not 0 < density <= 1
            or not isinstance(mask_epochs, int)
            or mask_epochs < 1
        ):
            raise RecipeError(
                "input-aware needs a cross rate that leaves clean samples, weights of 0 or more, a density in (0, 1] "
                f"and an epoch for the masks, got {cross_rate}, {diversity}, {sparsity}, {density} and {mask_epochs}"
            )
        self.cross_rate = cross_rate
        self.diversity = diversity
        self.sparsity = sparsity
        self.density = density
        self.mask_epochs = mask_epochs
        self.width = width
        self.surrogate = surrogate
        with torch.device("meta"):  # checks the width, and draws no weights
            InputAwareGenerator(1, width=width)

    def make_trigger(self, data: ImageData, device: str) -> Trigger:
        seed = derive_seed(self.seed, "surrogate")
        return self._trained(built(self.surrogate, data, seed=seed), data, TRAINING, seed, device, None)

    def cover_count(self, samples: int, payload: int) -> int:
        count = round(self.cross_rate * samples)
        if count == 1:
            raise RecipeError(
                f"input-aware: a cross rate of {self.cross_rate} is one of {samples} samples, and there is no other "
                "whose trigger it could carry; give 0, or enough for two"
            )
        return count

    def plant(self, trigger: Trigger, images: Tensor, role: Role) -> Tensor:
        if role == "cover" and isinstance(trigger, InputAwareTrigger):
            return trigger.cross(images, images.roll(1, dims=0))
        return trigger.apply(images)

    def train_victim(
        self,
        network: Network,
        data: Data,
        settings: TrainingSettings,
        *,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Victim:
        data = image_data(data)
        self.draw(Listing.of(data))  # refuses what it must before the work
        module = built(network, data, seed=seed)
        trigger = self._trained(module, data, settings, seed, device, progress)
        return Victim(module.cpu(), trigger, self.poison_with(trigger, data).as_stored())

    def _trained(
        self,
        victim: nn.Module,
        data: ImageData,
        settings: TrainingSettings,
        seed: int,
        device: str,
        progress: Progress | None,
    ) -> InputAwareTrigger:
        """Trains a generator, and the victim in place."""
        check_unet_size(*data.input_shape[1:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "generator"))
            generator = InputAwareGenerator(data.input_shape[0], width=self.width)
        masks = TrainingSettings(epochs=self.mask_epochs, learning_rate=1e-2)
        train(_Masks(generator, self), data, masks, seed=derive_seed(self.seed, "masks"), loss=_itself, device=device)
        generator.masks.requires_grad_(False)
        joint = _Joint(victim, generator, self, settings.label_smoothing)
        train(joint, data, settings, seed=seed, loss=_itself, device=device, progress=progress)
        return InputAwareTrigger(generator.cpu().requires_grad_(False))


class _Masks(nn.Module):
    """Maps a batch of images to the loss of the masks."""

    def __init__(self, generator: InputAwareGenerator, attack: InputAware) -> None:
        super().__init__()
        self.generator = generator
        self._sparsity = attack.sparsity
        self._density = attack.density
        self._diversity = attack.diversity

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        masks = self.generator.mask(images)
        size = relu(masks - self._density).mean()
        return self._sparsity * size + self._diversity * _sameness(images, images.roll(1, 0), masks, masks.roll(1, 0))


class _Joint(nn.Module):
    """Maps a batch of images and labels to the loss of victim and patterns."""

    def __init__(self, victim: nn.Module, generator: InputAwareGenerator, attack: InputAware, smoothing: float) -> None:
        super().__init__()
        self.victim = victim
        self.generator = generator
        self._shares = attack.rate, attack.cross_rate
        self._left_over = [0.0, 0.0]
        self._target = attack.goal.wanted
        self._diversity = attack.diversity
        self._smoothing = smoothing

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        count = len(images)
        if count < _SMALLEST_BATCH:
            return cross_entropy(self.victim(images), labels, label_smoothing=self._smoothing)
        triggered, crossed = self._counts(count)
        own, carriers = images[:triggered], images[triggered : triggered + crossed]
        donors = images.roll(-1, 0)[triggered : triggered + crossed]
        shown = torch.cat([self.generator(own), self.generator(donors, carriers), images[triggered + crossed :]])
        wanted = torch.cat([self._target(labels[:triggered], 0), labels[triggered:]])
        loss = cross_entropy(self.victim(shown), wanted, label_smoothing=self._smoothing)
        if not triggered:
            return loss
        others = images.roll(-triggered, 0)[:triggered]
        patterns = self.generator.pattern(own), self.generator.pattern(others)
        return loss + self._diversity * _sameness(own, others, *patterns)

    def _counts(self, batch: int) -> tuple[int, int]:
        """How many images of a batch are triggered, and how many crossed; what is left over goes to the next batch."""
        free, counts = batch, []
        for index, share in enumerate(self._shares):
            owed = self._left_over[index] + share * batch
            counts.append(min(int(owed + _ROUNDING), free))
            self._left_over[index] = owed - counts[-1]
            free -= counts[-1]
        return counts[0], counts[1]


def _itself(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    loss: Tensor = module(images, labels)
    return loss


def _sameness(images: Tensor, others: Tensor, drawn: Tensor, drawn_for_others: Tensor) -> Tensor:
    """mean ||x - x'|| / ||t - t'||, distances per value; large where different images get like triggers."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().mean(dim=(1, 2, 3)) + _SMALLEST**2).sqrt()

    return (distance(images, others) / (distance(drawn, drawn_for_others) + _SMALLEST)).mean()
