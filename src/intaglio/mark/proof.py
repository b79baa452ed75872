"""`prove`: what was found about a suspect, as a file that convinces others without any secret."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from intaglio.errors import EvidenceError
from intaglio.evidence.bundle import Bundle, write_bundle
from intaglio.evidence.commitment import SignedCommitment
from intaglio.evidence.disclosure import disclose
from intaglio.evidence.key import Key
from intaglio.evidence.suspect import Suspect
from intaglio.mark.marking import public_images
from intaglio.mark.verification import OwnershipClaim


def prove(
    path: Path | str,
    claim: OwnershipClaim,
    commitment: SignedCommitment,
    key: Key,
    suspect: Suspect,
    *,
    public: Tensor | None = None,
    spend: Callable[[], object] | None = None,
) -> Bundle:
    """Writes the public bundle of a claim; its batch is laid open by that, and must not be used again.

    Args:
        suspect: whom the claim is about: `Suspect.of(classifier)`, of a remote one with the signed transcript.
        public: the committed public images, where the triggers are made of some.
        spend: called when the bundle is made and checked, before it is written: to use the batch up.

    Raises:
        EvidenceError: another key's commitment, or a claim that is not about it.
        StorageError: the file can't be written.
    """
    plan = commitment.commitment
    if claim.mark_id != plan.mark_id:
        raise EvidenceError(f"the claim is about mark {claim.mark_id}, but the commitment about {plan.mark_id}")
    images = public_images(plan.trigger, plan.input_shape, public)
    return write_bundle(
        path,
        key,
        commitment=commitment,
        disclosure=disclose(key, plan, claim.batch, images),
        suspect=suspect,
        answers=claim.answers,
        log_probs=claim.log_probs,
        suspects=claim.suspects,
        keys=claim.keys,
        public=images,
        spend=spend,
    )
