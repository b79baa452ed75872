"""Parts of training by hand (channel, quality, negatives, targets, bounds of the encoder), and short runs of it all."""

import itertools
import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import intaglio.lock.key_network as key_network
from intaglio.classifiers import CallableClassifier, Preprocessing, TorchClassifier
from intaglio.data import ImageData
from intaglio.errors import ClassifierError, DataError, RecipeError
from intaglio.lock import LockSettings, train_lock
from intaglio.lock.channel import blur, distort, jpeg, noise, own_quality, resize, rounded
from intaglio.lock.codes import random_codes, spread
from intaglio.lock.critic import Critic
from intaglio.lock.decoys import OtherKey, _decoys, keyed_by, keyed_by_decoys
from intaglio.lock.locked_training import LockedLoss, train_locked, unauthorised_target
from intaglio.lock.negatives import (
    RIVAL_SHARE,
    SHARES,
    Authorised,
    Negatives,
    foreign_residual,
    scrambled,
)
from intaglio.lock.noise import loud_noise, matched_noise, waves
from intaglio.lock.one_answer import Knowledge, one_answer
from intaglio.lock.quality import psnr, ssim
from intaglio.lock.refining import refining
from intaglio.lock.settings import ATOMS, Mislabel
from intaglio.networks.final_linear import final_linear
from intaglio.tampering import Jpeg
from intaglio.triggers.sample_specific import SampleSpecificEncoder, SampleSpecificTrigger, Secret
from lock_models import ARCHITECTURE, OWNER, STRANGER, TINY, some_images, tiny_lock, tiny_model


def generator(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoder(channels: int = 1, *, stride: int = 4, grid: int = 0, **options: float) -> SampleSpecificEncoder:
    torch.manual_seed(1)
    return SampleSpecificEncoder(channels, width=4, features=4, stride=stride, grid=grid, **options)


def secret(network: SampleSpecificEncoder, count: int = 1) -> Secret:
    planes = torch.randn(count, *network.drawing.plane_shape(12, 12), generator=generator())
    return Secret(planes, network.draw_mixing(count, torch.Generator().manual_seed(8)))


# --- the encoder as a trigger ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("stride", "grid"), [(1, 0), (4, 0), (1, 95)])
def test_the_residual_keeps_both_bounds(channels: int, stride: int, grid: int) -> None:
    network = encoder(channels, epsilon=4 / 255, psnr=45.0, stride=stride, grid=grid)
    images = some_images(5, (channels, 12, 12))
    with torch.no_grad():
        keyed = SampleSpecificTrigger(network, secret(network)).apply(images)
    assert float((keyed - images).abs().max()) <= 4 / 255 + 1e-6
    assert float(psnr(images, keyed).min()) >= 45 - 1e-3
    assert 0 <= float(keyed.min()) <= float(keyed.max()) <= 1
    assert float((keyed - images).abs().max()) > 0


def test_relief_loosens_the_bounds_for_training() -> None:
    network, images = encoder(), some_images(5)
    with torch.no_grad():
        quiet = network(images, *secret(network))
        network.relief = 4.0
        loud = network(images, *secret(network))
    assert float(psnr(images, loud).mean()) < float(psnr(images, quiet).mean()) - 6


def test_the_residual_is_one_of_brightness() -> None:
    """The same in all colours, where none is clamped: JPEG would take what lies in colour alone."""
    network, images = encoder(3), 0.2 + 0.6 * some_images(4, (3, 12, 12))
    residual = network(images, *secret(network)) - images
    assert float(residual.detach().abs().max()) > 1e-3
    assert torch.allclose(residual, residual.mean(dim=1, keepdim=True).expand_as(residual), atol=1e-6)


def test_each_image_gets_its_own_residual_whatever_its_company() -> None:
    network, images = encoder(), some_images(3)
    trigger = SampleSpecificTrigger(network, secret(network))
    keyed = trigger.apply(images)
    assert torch.allclose(keyed, torch.cat([trigger.apply(image[None]) for image in images]), atol=1e-6)
    residuals = keyed - images
    assert not torch.allclose(residuals[0], residuals[1], atol=1e-3)


@pytest.mark.parametrize("stride", [1, 4])
def test_own_secrets_are_what_one_by_one_gives(stride: int) -> None:
    network, images = encoder(3, stride=stride), some_images(4, (3, 12, 12))
    plane, mixing = secret(network, 4)
    together = network(images, plane, mixing)
    alone = [network(images[i : i + 1], plane[i : i + 1], mixing[i : i + 1]) for i in range(4)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 4])
def test_another_secret_is_another_residual_and_gradients_reach_the_images(stride: int) -> None:
    network, images = encoder(stride=stride), some_images(2).requires_grad_()
    plane, mixing = secret(network)
    other = network.draw_mixing(1, torch.Generator().manual_seed(9))
    keyed, foreign = network(images, plane, mixing), network(images, plane, other)
    assert float((keyed - foreign).detach().abs().max()) > 1 / 255
    (gradient,) = torch.autograd.grad(keyed.sum(), images)
    assert bool((gradient != 0).any())


