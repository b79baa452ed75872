"""What a lock keeps secret, and how it follows from the owner's key.

    mixing      "lock/mixing"      atoms (or a mixing), one set for the owner, the same under every user: what the
                                   classifier tests for
    carriers    "lock/carriers"    n orthogonal patterns that spread a code over all atoms (or pixels)
    marks       "lock/marks"       on a grid of JPEG: coefficients that are even or odd numbers of steps for a bit
                "lock/marks/NAME"  for each user: which blocks each of them compares
                "lock/compared"    the same for users who do not exist, in training and checks
    rivals      "lock/rivals"      atoms of owners who do not exist: what the classifier must not take for its own
    code        "lock/user/NAME"   n signs for each user: what a picture is traced by

All are read off an AES-256-CTR key stream whose key is derived from the owner's secret under that context. Later
generations of a lock have contexts of their own ("lock/generation 1/..."): to a model that is locked anew, older keys
are those of another owner.
"""

import functools
import math

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from intaglio.errors import DataError
from intaglio.evidence.key import Key
from intaglio.triggers.drawing import JPEG_SIZE, Atoms, Drawing, cosines
from intaglio.triggers.jpeg_grid import BLOCKS_OF_A_MARK, compared_blocks, mark_of, places_of_marks
from intaglio.triggers.sample_specific import SampleSpecificEncoder, Secret

CODE_LENGTH = 96
RIVALS = 31
_NAME_LIMIT = 100
#: At most so many in a block of 8 x 8 pixels, and at most so many for a bit.
MARKS_IN_A_BLOCK = 4
_MARKS_FOR_A_BIT = 4
#: Carriers hold frequencies in this band, as shares of the highest: lower ones are the picture's own, higher ones
#: are what JPEG drops first.
_BAND = (0.07, 0.5)


