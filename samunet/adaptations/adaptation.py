"""What every adaptation says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import ValidationError

from samunet.encoders import EncoderFacts
from samunet.errors import UsageError, argument
from samunet.plain_model import PlainModel

if TYPE_CHECKING:
    from torch import nn

DECODER_RATE = 5e-3  # SAMed's
Blocks = Literal["all", "last_half"] | list[int]


@dataclass(frozen=True)
class Setting:
    """How commands take a field, by a flag that is called ``METHOD_FIELD``.

    Attributes:
        help: For ``-h``.
        metavar: What stands for the value.
        alone: Whether the flag is called ``FIELD`` instead.
        of_words: Makes the value of several words; None where there is one.
    """

    help: str
    metavar: str | None = None
    alone: bool = False
    of_words: Callable[[list[str]], Any] | None = None


def blocks_of(words: list[str]) -> Blocks:
    """The field ``blocks`` as a command line says it.

    Raises:
        ValueError: If it is neither a word for several blocks nor their numbers.
    """
    if words in (["all"], ["last_half"]):
        return words[0]
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"must be all, last_half or numbers of blocks, got {' '.join(words)!r}")
    return [int(word) for word in words]


BLOCKS = Setting("all (default), last_half, or numbers from 0", metavar="B", of_words=blocks_of)


class Adaptation(PlainModel):
    """A way to fit a pretrained network to a dataset, and its settings.

    What is new with every dataset, such as the class tokens and all that stands after the mask decoder's transformer,
    always trains. Modules that are added begin as zero. A field that a command takes is annotated with a
    :class:`Setting`; one called ``blocks`` says which of the encoder's attention blocks are adapted.

    Attributes:
        method: Its name.
        title, marker: Of the modules that it adds: their name in words, and what their tensors' names contain.
        encoder_trains: Whether the encoder's own weights train.
        merges: Whether what it adds can be folded into the network's own weights.
    """

    method: str
    title: ClassVar[str] = ""
    marker: ClassVar[str] = ""
    encoder_trains: ClassVar[bool] = False
    merges: ClassVar[bool] = True

    @classmethod
    def of(cls, given: dict[str, Any]) -> Self:
        """From fields that a user gives.

        Raises:
            UsageError: If a value is not allowed; names its field.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            first = error.errors()[0]
            field = argument(f"{cls.model_fields['method'].default}.{first['loc'][0]}")
            raise UsageError(f"{field}: {first['msg']}, got {first['input']!r}") from None

    @classmethod
    def of_flags(cls, given: dict[str, Any]) -> Self:
        """From the fields that a command line gives; errors as :meth:`of`."""
        return cls.of(given)

    def for_components(self, components: str) -> Self:
        """As it must be where only these components are adapted."""
        return self

    def problems(self, facts: EncoderFacts, components: str) -> Iterator[tuple[str, str]]:
        """Fields that do not fit each other or the encoder, each with what is wrong."""
        blocks, count = getattr(self, "blocks", "all"), facts.attention_blocks
        if isinstance(blocks, list) and not (
            blocks and len(set(blocks)) == len(blocks) and all(0 <= index < count for index in blocks)
        ):
            yield "blocks", f"must be different numbers from 0 to {count - 1} for {facts.name}, got {blocks}"

    def adapted_blocks(self, count: int) -> list[int]:
        """Indices of the adapted ones of an encoder's attention blocks, of ``count``."""
        blocks = getattr(self, "blocks", "all")
        if isinstance(blocks, list):
            return sorted(blocks)
        return list(range(count // 2 if blocks == "last_half" else 0, count))

    @property
    def slab(self) -> int:
        """Neighbouring slices that the network computes together, an odd number; 1 for each by itself."""
        return 1

    def adapt_encoder(self, encoder: nn.Module) -> nn.Module:
        """Freeze and adapt an encoder, in place or wrapped; see :mod:`samunet.network.encoders` for where."""
        raise NotImplementedError

    def adapt_decoder(self, decoder: nn.Module) -> None:
        """Freeze and adapt the transformer of SAM's mask decoder, in place, if the settings ask for it."""

    def freezes_decoder(self, components: str) -> bool:
        """Whether the mask decoder's transformer is frozen."""
        return False

    def learning_rate(self, facts: EncoderFacts, components: str) -> tuple[float, str]:
        """Peak rate at a batch of 24 images, and what it is for."""
        raise NotImplementedError

    def kept_values(self, width: int) -> int:
        """16-bit values per token that an adapted block of so many channels keeps beyond those it keeps with LoRA."""
        return 0

    def added_parameters(self, width: int) -> int:
        """Trained parameters added to a block, where they are too many to be neglected."""
        return 0


def attention_blocks(encoder: nn.Module) -> dict[str, nn.Module]:
    """An encoder's blocks with attention by name, in the order of the forward pass."""
    return {name: module for name, module in encoder.named_modules() if hasattr(module, "attn")}