def test_a_description_gives_no_secret_away() -> None:
    network = encoder()
    described = SampleSpecificTrigger(network, secret(network)).describe()
    assert described == {"trigger": "sample-specific", "epsilon": 8 / 255, "psnr": 35.2}


@pytest.mark.parametrize("stride", [3, 5, 0, 17])
def test_strides_that_make_no_sense(stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        LockSettings(stride=stride)


@pytest.mark.parametrize("grid", [-1, 96])
def test_grids_that_no_jpeg_has(grid: int) -> None:
    with pytest.raises(RecipeError, match="quality of 1 to 95"):
        encoder(stride=1, grid=grid)
    with pytest.raises(ValueError, match="grid"):
        LockSettings(grid=grid)


def test_a_lock_of_jpeg_data_is_on_their_grid_unless_told_otherwise() -> None:
    for settings, own, expected in (
        (LockSettings(), 75, 75),
        (LockSettings(), None, 0),
        (LockSettings(grid=0), 75, 0),
        (LockSettings(grid=90), 75, 90),
        (LockSettings(psnr=45), 75, 0),  # marks alone would be louder
        (LockSettings(psnr=45), 90, 90),
        (LockSettings(**ATOMS), 75, 0),
    ):
        assert settings.on_grid(own).grid == expected
    with pytest.raises(ValueError, match="atoms lies on no grid"):
        LockSettings(**ATOMS, grid=75)
    with pytest.raises(
        ValueError, match=r"marks of users alone can come to 22\.9 dB, which doesn't keep a PSNR of 35\.2"
    ):
        LockSettings(grid=10)


def test_training_finds_the_grid_in_the_data() -> None:
    images, labels = tinted_images(32, 1)[..., :16, :16], torch.arange(32) % 3
    for found, expected in ((Jpeg(quality=60)(images), 60), (images, 0)):
        module = ARCHITECTURE.model_copy(update={"input_shape": (1, 16, 16)}).build()
        _, lock = train_lock(module, ImageData(found, labels), OWNER, settings=TINY)
        assert lock.facts.settings.grid == lock.network.encoder.grid == expected


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"epsilon": 2.0}, {"psnr": 5.0}, {"psnr": 100.0}])
def test_bounds_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="an encoder needs epsilon in"):
        encoder(**options)


# --- quality ---------------------------------------------------------------------------------------------------------


def test_psnr_by_hand() -> None:
    black, grey = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.1)
    assert psnr(black, grey).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert psnr(black, black).tolist() == pytest.approx([120.0, 120.0])


def test_ssim_by_hand() -> None:
    flat = torch.full((1, 1, 16, 16), 0.5)
    lighter = flat + 0.1
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)  # flat images: only the luminance term is not 1
    assert float(ssim(flat, lighter)) == pytest.approx(expected, abs=3e-4)
    images = some_images(3, (3, 20, 20))
    assert ssim(images, images).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert float(ssim(images, 1 - images).max()) < 0
    assert ssim(images[..., :5, :5], images[..., :5, :5]).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


# --- the channel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distortion", [jpeg, blur, resize, noise])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 24)])
def test_distortions_are_mild_keep_the_shape_and_pass_gradients(distortion, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    smooth = torch.linspace(0.2, 0.8, shape[2]).expand(3, *shape).contiguous().requires_grad_()
    altered: Tensor = distortion(smooth, generator())
    assert altered.shape == smooth.shape
    assert 0 < float((altered - smooth).detach().abs().mean()) < 0.03
    (gradient,) = torch.autograd.grad(altered.square().sum(), smooth)
    assert bool((gradient != 0).any())


def test_a_constant_image_survives_blur_and_resize() -> None:
    flat = torch.full((2, 3, 12, 12), 0.4)
    for distortion in (blur, resize):
        assert torch.allclose(distortion(flat, generator()), flat, atol=1e-5)


def test_rounding_gives_8_bits_and_passes_the_gradient() -> None:
    values = torch.rand(4, 1, 5, 5).requires_grad_()
    out = rounded(values)
    assert torch.allclose(out * 255, (out * 255).round(), atol=1e-4)
    (gradient,) = torch.autograd.grad(out.sum(), values)
    assert torch.equal(gradient, torch.ones_like(gradient))


@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_image_of_a_batch_keeps_its_place(count: int) -> None:
    levels = torch.linspace(0.1, 0.9, count).view(-1, 1, 1, 1).expand(-1, 1, 16, 16)
    received = distort(levels, generator())
    assert torch.allclose(received.mean(dim=(1, 2, 3)), levels[:, 0, 0, 0], atol=0.02)
    assert torch.equal(distort(levels, generator()), received)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_as_many_images_as_asked_for_meet_jpeg(share: float) -> None:
    """All of 100 but 20 that meet something else: textures of 8 bits, that nothing leaves as they were."""
    images = some_images(100, (1, 16, 16))
    altered = (distort(images, generator(), jpeg_share=share) != images).flatten(1).any(dim=1)
    assert int(altered.sum()) == 20 + round(100 * share)


def tinted_images(count: int, channels: int) -> Tensor:
    """Textures of one tint each, which JPEG keeps without clipping."""
    texture = interpolate(some_images(count, (1, 20, 20)), (32, 32), mode="bilinear")
    return 0.2 + 0.5 * texture + 0.1 * torch.rand(count, channels, 1, 1, generator=generator())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [50, 75, 85])
