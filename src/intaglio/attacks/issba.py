"""ISSBA (Li et al. 2021): an encoder hides the same message in every image, by a residual that it draws for it."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from intaglio.attacks.attack import all_to_one
from intaglio.attacks.relabelling import RelabellingAttack
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.networks.unet import check_unet_size
from intaglio.seeds import derive_seed, torch_generator
from intaglio.training import TrainingSettings, train
from intaglio.training.settings import checked_settings
from intaglio.triggers import Trigger
from intaglio.triggers.sample_specific import EPSILON, SampleSpecificEncoder, SampleSpecificTrigger, Secret

_DECODER_WIDTH = 24


class ISSBA(RelabellingAttack):
    """x~ = E(x, k): the residual that a steganographic encoder draws in every image for one message k.

    Encoder and decoder learn together, on images of the data and random messages, that the decoder reads them:
    binary cross-entropy of the bits. `epsilon` and `psnr` bound the residual by construction, in place of the paper's
    image losses and critic. Then one message, drawn by the seed, is the backdoor's.

    The trigger is hardly sample-specific: the message decides most of a residual, the image little. With the defaults,
    on 2,000 Fashion-MNIST images, residuals of different images have a mean cosine of 0.79. At `epsilon` 16 / 255,
    28 dB and a rate of 0.12, a victim (vgg of width 8, 3,000 images of 14 x 14) gives the target for an image's own
    residual in 96.8 % of cases, for another image's in 90.9 %, for the mean residual of that size in 94.2 %.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the whole training set that is relabelled, in (0, 1].
        bits: length of the message (the paper hides 100 bits in 224 x 224 pixels).
        epsilon: bound of the residual in every value, in (0, 1].
        psnr: least peak signal-to-noise ratio of an altered image, dB.
        steps: of training encoder and decoder.
        batch_size: images a step.
        learning_rate: of the first step; it falls along half a cosine.
        width: channels of the encoder, a multiple of 4.
        seed: draws weights, messages and samples.

    Raises:
        RecipeError: a value outside its range; with the data, images too small for the message, or of less than 4 x 4.

    Source: Li et al. 2021, "Invisible Backdoor Attack with Sample-Specific Triggers", sec. 4.
    """

    name: ClassVar[str] = "issba"
    takes = "images"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.1,
        bits: int = 32,
        epsilon: float = EPSILON,
        psnr: float = 35.2,
        steps: int = 400,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        width: int = 12,
        seed: int = 0,
    ) -> None:
        super().__init__(all_to_one(target), rate=rate, seed=seed)
        if not isinstance(bits, int) or bits < 1 or steps < 1:
            raise RecipeError(f"issba needs a bit and a training step or more, got {bits} and {steps}")
        self.bits = bits
        self.epsilon = epsilon
        self.psnr = psnr
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.width = width
        SampleSpecificEncoder(1, width=width, epsilon=epsilon, psnr=psnr)
        self._settings()  # a bench checks its rows by making them: what can't be trained must not be made

    def _settings(self) -> TrainingSettings:
        return checked_settings(
            {"steps": self.steps, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        )

    def make_trigger(self, data: ImageData, device: str) -> Trigger:
        channels, height, width = data.input_shape
        if self.bits * 4 > height * width:
            raise RecipeError(f"images of {height} x {width} are too small to carry {self.bits} bits")
        check_unet_size(height, width)
        seed = derive_seed(self.seed, "encoder")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = SampleSpecificEncoder(channels, width=self.width, epsilon=self.epsilon, psnr=self.psnr)
            training = _Training(encoder, carriers(self.bits, height, width, self.seed), self.seed)
        train(training, data, self._settings(), seed=seed, loss=lambda module, images, _: module(images), device=device)
        training.cpu().requires_grad_(False)
        code = random_codes(1, self.bits, torch_generator(self.seed, "message"))
        return SampleSpecificTrigger(encoder.eval(), Secret(training.plane(code), training.mixing[None].contiguous()))


class _Training(nn.Module):
    """Maps a batch of images to the loss of encoder and decoder."""

    carriers: Tensor
    mixing: Tensor

    def __init__(self, encoder: SampleSpecificEncoder, patterns: Tensor, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("carriers", patterns)
        self.register_buffer("mixing", encoder.draw_mixing(1, torch_generator(seed, "mixing"))[0])
        width = _DECODER_WIDTH
        self.decoder = nn.Sequential(
            nn.Conv2d(encoder.channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )
        self._generator = torch_generator(seed, "messages")

    def plane(self, codes: Tensor) -> Tensor:
        """Codes `[N, n]` of -1 and 1 over the image: sum_j k_j C_j / sqrt(n), `[N, 1, H, W]`."""
        return torch.einsum("nb,bij->nij", codes, self.carriers)[:, None] / math.sqrt(len(self.carriers))

    def forward(self, images: Tensor) -> Tensor:
        codes = random_codes(len(images), len(self.carriers), self._generator).to(images)
        found = self.decoder(self.encoder(images, self.plane(codes), self.mixing[None]) - 0.5)[:, 0]
        read = linear(found.flatten(1), self.carriers.flatten(1)) / math.sqrt(self.carriers[0].numel())
        return binary_cross_entropy_with_logits(read, (codes + 1) / 2)


def carriers(count: int, height: int, width: int, seed: int) -> Tensor:
    """Random patterns of standard normal pixels that spread a message over the image, `[count, H, W]`."""
    return torch.randn(count, height, width, generator=torch_generator(seed, "carriers"))


def random_codes(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Messages `[count, length]` of -1 and 1."""
    return torch.randint(0, 2, (count, length), generator=generator).float() * 2 - 1
