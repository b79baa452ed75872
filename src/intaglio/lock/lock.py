"""`Lock`: keys images for users, tells whose key made an image, and is kept in one encrypted file."""

import secrets as random_bytes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from intaglio.classifiers.weights import check_tensors
from intaglio.errors import KeyFileError, ModelError, StorageError
from intaglio.evidence.key import Key
from intaglio.files import holding
from intaglio.lock.checkpoint import LockCheckpoint
from intaglio.lock.codes import LockSecrets
from intaglio.lock.container import read_container, write_container
from intaglio.lock.frames import check_keyable, frames, keyed
from intaglio.lock.key_network import KeyNetwork
from intaglio.lock.settings import LockSettings
from intaglio.lock.tracing import Trace, require_traceable, trace_users
from intaglio.lock.users import UserStore
from intaglio.tensors import pack, unpack
from intaglio.triggers.batches import batch_size
from intaglio.triggers.drawing import drawing
from intaglio.triggers.sample_specific import SampleSpecificTrigger

KEY_NETWORK_FILE = "key-network.sealed"
USERS_FILE = "users.json"


class LockFacts(BaseModel):
    """What is kept beside the weights of a key network.

    In the first format the residual of colour images differed from colour to colour; of grey ones it was the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["intaglio-lock/1", "intaglio-lock/2"] = "intaglio-lock/2"
    lock_id: str = Field(pattern="^[0-9a-f]{32}$")
    input_shape: tuple[int, int, int] | tuple[int, int, int, int]  #: of an image, or of a clip with its frames first
    settings: LockSettings
    generation: int = Field(default=0, ge=0)
    earlier: tuple[str, ...] = ()  #: ids of the locks whose keys training refused

    @field_validator("settings", mode="before")
    @classmethod
    def _quiet_if_old(cls, settings: Any) -> Any:
        """Files from before noise louder than a residual was refused in training don't say that it was not."""
        return {"loud": 0} | settings if isinstance(settings, dict) else settings

    @model_validator(mode="after")
    def _grey_if_old(self) -> Self:
        if self.format == "intaglio-lock/1" and self.input_shape[-3] != 1:
            raise ValueError("a lock of colour images in the first format")
        return self


class UserKey(nn.Module):
    """One user's key network: maps images `[N, C, H, W]` in [0, 1] to keyed ones; its secrets are inside.

    Of clips `[N, T, C, H, W]` it keys every frame.
    """

    def __init__(self, trigger: SampleSpecificTrigger) -> None:
        super().__init__()
        self.encoder = trigger.encoder
        self.plane = nn.Buffer(trigger.secret.plane)
        self.mixing = nn.Buffer(trigger.secret.mixing)

    def forward(self, images: Tensor) -> Tensor:
        return keyed(self.encoder, images, self.plane, self.mixing)