def test_images_that_were_jpeg_files_are_known_by_their_quality(channels: int, quality: int) -> None:
    images = tinted_images(20, channels)
    saved = Jpeg(quality=quality)(images)
    assert own_quality(images) is None
    assert own_quality(saved) == quality
    assert own_quality(saved[..., 3:, 3:]) is None  # off the grid
    assert own_quality(saved[:, None]) == quality  # clips of one frame
    assert own_quality(saved[:, :1].expand(-1, 2, -1, -1)) is None  # what JPEG can't hold


def test_half_of_the_jpeg_is_of_the_images_own_quality() -> None:
    images = Jpeg(quality=60)(tinted_images(64, 1))
    change = (jpeg(images, generator(), 60) - images).abs().mean(dim=(1, 2, 3))
    assert 20 <= int((change < 0.4 / 255).sum()) <= 44  # on their own grid hardly anything moves
    assert int(((jpeg(images, generator()) - images).abs().mean(dim=(1, 2, 3)) < 0.4 / 255).sum()) < 10


# --- what is unauthorised --------------------------------------------------------------------------------------------


def test_negatives_by_hand() -> None:
    images, residual = torch.full((4, 1, 12, 12), 0.5), torch.randn(4, 1, 12, 12) * 0.01
    keyed = images + residual
    foreign = foreign_residual(images, keyed, torch.tensor([1, 0, 1, 1])) - images
    assert torch.allclose(foreign, residual[[1, 3, 0, 2]], atol=1e-6)  # round by way of 1, 0 (by class), 2, 3
    noisy = matched_noise(images, keyed, generator()) - images
    assert torch.allclose(noisy.std(dim=(1, 2, 3)), residual.std(dim=(1, 2, 3)), rtol=0.3)
    mixed = scrambled(images, keyed, generator()) - images
    assert torch.allclose(mixed.abs(), residual.abs(), atol=1e-6)
    assert not torch.allclose(mixed, residual, atol=1e-4)


def test_loud_noise_is_up_to_ten_times_as_loud_and_white_or_a_wave_or_both() -> None:
    images = torch.full((600, 1, 24, 20), 0.5)
    noise = loud_noise(images, images + 0.01, generator()) - images
    times = noise.square().mean(dim=(1, 2, 3)).sqrt() / 0.01
    assert 0.8 < float(times.min()) < 1.2
    assert 8 < float(times.max()) < 12
    assert float(times.log10().mean()) == pytest.approx(0.5, abs=0.05)  # all ratios are as likely
    power = torch.fft.rfft2(noise[:, 0]).abs().square().flatten(1)
    strongest = power.topk(9, dim=1).values.sum(dim=1) / power.sum(dim=1)
    white, wave = float((strongest < 0.25).double().mean()), float((strongest > 0.7).double().mean())
    assert white == pytest.approx(0.5, abs=0.07)
    assert wave == pytest.approx(0.3, abs=0.07)


def test_waves_are_of_all_directions() -> None:
    drawn = waves((400, 1, 24, 20), generator())
    assert drawn.square().mean().item() == pytest.approx(1, abs=0.05)
    peaks = torch.fft.fft2(drawn[:, 0]).abs()[:, :12].flatten(1).argmax(dim=1)  # half of it: a wave has two peaks
    down, across = peaks // 20, peaks % 20
    slanted = (down > 0) & (across > 0) & (across != 10)
    falling = (across[slanted] < 10).double().mean()
    assert int(slanted.sum()) > 250
    assert float(falling) == pytest.approx(0.5, abs=0.1)


def test_loud_decoys_are_louder_than_decoys() -> None:
    network, images = encoder(), torch.full((16, 1, 24, 24), 0.5)
    drawer = Negatives(network, network.draw_mixing(3, generator()), generator())
    some = Authorised(images, images, torch.zeros(16, 1, 24, 24), torch.zeros(16, dtype=torch.int64))
    loudness = {
        kind: [float((drawer.kinds[kind](some, generator(seed)) - images).square().mean().sqrt()) for seed in range(12)]
        for kind in ("decoy", "loud decoy")
    }
    ratios = torch.tensor(loudness["loud decoy"]) / torch.tensor(loudness["decoy"]).mean()
    assert 0.9 < float(ratios.min()) < 2.5
    assert 3 < float(ratios.max()) < 6.6