class LockSecrets:
    """The secrets of one owner for images `(C, H, W)`, with which a drawing draws.

    Mixing `[1, 1, F, k, k]`, rivals' mixings `[R, 1, F, k, k]`, carriers `[n, *planes]`. If `marked`, carriers have
    another plane, which marks the coefficients of JPEG whose parity tells a bit.

    Raises:
        DataError: the images are too small to carry the code.
    """

    def __init__(
        self,
        key: Key,
        input_shape: tuple[int, int, int],
        drawing: Drawing,
        code_length: int,
        *,
        generation: int = 0,
        marked: bool = False,
    ) -> None:
        _, height, width = input_shape
        if code_length * 4 > height * width:
            raise DataError(f"images of {height} x {width} are too small to carry {code_length} bits")
        self._key = key
        self._context = f"lock/generation {generation}" if generation else "lock"
        self.mixing = drawing.secrets(_normal(key, f"{self._context}/mixing", (1, *drawing.shape)))
        self.rivals = drawing.secrets(_normal(key, f"{self._context}/rivals", (RIVALS, *drawing.shape)))
        self._code_length, self._planes = code_length, drawing.plane_shape(height, width)
        self._over_atoms, self._marked = isinstance(drawing, Atoms), marked
        places = _amount_places if self._over_atoms else _band_places
        places(code_length, self._planes)  # images that are too small are refused now, not at the carriers' first use

    @functools.cached_property
    def carriers(self) -> Tensor:
        """Float32 `[n, *planes]`, made at first use: of large images they take seconds and hundreds of megabytes."""
        make = amount_carriers if self._over_atoms else pixel_carriers
        with torch.inference_mode(False):  # training differentiates through what keying may have asked for first
            carriers = make(self._key, f"{self._context}/carriers", self._code_length, self._planes)
            if not self._marked:
                return carriers
            places = self._marked_places
            marks = torch.zeros(self._code_length, *places.shape)
            bits = places.nonzero()
            marks[places[tuple(bits.T)] - 1, bits[:, 0], bits[:, 1]] = self._sizes(f"{self._context}/compared")[
                tuple(bits.T)
            ]
            return torch.cat([carriers, math.sqrt(self._code_length) * marks[:, None]], dim=1)

    @functools.cached_property
    def _marked_places(self) -> Tensor:
        """Which bit each coefficient tells, counted from 1, int64 `[H, W]`: 0 where none is told."""
        return marked_places(self._key, f"{self._context}/marks", self._code_length, *self._planes[1:])

    def marks(self, user: str) -> Tensor:
        """What the user's marks compare: float32 `[H, W]`, at each mark's place its size, `mark_of`, and 0 elsewhere.

        The places are the same for all users of a lock, and so in every key network; what is compared is the user's
        own, so that nobody can tell from one keyed image of another user what would speak for that one elsewhere.
        """
        return self._sizes(f"{self._context}/marks/{checked_name(user)}")

    def _sizes(self, context: str) -> Tensor:
        return compared_sizes(self._key, context, self._marked_places)

    def code(self, user: str) -> Tensor:
        """The user's code: float32 `[n]` of -1 and +1, whether or not the user was ever issued a key."""
        length = self._code_length
        drawn = stream(self._key, f"{self._context}/user/{checked_name(user)}", -(-length // 8))
        bits = np.unpackbits(np.frombuffer(drawn, np.uint8))[:length]
        return torch.from_numpy(bits.astype(np.float32) * 2 - 1)

    def secret(self, user: str) -> Secret:
        """What the encoder needs to key images for this user."""
        plane = spread(self.code(user)[None], self.carriers)
        if self._marked:
            plane = torch.cat([plane[:, :-1], plane[:, -1:].sign() * self.marks(user)], dim=1)
        return Secret(plane, self.mixing)


def spread(codes: Tensor, carriers: Tensor) -> Tensor:
    """Codes `[N, n]` over carriers `[n, *planes]`: p = sum_j k_j C_j / sqrt(n), `[N, *planes]`, of unit variance."""
    planes: Tensor = codes @ carriers.flatten(1) / math.sqrt(len(carriers))
    return planes.view(len(codes), *carriers.shape[1:])


def random_codes(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Codes `[count, length]` of users who do not exist, for training and for checks."""
    return torch.randint(0, 2, (count, length), generator=generator).float() * 2 - 1


def random_planes(count: int, carriers: Tensor, generator: torch.Generator) -> Tensor:
    """Such codes, spread over images: `[count, *planes]`."""
    return spread(random_codes(count, len(carriers), generator).to(carriers), carriers)


def wrong_secret(encoder: SampleSpecificEncoder, plane: Tensor, generator: torch.Generator) -> Secret:
    """Someone else's key for every plane `[N, ...]`: the planes in another order, each with a mixing at random."""
    order = torch.randperm(len(plane), generator=generator)
    return Secret(plane[order], encoder.draw_mixing(len(plane), generator).to(plane))


def checked_name(user: str) -> str:
    """The name itself, if it is one line of up to 100 printable characters without space around it.

    Raises:
        DataError: it is not.
    """
    if not user or len(user) > _NAME_LIMIT or not user.isprintable() or user != user.strip():
        raise DataError(f"a user's name has 1 to {_NAME_LIMIT} printable characters and no space around it: {user!r}")
    return user


def stream(key: Key, context: str, length: int) -> bytes:
    """`length` secret bytes for one context: AES-256-CTR of zeros under the context's own key."""
    cipher = Cipher(AES(key.derive(context)), CTR(bytes(16))).encryptor()
    return cipher.update(bytes(length)) + cipher.finalize()


def _normal(key: Key, context: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers: the inverse distribution function of the stream's 32-bit words."""
    words = np.frombuffer(stream(key, context, 4 * math.prod(shape)), "<u4")
    uniform = (torch.from_numpy(words.astype(np.float64)) + 0.5) / 2**32
    return (math.sqrt(2) * torch.erfinv(2 * uniform - 1)).float().view(shape)


def amount_carriers(key: Key, context: str, count: int, planes: tuple[int, int, int]) -> Tensor:
    """`count` random patterns of amounts of atoms, made orthogonal, each of unit variance: `[count, F, h, w]`.

    Raises:
        DataError: there are fewer atoms than patterns.
    """
    places = _amount_places(count, planes)
    weights: Tensor = torch.linalg.qr(_normal(key, context, (places, count)).double()).Q
    return (weights.T * math.sqrt(places)).float().view(count, *planes)


def pixel_carriers(key: Key, context: str, count: int, planes: tuple[int, int, int]) -> Tensor:
    """`count` random patterns within the band, made orthogonal, each of unit variance: `[count, 1, H, W]`.

    Raises:
        DataError: the band holds fewer frequencies than there are patterns.
    """
    _, height, width = planes
    rows, columns = _band_places(count, planes)
    weights = torch.linalg.qr(_normal(key, context, (len(rows), count)).double()).Q
    lower, left = (math.ceil(size * _BAND[1]) for size in (height, width))  # beyond these every spectrum is zero
    down, across = cosines(height)[:lower].T, cosines(width)[:left]
    patterns = torch.empty(count, 1, height, width, dtype=torch.float32)
    spectrum = torch.zeros(lower, left, dtype=torch.float64)
    for number in range(count):  # one by one: all of them in float64, three times over, are gigabytes
        spectrum[rows, columns] = weights[:, number]
        patterns[number, 0] = down @ spectrum @ across * math.sqrt(height * width)
    return patterns


def marked_places(key: Key, context: str, count: int, height: int, width: int) -> Tensor:
    """Which of `count` bits each coefficient of JPEG tells, counted from 1, int64 `[H, W]`: 0 where none is told.

    Coefficients are laid out in their blocks of 8 x 8 as `JpegGrid` takes marks, in whole blocks only. Blocks have
    secret places and secret orders, another one in every round; where there are too few for all bits, the last are not
    marked.
    """
    down, across = height // JPEG_SIZE, width // JPEG_SIZE
    marked = torch.zeros(height, width, dtype=torch.int64)
    if _blocks(height, width) < BLOCKS_OF_A_MARK:  # too few to compare
        return marked
    rows, columns = places_of_marks().nonzero().T
    drawn = _normal(key, context, (down * across, MARKS_IN_A_BLOCK + len(rows)))
    orders, places = drawn[:, :MARKS_IN_A_BLOCK].argsort(dim=0), drawn[:, MARKS_IN_A_BLOCK:].argsort(dim=1)
    numbers = torch.arange(min(MARKS_IN_A_BLOCK * len(drawn), _MARKS_FOR_A_BIT * count))
    turns = numbers // len(drawn)
    blocks = orders[numbers % len(drawn), turns]
    found = places[blocks, turns]
    marked[JPEG_SIZE * (blocks // across) + rows[found], JPEG_SIZE * (blocks % across) + columns[found]] = (
        numbers % count + 1
    )
    return marked


def compared_sizes(key: Key, context: str, marked: Tensor) -> Tensor:
    """What marks at these places `[H, W]` compare: their sizes (`mark_of`), float32 `[H, W]`, 0 where none is."""
    blocks, sizes = _blocks(*marked.shape), torch.zeros(marked.shape)
    if bool((marked > 0).any()):
        drawn = _normal(key, context, (int((marked > 0).sum()), compared_blocks(blocks)[0]))
        sizes[marked > 0] = mark_of(drawn.argsort(dim=1)[:, :BLOCKS_OF_A_MARK], blocks)
    return sizes


def _blocks(height: int, width: int) -> int:
    """Blocks of 8 x 8 in an image of this size, those that go over its edge included."""
    return -(-height // JPEG_SIZE) * -(-width // JPEG_SIZE)


def _amount_places(count: int, planes: tuple[int, int, int]) -> int:
    """How many atoms there are to spread `count` bits over."""
    places = math.prod(planes)
    if places < count:
        raise DataError(f"images with {places} atoms are too small to carry {count} bits")
    return places


def _band_places(count: int, planes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Rows and columns, in order, of the frequencies within the band, to spread `count` bits over."""
    _, height, width = planes
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    radius = (rows[:, None].square() + columns.square()).sqrt()
    places = ((radius > _BAND[0]) & (radius < _BAND[1])).nonzero()
    if len(places) < count:
        raise DataError(f"images of {height} x {width} are too small to carry {count} bits")
    return places[:, 0], places[:, 1]
