"""The prompts of a run's launches, mixtures of them, and what attention makes of those."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from longtake.runtime.wan_transformer import TextKeys, WanTransformer
from longtake.scheduler.task import NO_PROMPT, STREAM, Part

Mixture = tuple[int, tuple[int, float] | None]  # a cue, and what is mixed in


class Prompts:
    """Keeps what each prompt, or mixture of two, gives to the layers of one worker."""

    def __init__(self, transformer: WanTransformer) -> None:
        self._transformer = transformer
        self._embeddings: dict[int, Tensor] = {}
        self._keys: dict[Mixture, TextKeys] = {}

    def add(self, cue: int, embeddings: Tensor) -> None:
        """Take in the embeddings of a cue, (branches, text tokens, text width)."""
        self._embeddings[cue] = embeddings
        self._keys = {
            mixture: keys for mixture, keys in self._keys.items() if cue not in cues_of(mixture)
        }

    def of(self, part: Part) -> TextKeys:
        """What a part runs under."""
        mixture = (part.cue, part.blend)
        if mixture not in self._keys:
            embeddings = self._embeddings[part.cue]
            if part.blend is not None:
                other, share = part.blend
                embeddings = embeddings.lerp(self._embeddings[other], share)
            self._keys[mixture] = self._transformer.text_keys(embeddings)
        return self._keys[mixture]

    def forget(self, needed: Iterable[int]) -> None:
        """Only these cues are needed any more, those after them, and the empty prompt; cues of
        streams of which none is named stay."""
        oldest: dict[int, int] = {}
        for cue in needed:
            oldest[cue // STREAM] = min(cue, oldest.get(cue // STREAM, cue))
        for cue in [cue for cue in self._embeddings if cue != NO_PROMPT]:
            if cue < oldest.get(cue // STREAM, cue):
                del self._embeddings[cue]
        gone = [key for key in self._keys if not cues_of(key) <= self._embeddings.keys()]
        for key in gone:
            del self._keys[key]


def cues_of(mixture: Mixture) -> set[int]:
    """The cues in a mixture."""
    cue, blend = mixture
    return {cue} if blend is None else {cue, blend[0]}