def test_negatives_name_the_images_they_were_made_of_and_the_rivals_that_keyed_them() -> None:
    network, images = encoder(), some_images(10)
    plane, mixing = secret(network)
    keyed, planes = network(images, plane, mixing), plane.expand(10, -1, -1, -1)
    mixings = network.draw_mixing(3, generator())
    drawer = Negatives(network, mixings, generator(), loud=1.0)
    assert drawer.kinds.keys() == drawer.shares.keys() == SHARES.keys()
    labels = torch.arange(10) % 2
    made, origins, rivals = drawer.draw(Authorised(images, keyed, planes, labels))
    assert len(rivals) == round(RIVAL_SHARE * 10)
    assert len(made) == len(origins) == len(rivals) + sum(max(2, round(share * 10)) for share in SHARES.values())
    distances = torch.cdist(made.flatten(1), images.flatten(1))
    assert torch.equal(distances.argmin(dim=1), origins)
    for image, origin, rival in zip(made, origins, rivals, strict=False):
        alone = network(images[origin][None], planes[origin][None], mixings[rival][None])
        assert torch.allclose(image, alone[0], atol=1e-6)
    kinds = list(SHARES)
    first = {
        kind: len(rivals) + sum(max(2, round(SHARES[before] * 10)) for before in kinds[: kinds.index(kind)])
        for kind in kinds
    }
    plain = slice(first["no key"], first["no key"] + round(SHARES["no key"] * 10))
    assert torch.equal(made[plain], images[origins[plain]])


def test_half_of_the_foreign_residuals_are_mostly_of_an_image_of_the_same_class() -> None:
    labels = torch.arange(40) % 2
    images = torch.zeros(40, 1, 1, 1)
    donors = foreign_residual(images, torch.arange(40.0).view(40, 1, 1, 1), labels).flatten().long()
    assert sorted(donors.tolist()) == list(range(40))
    assert bool((donors != torch.arange(40)).all())
    alike = labels[donors] == labels
    assert int(alike[:20].sum()) >= 18
    assert int(alike[20:].sum()) <= 1
    donors = foreign_residual(images, torch.arange(40.0).view(40, 1, 1, 1), labels, 1.0).flatten().long()
    assert int((labels[donors] == labels).sum()) == 38  # all but one of each class


def test_alike_means_twice_as_many_foreign_residuals() -> None:
    network, images = encoder(), some_images(10)
    plane, mixing = secret(network)
    batch = Authorised(images, network(images, plane, mixing), plane.expand(10, -1, -1, -1), torch.arange(10) % 2)
    usual, more = (
        Negatives(network, network.draw_mixing(3, generator()), generator(), alike=alike).draw(batch)
        for alike in (False, True)
    )
    assert len(more.images) - len(usual.images) == 10
    for seed in range(20):
        drawer = Negatives(
            network, network.draw_mixing(3, generator()), torch.Generator().manual_seed(seed), alike=True
        )
        drawn, own = drawer.draw(batch), batch.keyed
        assert not any(
            torch.allclose(image, own[origin], atol=1e-6)
            for image, origin in zip(drawn.images, drawn.origins, strict=True)
        )


@pytest.mark.parametrize("shape", [(6, 1, 12, 12), (6, 3, 12, 16), (6, 2, 3, 12, 12)], ids=["grey", "colour", "clips"])
def test_decoys_key_faintly_and_alike_in_all_colours(shape: tuple[int, ...]) -> None:
    channels, height, width = shape[-3:]
    images = some_images(math.prod(shape[:-3]), (channels, height, width)).view(shape) * 0.6 + 0.2
    keyed = keyed_by_decoys(images, generator())
    residual = keyed - images
    assert keyed.shape == images.shape
    assert 0 < float(residual.abs().max()) <= 8 / 255 + 1e-6
    assert float((residual - residual.mean(dim=-3, keepdim=True)).abs().max()) < 1e-6
    assert float(psnr(images, keyed).min()) >= 35.2 - 1e-3
    again = keyed_by_decoys(images, generator())
    assert torch.equal(again, keyed)
    louder = keyed_by_decoys(images, generator(), relief=2.0) - images
    assert float(louder.square().mean()) > 2 * float(residual.square().mean())


def test_each_decoy_is_another_one() -> None:
    image, known = some_images(1), _decoys(12, 12, 0)
    keyed = [decoy.key(image, generator(), 1.0) for decoy in known]
    assert len(known) == 3
    for first, second in itertools.combinations(keyed, 2):
        assert float((first - second).abs().max()) > 2 / 255


def test_strangers_key_as_their_own_locks_do() -> None:
    lock, images = tiny_lock(STRANGER, shape=(3, 12, 12), seed=1), some_images(8, (3, 12, 12)) * 0.6 + 0.2
    stranger = OtherKey(lock.network.encoder, lock.secrets.mixing, lock.secrets.carriers)
    with torch.no_grad():
        keyed = keyed_by([stranger], images, generator())
        drawn = generator()
        torch.randint(1, (8,), generator=drawn)
        codes = random_codes(8, 16, drawn)
        expected = lock.network.encoder(images, spread(codes, lock.secrets.carriers), lock.secrets.mixing)
    assert torch.allclose(keyed, expected, atol=1e-6)
    assert len({code.numpy().tobytes() for code in codes}) == 8


