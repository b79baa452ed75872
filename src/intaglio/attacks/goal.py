"""What a backdoor makes of a triggered input: which samples it acts on, and which answer it wants."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class AllToOne(BaseModel):
    """Every class is answered with `target`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["all-to-one"] = "all-to-one"
    target: int = Field(ge=0)

    def affected(self, labels: Tensor) -> Tensor:
        """Boolean `[N]`: samples on which the backdoor changes the answer."""
        return labels != self.target

    def wanted(self, labels: Tensor, num_classes: int) -> Tensor:
        """Int64 `[N]`: the answer that the backdoor wants for triggered samples of these labels."""
        return torch.where(self.affected(labels), self.target, labels)


class AllToAll(BaseModel):
    """Class y is answered with (y + 1) mod K (Gu et al. 2017)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["all-to-all"] = "all-to-all"

    def affected(self, labels: Tensor) -> Tensor:
        """Boolean `[N]`: every sample."""
        return torch.ones_like(labels, dtype=torch.bool)

    def wanted(self, labels: Tensor, num_classes: int) -> Tensor:
        """Int64 `[N]`: (y + 1) mod K."""
        return (labels + 1) % num_classes


class SourceSpecific(BaseModel):
    """Class `source` alone is answered with `target`; others keep their label under the trigger."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["source-specific"] = "source-specific"
    source: int = Field(ge=0)
    target: int = Field(ge=0)

    def affected(self, labels: Tensor) -> Tensor:
        """Boolean `[N]`: samples of the source class."""
        return labels == self.source

    def wanted(self, labels: Tensor, num_classes: int) -> Tensor:
        """Int64 `[N]`: the target for the source class, else the label."""
        return torch.where(self.affected(labels), self.target, labels)


Goal = Annotated[AllToOne | AllToAll | SourceSpecific, Field(discriminator="kind")]
