"""The model that a runner keeps loaded, so that the next run of the same one starts at once."""

from __future__ import annotations

import gc

import torch

from longtake.launch.draft import Draft
from longtake.launch.engine import load_first_share
from longtake.launch.settings import ModelSettings, Settings
from longtake.runtime.model import Model

Key = tuple[ModelSettings, str, str]


class Shelf:
    """Has one model at most. A share of a model is not kept: the others load theirs anew too."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._model: Model | None = None

    @property
    def name(self) -> str | None:
        """Of the model that is here."""
        return None if self._key is None else self._key[0].name

    def holds(self, settings: Settings) -> bool:
        """Whether the model of a run is here."""
        return self._key == _key_of(settings) and settings.parallel.workers == 1

    def load(self, draft: Draft) -> Model:
        """This worker's share of a run's model.

        Raises:
            UserError: files are missing, damaged or of another family.
        """
        if self._model is not None and self.holds(draft.settings):
            return self._model
        self.clear()
        model = load_first_share(draft)
        if draft.degrees.world == 1:
            self._key, self._model = _key_of(draft.settings), model
        return model

    def make_room(self, settings: Settings) -> None:
        """See that nothing is in memory that a run does not need."""
        if not self.holds(settings):
            self.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def clear(self) -> None:
        """Forget the model."""
        self._key, self._model = None, None


def _key_of(settings: Settings) -> Key:
    return settings.model, settings.device, settings.dtype