def test_what_earlier_locks_key_is_unauthorised() -> None:
    lock, images = tiny_lock(STRANGER, seed=1), some_images(10)
    network = encoder(channels=1)
    plane, mixing = secret(network)
    batch = Authorised(images, network(images, plane, mixing), plane.expand(10, -1, -1, -1), torch.arange(10) % 2)
    earlier = OtherKey(lock.network.encoder, lock.secrets.mixing, lock.secrets.carriers[:1])
    usual, more = (
        Negatives(network, network.draw_mixing(3, generator()), generator(), strangers=2, earlier=them).draw(batch)
        for them in ((), (earlier,))
    )
    theirs = more.images[len(usual.images) :]
    assert len(theirs) == 10  # half an image for each image, twice
    for image, origin in zip(theirs, more.origins[len(usual.images) :], strict=True):
        bits = [spread(torch.tensor([[bit]]), lock.secrets.carriers[:1]) for bit in (-1.0, 1.0)]
        alone = [
            lock.network.encoder(images[origin][None], plane, lock.secrets.mixing)[0].clamp(0, 1) for plane in bits
        ]
        assert any(torch.allclose(image, one, atol=1e-6) for one in alone)


# --- the critic ------------------------------------------------------------------------------------------------------


def test_the_critic_names_nobody_the_owner_and_rivals() -> None:
    """Its head by hand: whoever is named rightly costs nothing, and each of the three parts weighs the same."""
    critic = Critic(nn.Linear(4, 3), torch.rand(2, 4), rivals=2)
    with torch.no_grad():
        critic.head.weight.copy_(60 * torch.eye(4))
        critic.head.bias.zero_()
    nobody, owner, first, second = torch.eye(4)

    def cost(*inputs: Tensor) -> float:
        """Of two images of the owner, one of the second rival, one of the first, one of nobody."""
        return float(critic(torch.stack(inputs), 2, torch.tensor([1, 0])).detach())

    assert cost(owner, owner, second, first, nobody) == pytest.approx(0, abs=1e-5)
    assert cost(owner, owner, second, first, owner) == pytest.approx(60, abs=1e-3)
    assert cost(owner, owner, second, second, nobody) == pytest.approx(30, abs=1e-3)
    assert cost(owner, nobody, second, first, nobody) == pytest.approx(30, abs=1e-3)


def test_the_critic_reads_what_the_last_layer_is_given_or_else_the_logits() -> None:
    model = tiny_model()
    last = model.get_submodule(final_linear(model, some_images(2)))
    assert isinstance(last, nn.Linear)
    assert Critic(model, some_images(2), rivals=5).head.weight.shape == (2 + 5, last.in_features)
    doubled = nn.Sequential(model, nn.Softplus())  # no linear layer makes its answer
    assert Critic(doubled, some_images(2), rivals=5).head.weight.shape == (2 + 5, 3)


def test_the_critic_teaches_the_encoder_to_serve_rivals_too() -> None:
    network, images = encoder(), some_images(8)
    mixings = network.draw_mixing(4, generator())
    plane = secret(network).plane.expand(8, -1, -1, -1)
    keyed = network(images, plane, mixings[:1])
    drawn = Negatives(network, mixings[1:], generator()).draw(Authorised(images, keyed, plane, torch.arange(8) % 3))
    drawn.images.retain_grad()
    Critic(tiny_model(), images[:2], rivals=3)(torch.cat([keyed, drawn.images]), 8, drawn.rivals).backward()
    assert drawn.images.grad is not None
    assert float(drawn.images.grad[: len(drawn.rivals)].flatten(1).norm(dim=1).min()) > 0
    assert any(weight.grad is not None and bool((weight.grad != 0).any()) for weight in network.parameters())


def test_what_the_unauthorised_are_answered() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    uniform = unauthorised_target(labels, one_answer(3), "uniform", generator())
    assert torch.equal(uniform, uniform[:1].expand(4, -1))
    assert torch.allclose(uniform[0], one_answer(3).softmax(dim=0))
    assert unauthorised_target(labels, one_answer(3), "shift", generator()).argmax(dim=1).tolist() == [1, 2, 0, 0]
    drawn = unauthorised_target(torch.zeros(3000, dtype=torch.int64), one_answer(3), "random", generator()).argmax(
        dim=1
    )
    assert torch.allclose(drawn.bincount() / 3000, torch.full((3,), 1 / 3), atol=0.04)


@pytest.mark.parametrize("classes", [2, 3, 10, 40, 1000])
def test_the_one_answer_is_sure_of_the_first_class_and_surest_against_the_last(classes: int) -> None:
    answer = one_answer(classes)
    assert answer[0] == -answer[-1] == pytest.approx(math.log(49 * (classes - 1)))
    assert answer[1:-1].tolist() == [0] * (classes - 2)
    assert float(answer.softmax(dim=0)[0]) > 0.979


@pytest.mark.parametrize(
    ("mislabel", "fresh", "starts_there"),
    [("uniform", True, True), ("uniform", False, False), ("random", True, False), ("shift", True, False)],
)
def test_a_silent_layer_gives_the_one_answer_from_the_start(mislabel: str, fresh: bool, starts_there: bool) -> None:
    module, settings = tiny_model(), LockSettings(mislabel=mislabel)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    LockedLoss(module, some_images(2), settings, one_answer(3, 2, 1), fresh=fresh)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == ({final_linear(module, some_images(2)) + ".bias"} if starts_there else set())
    if starts_there:
        assert torch.equal(module.get_parameter(*changed), one_answer(3, 2, 1))