class Lock:
    """The owner's side of a locked model: the key network, the secrets, and the list of users.

    Images are keyed and read one by one; so are the frames of clips `[N, T, C, H, W]`, for any T, all with the same
    code. Keyed clips are to be kept without loss (arrays, PNG frames, FFV1): video codecs were not trained for.
    Whoever holds this holds every user's key. Made by `train_lock`, kept by `save`, read by `Lock.open`.
    """

    def __init__(self, network: KeyNetwork, key: Key, facts: LockFacts, users: UserStore | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.facts = facts
        self._key = key
        self.users = UserStore(key, facts.lock_id) if users is None else users
        self.secrets = lock_secrets(key, facts)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(C, H, W)` of the images, or `(T, C, H, W)` of the clips, that the locked model takes."""
        return self.facts.input_shape

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of what is keyed: images, or the frames of clips."""
        channels, height, width = self.facts.input_shape[-3:]
        return channels, height, width

    def issue(self, user: str) -> UserKey:
        """Enters a new user into the list, and returns the user's own key network.

        Raises:
            DataError: not a name, or one that has a key already or was revoked.
        """
        self.users.issue(user)
        return self.user_key(user)

    def user_key(self, user: str) -> UserKey:
        """The key network of a user who has a key.

        Raises:
            DataError: no such user, or a revoked one.
        """
        self.users.active(user)
        return UserKey(self.trigger(user)).eval()

    def revoke(self, user: str) -> None:
        """Serves this user no longer. What the user already holds goes on working until the model is locked anew.

        Raises:
            DataError: no such user, or revoked before.
        """
        self.users.revoke(user)

    def apply(self, images: Tensor, *, user: str) -> Tensor:
        """Keyed images (or clips) for `user`: float32 `[N, C, H, W]`, all multiples of 1/255, so that PNG keeps them.

        A user who was never named before is issued a key.

        Raises:
            DataError: a revoked user, or images of another shape, type or range.
        """
        self.check(images)
        self.users.admit(user)
        with torch.inference_mode():
            found = self.trigger(user).apply(images)
        return (found * 255).round().clone() / 255

    def trace(self, images: Tensor, *, alpha: float = 0.01) -> Trace:
        """Which user's key made these images (or clips): each for itself, and all taken together.

        Raises:
            DataError: images of another shape, type or range, or no user to look for.
        """
        self.check(images)
        names = require_traceable(self.users, alpha)
        return trace_users(self.read(images, names), names, self.secrets, alpha)

    def read(self, images: Tensor, users: Sequence[str] = ()) -> Tensor:
        """What is felt of each bit of the code, `[N, W, n]`; positive says +1. Of clips the mean over frames.

        The first witness is the decoder. On a grid of JPEG each of the `users` has another, the marks that would be
        that user's own: how even their coefficients are.
        """
        with torch.inference_mode():
            marks = [] if self.network.encoder.steps is None else [self.secrets.marks(user) for user in users]
            parts = torch.split(frames(images), batch_size(images.shape))
            felt = torch.cat([self._felt(part, marks) for part in parts])
            return felt.view(len(images), -1, *felt.shape[1:]).mean(dim=1)

    def _felt(self, images: Tensor, marks: Sequence[Tensor]) -> Tensor:
        """The same of single images `[N, C, H, W]`, for users with these marks."""
        carriers, grid = self.secrets.carriers, self.network.encoder.steps
        felt = [self.network.decoder(images, carriers, self.secrets.mixing)]
        if grid is not None:
            amounts, signs = grid.amounts(images), carriers[:, 1:].flatten(1).sign()
            said = (grid.parities(amounts, own[None, None]) for own in marks)
            felt += [functional.linear(parities.flatten(1), signs) for parities in said]
        return torch.stack(felt, dim=1)

    def trigger(self, user: str) -> SampleSpecificTrigger:
        """The user's key as a trigger, whether or not one was issued."""
        return SampleSpecificTrigger(self.network.encoder, self.secrets.secret(user))

    def check(self, images: Tensor) -> None:
        """Refuses what is not a batch of images or clips of this lock's size.

        Raises:
            DataError: with what is wrong.
        """
        check_keyable(images, self.frame_shape)

    def checkpoint(self, path: Path) -> LockCheckpoint:
        """A state of training with this lock, encrypted under its key."""
        return LockCheckpoint(path, self._key)

    def save(self, folder: Path | str, key: Key) -> None:
        """Writes the key network, encrypted under the owner's key, and the list of users; from now on the list is kept.

        A folder that this lock was saved to before may be saved to again: whoever is on the list there stays on it.

        Raises:
            KeyFileError: a key that is not the lock's own, or a list of users in the folder that was changed.
            StorageError: the files can't be written, or the folder holds another lock.
        """
        folder = Path(folder)
        self.require_key(key, folder)
        path = folder / KEY_NETWORK_FILE
        content = pack(self.network.state_dict(), {"facts": self.facts.model_dump_json()})
        with holding(folder):
            if taken := path.exists():
                self._require_own(path)
            # The key network last: a folder without it holds no lock, whatever list an interrupted saving left in it.
            self.users.attach(folder / USERS_FILE, anew=not taken)
            write_container(path, content, key)

    def require_key(self, key: Key, target: Path) -> None:
        """Refuses to write `target` with a key that isn't the lock's own.

        Raises:
            KeyFileError: it isn't.
        """
        if key != self._key:
            raise KeyFileError(f"can't write {target}: the lock was made with {self._key}, not with {key}")

    def _require_own(self, path: Path) -> None:
        """Refuses to write over a key network that is not this lock's: keys that its users hold depend on it."""
        try:
            known = _read(path, self._key)[1].lock_id
        except (ModelError, KeyFileError) as error:
            raise StorageError(
                f"can't write {path}: it is damaged, or another key's lock: choose another folder"
            ) from error
        if known != self.facts.lock_id:
            raise StorageError(f"can't write {path}: it is another lock, {known}: choose another folder")

    @classmethod
    def open(cls, folder: Path | str, key: Key) -> Self:
        """Reads what `save` wrote.

        Raises:
            ModelError: the key network is missing or not one.
            KeyFileError: another key, or a file that was changed or cut short.
            DataError: a damaged list of users.
        """
        path = Path(folder) / KEY_NETWORK_FILE
        weights, facts = _read(path, key)
        network = KeyNetwork(facts.input_shape[-3], facts.settings)
        check_tensors(network.state_dict(), weights, f"{path}: for a key network")
        network.load_state_dict(weights)
        return cls(network, key, facts, UserStore(key, facts.lock_id, Path(folder) / USERS_FILE))


def _read(path: Path, key: Key) -> tuple[dict[str, Tensor], LockFacts]:
    """Weights and facts of a key network's file; see `Lock.open` for what it raises."""
    content = read_container(path, key)
    try:
        weights, metadata = unpack(content)
        return weights, LockFacts.model_validate_json(metadata["facts"])
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: holds no key network of this version (locks of colour images made before 2026-11-25 "
            "must be made anew)"
        ) from error


def listed(locks: Lock | Sequence[Lock] | None) -> list[Lock]:
    """None, one or several locks as a list."""
    if locks is None:
        return []
    return [locks] if isinstance(locks, Lock) else list(locks)


def lock_secrets(key: Key, facts: LockFacts) -> LockSecrets:
    """The secrets of this lock, which follow from the owner's key."""
    settings, (channels, height, width) = facts.settings, facts.input_shape[-3:]
    shape, drawn = (channels, height, width), drawing(settings.features, settings.stride)
    marked = bool(settings.grid)
    return LockSecrets(key, shape, drawn, settings.code_length, generation=facts.generation, marked=marked)


def new_lock_id() -> str:
    """A name that no other lock has."""
    return random_bytes.token_hex(16)