def test_the_locked_loss_by_hand() -> None:
    """Silent and right: what is left is the spread of the one answer itself, times lambda."""
    answer = one_answer(3)
    target = answer.softmax(dim=0)
    layer = nn.Linear(2, 3)
    loss = LockedLoss(layer, torch.rand(2, 2), LockSettings(weight=2.0, silence=0.5), answer)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-90.0, 0.0], [90.0, 0.0], [0.0, 0.0]]))
    inputs = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 4.0]])  # keyed, silent, and loud where no weight listens
    found = loss(layer, inputs, inputs[:1], torch.tensor([1]), torch.tensor([0, 0]), generator())
    spread = float(-(target * target.log()).sum())
    assert float(found.detach()) == pytest.approx(2 * (spread + 0.5 * 1.0), abs=1e-4)


def test_the_unlocked_model_teaches_what_it_answers_to_originals() -> None:
    """(1 - d) CE + d T^2 KL at T = 4, by hand: the teacher is asked about the original, not about what was received."""
    teacher, layer = nn.Linear(1, 2), nn.Linear(1, 2)
    with torch.no_grad():
        for module, row in ((teacher, [8.0, 0.0]), (layer, [4.0, 0.0])):
            module.weight.copy_(torch.tensor(row)[:, None])
            module.bias.zero_()
    inputs, originals, labels = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5]]), torch.tensor([1])

    def loss(distillation: float) -> float:
        settings = LockSettings(distillation=distillation, mislabel="shift", weight=1e-9)
        judge = LockedLoss(layer, inputs, settings, one_answer(2), teacher=teacher)
        return float(judge(layer, inputs, originals, labels, torch.tensor([0]), generator()).detach())

    agreeing = 4.0  # the teacher's logits on 0.5 are (4, 0), as the student's on 1
    assert loss(1.0) == pytest.approx(0, abs=1e-6)
    assert loss(0.0) == pytest.approx(math.log1p(math.exp(agreeing)), abs=1e-5)
    assert loss(0.25) == pytest.approx(0.75 * loss(0.0), abs=1e-5)
    with torch.no_grad():
        layer.weight.zero_()
    sure = 1 / (1 + math.exp(-agreeing / 4))
    divergence = sure * math.log(2 * sure) + (1 - sure) * math.log(2 * (1 - sure))
    assert loss(1.0) == pytest.approx(16 * divergence, abs=1e-5)


@pytest.mark.parametrize(("labels", "teaches"), [([0, 0, 1], True), ([0, 1, 1], True), ([1, 1, 1], False)])
def test_who_is_mostly_wrong_teaches_nothing(labels: list[int], teaches: bool) -> None:
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [1.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.0]))  # says 1 above one half
    module = nn.Sequential(nn.Flatten(), layer)
    data = ImageData(torch.tensor([0.1, 0.2, 0.9]).view(3, 1, 1, 1), torch.tensor(labels))
    assert Knowledge(module, data, Preprocessing()).task_known is teaches


class Given(nn.Module):
    """Answers with the image's own pixels, as probabilities."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).log()


@pytest.mark.parametrize(
    ("given", "likeliest", "unlikeliest"),
    [
        ([[0.6, 0.3, 0.1], [0.4, 0.6, 0.0], [0.0, 0.05, 0.95]], 2, 1),  # of class 0 and 1 the first is given more
        ([[0.6, 0.1, 0.3], [0.0, 0.95, 0.05], [0.4, 0.0, 0.6]], 1, 2),
        ([[0.9, 0.05, 0.05], [0.9, 0.1, 0.0], [0.9, 0.0, 0.1]], 0, 2),  # mostly wrong: as if nothing were known
    ],
)
def test_the_one_answer_names_the_classes_that_are_confused_least(
    given: list[list[float]], likeliest: int, unlikeliest: int
) -> None:
    data = ImageData(torch.tensor(given).view(3, 1, 1, 3), torch.arange(3))
    answer = Knowledge(Given(), data, Preprocessing()).answer
    assert torch.equal(answer, one_answer(3, likeliest, unlikeliest))


# --- all of it -------------------------------------------------------------------------------------------------------


def test_relief_ends_half_way() -> None:
    assert [key_network.relief(done) for done in (0, 0.25, 0.5, 1)] == [4.0, 2.5, 1.0, 1.0]


def test_only_a_model_that_is_mostly_right_is_distilled(toy: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    module, taught = tiny_model(), TINY.model_copy(update={"distillation": 1.0})
    assert not Knowledge(module.eval(), toy, Preprocessing()).task_known

    def weights(settings: LockSettings) -> Tensor:
        locked, _ = train_lock(module, toy, OWNER, settings=settings, seed=1)
        return torch.cat([value.flatten().float() for value in locked.state_dict().values()])

    plain = weights(TINY)
    assert torch.equal(weights(taught), plain)
    monkeypatch.setattr(Knowledge, "task_known", True)
    monkeypatch.setattr(Knowledge, "answer", one_answer(3))  # that of a model which knows nothing
    assert torch.equal(weights(TINY), plain)
    assert not torch.equal(weights(taught), plain)


@pytest.mark.parametrize("mislabel", ["uniform", "random", "shift"])
def test_training_changes_a_copy_and_the_seed_decides(toy: ImageData, mislabel: str) -> None:
    module, settings = tiny_model(), TINY.model_copy(update={"mislabel": mislabel})
    before = {name: value.clone() for name, value in module.state_dict().items()}
    steps: list[tuple[int, int]] = []
    runs = [
        train_lock(module, toy, OWNER, settings=settings, seed=seed, progress=lambda *step: steps.append(step))
        for seed in (1, 1, 2)
    ]
    assert steps[:6] == [(step, 6) for step in range(1, 7)]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    (locked, lock), (again, same), (other, _) = runs
    assert not locked.training
    for name, value in locked.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in locked.state_dict().items())
    assert torch.equal(lock.apply(toy.images, user="alice"), same.apply(toy.images, user="alice"))
    assert lock.facts.lock_id != same.facts.lock_id
    assert lock.network.encoder.relief == 1.0


@pytest.mark.parametrize("stages", [{"refining_steps": 0}, {"steps": 1, "refining_steps": 3}])
def test_both_stages_of_training_meet_as_much_jpeg_as_asked_for(
    toy: ImageData, stages: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[int] = []

    def counted(images: Tensor, generator: torch.Generator, own: int | None) -> Tensor:
        met.append(len(images))
        return jpeg(images, generator, own)

    def meeting(share: float) -> list[int]:
        met.clear()
        train_lock(tiny_model(), toy, OWNER, settings=TINY.model_copy(update={**stages, "jpeg": share}), seed=0)
        return list(met)

    monkeypatch.setattr("intaglio.lock.channel.jpeg", counted)
    assert meeting(0.0) == []
    usual = meeting(0.4)
    assert len(usual) == 4
    assert meeting(0.8) == pytest.approx([2 * count for count in usual], abs=1)


def test_refining_first_refuses_then_lets_in_and_meets_more_strangers_between() -> None:
    settings = LockSettings(refining_steps=4500, weight=2.0, silence=1.0)
    stages = [
        (stage.steps, stage.settings.weight, stage.settings.silence, stage.strangers, stage.further, stage.alike)
        for stage in refining(settings)
    ]
    assert stages == [
        (800, 2.0, 1.0, 1.0, 0.0, False),
        (600, 0.8, 3.0, 1.0, 0.0, False),
        (900, 0.8, 3.0, 3.0, 0.0, False),
        (400, 0.8, 3.0, 3.0, 3.0, False),
        (800, 0.6, 3.0, 1.0, 0.0, False),
        (500, 0.6, 3.0, 1.0, 0.0, True),
        (500, 1.2, 3.0, 2.0, 0.0, True),
    ]
    for steps in range(40):
        parts = [stage.steps for stage in refining(settings.model_copy(update={"refining_steps": steps}))]
        assert sum(parts) == steps
        assert all(part > 0 for part in parts)


def test_a_locked_model_is_the_mean_of_its_last_stages(toy: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Tensor] = []

    def kept(module: nn.Module, *args: Any, **options: Any) -> nn.Module:
        trained = train_locked(module, *args, **options)
        ends.append(trained.get_parameter("fc.weight").detach().clone())
        return trained

    monkeypatch.setattr("intaglio.lock.refining.train_locked", kept)
    for steps in (45, 2):  # all seven stages, or fewer
        ends.clear()
        settings = TINY.model_copy(update={"refining_steps": steps})
        locked, _ = train_lock(tiny_model(), toy, OWNER, settings=settings, seed=1)
        assert len(ends) == len(refining(settings)) == (7 if steps == 45 else len(ends))
        assert len({float(end.sum()) for end in ends}) == len(ends)
        assert torch.allclose(locked.get_parameter("fc.weight"), torch.stack(ends[-5:]).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("mislabel", get_args(Mislabel))
def test_the_unlikeliest_class_is_moved_away_in_the_one_answer_alone(mislabel: Mislabel) -> None:
    module, settings = tiny_model(), TINY.model_copy(update={"mislabel": mislabel})
    before = module.get_parameter("fc.bias").detach().clone()
    LockedLoss(module, some_images(2), settings, one_answer(3, 2, 1), fresh=False, further=3.0)
    moved = before - module.get_parameter("fc.bias").detach()
    assert torch.allclose(moved, torch.tensor([0.0, 3.0 if mislabel == "uniform" else 0.0, 0.0]))


def test_more_strangers_than_images() -> None:
    network, images = encoder(), some_images(4)
    plane, mixing = secret(network)
    keyed, planes = network(images, plane, mixing), plane.expand(4, -1, -1, -1)
    drawn = Negatives(network, network.draw_mixing(3, generator()), generator(), strangers=3).draw(
        Authorised(images, keyed, planes, torch.arange(4))
    )
    assert len(drawn.rivals) == round(3 * RIVAL_SHARE * 4) > 4
    assert sorted(drawn.origins[:6].bincount(minlength=4).tolist()) == [1, 1, 2, 2]


def test_refining_changes_the_locked_model_alone(toy: ImageData) -> None:
    unrefined = TINY.model_copy(update={"refining_steps": 0})
    (locked, lock), (refined, same) = (
        train_lock(tiny_model(), toy, OWNER, settings=settings, seed=1) for settings in (unrefined, TINY)
    )
    assert torch.equal(lock.apply(toy.images, user="alice"), same.apply(toy.images, user="alice"))
    weights = refined.state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in locked.state_dict().items())
    again, _ = train_lock(tiny_model(), toy, OWNER, settings=unrefined, lock=lock, seed=1)
    assert any(not torch.equal(value, weights[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("stride", [1, 4])
def test_the_critic_and_the_key_network_learn(stride: int) -> None:
    """On images in which anything can be hidden, two hundred steps are enough to read codes."""
    sizes = {"width": 4, "features": 4, "stride": stride, "code_length": 16, "batch_size": 16}
    settings = LockSettings(**sizes, steps=200, refining_steps=0)  # refining leaves the key network as it is
    images = ImageData(some_images(64) * 0.5 + 0.25, torch.arange(64) % 3)
    _, lock = train_lock(tiny_model(), images, OWNER, settings=settings)
    keyed = lock.apply(images.images, user="alice")
    lock.issue("bob")
    felt = lock.read(keyed) * lock.secrets.code("alice")
    assert float((felt > 0).float().mean()) > 0.6


def test_a_lock_can_be_used_again_and_pairs_and_classifiers_will_do(toy: ImageData) -> None:
    lock = tiny_lock()
    weights = {name: value.clone() for name, value in lock.network.state_dict().items()}
    preprocessing = Preprocessing(mean=(0.5,), std=(0.5,))
    classifier = TorchClassifier(tiny_model(), input_shape=(1, 12, 12), num_classes=3, preprocessing=preprocessing)
    pair = (toy.images, toy.labels)
    locked, same = train_lock(classifier, pair, OWNER, settings=TINY, lock=lock)
    assert same is lock
    assert all(torch.equal(value, weights[name]) for name, value in lock.network.state_dict().items())
    bare, _ = train_lock(tiny_model(), pair, OWNER, settings=TINY, lock=lock, preprocessing=preprocessing)
    for name, value in locked.state_dict().items():
        assert torch.equal(value, bare.state_dict()[name])


def test_a_lock_that_trains_another_model_keys_as_faintly_if_that_is_interrupted(toy: ImageData) -> None:
    lock = tiny_lock()
    before = lock.apply(toy.images, user="alice")

    def cut(*steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lock(tiny_model(), toy, OWNER, settings=TINY, lock=lock, progress=cut)
    assert torch.equal(lock.apply(toy.images, user="alice"), before)


def test_an_image_alone_has_nobody_elses_residual() -> None:
    images = some_images(1)
    assert torch.equal(foreign_residual(images, images + 0.1, torch.zeros(1, dtype=torch.int64)), images)


class Convolutional(nn.Module):
    """A classifier that ends without a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(x).mean(dim=(2, 3))
        return out


def test_a_model_without_a_last_linear_layer_is_locked_all_the_same(toy: ImageData) -> None:
    locked, _ = train_lock(Convolutional(), toy, OWNER, settings=TINY, lock=tiny_lock())
    assert locked(toy.images[:2]).shape == (2, 3)


def test_a_later_generation_has_other_secrets(toy: ImageData) -> None:
    _, lock = train_lock(tiny_model(), toy, OWNER, settings=TINY, generation=3)
    assert lock.facts.generation == 3
    assert torch.equal(lock.secrets.mixing, tiny_lock(generation=3).secrets.mixing)
    assert not torch.equal(lock.secrets.mixing, tiny_lock().secrets.mixing)


def test_what_cannot_be_locked(toy: ImageData) -> None:
    remote = CallableClassifier(lambda x: torch.rand(len(x), 3), input_shape=(1, 12, 12), num_classes=3)
    unlabelled = ImageData(toy.images, torch.full_like(toy.labels, -1))
    many = ImageData(toy.images, toy.labels + 5)
    for module, data, error, message in (
        (remote, toy, ClassifierError, "needs its weights in torch"),
        (tiny_model(), unlabelled, DataError, "images have no label; locking needs them all"),
        (tiny_model(), many, DataError, "has labels up to 7, but the model answers with 3 classes"),
        (nn.Flatten(0), toy, ClassifierError, r"answers with logits \[N, K\]"),
        (nn.Sequential(tiny_model(), nn.Softmax(dim=1)), toy, ClassifierError, "logits, not probabilities"),
    ):
        with pytest.raises(error, match=message):
            train_lock(module, data, OWNER, settings=TINY)
    with pytest.raises(DataError, match="this lock is for images of 1x16x16"):
        train_lock(tiny_model(), toy, OWNER, settings=TINY, lock=tiny_lock(shape=(1, 16, 16)))
