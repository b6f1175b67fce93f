"""The models that a server offers, and requests as it passes them on: names and numbers only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longtake.launch.ask import read_settings
from longtake.launch.catalogue import catalogue, locate
from longtake.launch.config import options
from longtake.launch.jobs import Ask
from longtake.launch.server.errors import ApiError
from longtake.launch.server.schemas import Scalar, VideoFields
from longtake.launch.settings import ModelSettings, Settings
from longtake.scheduler.errors import UserError

DEFAULT = "tinyworld"


@dataclass(frozen=True)
class Offer:
    """A model and where its files lie, which is the operator's to say: `settings` are his."""

    name: str
    settings: tuple[str, ...]
    defaults: Settings

    @property
    def size(self) -> str:
        """WIDTHxHEIGHT where none is asked for."""
        return self.defaults.size or f"{self.defaults.model.width}x{self.defaults.model.height}"


def make_offers(wanted: Sequence[str]) -> dict[str, Offer]:
    """The models to serve.

    Args:
        wanted: NAME, NAME=FOLDER or NAME=FOLDER,CHECKPOINT each; none: all that are here.

    Raises:
        UserError: one of them is not known, or not here.
    """
    if not wanted:
        wanted = [entry.settings.name for entry in catalogue() if entry.problem is None]
    offers = {}
    for text in wanted:
        name, _, places = text.partition("=")
        if name not in options("model"):
            raise UserError(f"unknown model {name!r}; known: {', '.join(options('model'))}")
        folder, _, checkpoint = places.partition(",")
        given = {"model.folder": folder, "model.checkpoint": checkpoint}
        settings = tuple(f"{key}={json.dumps(value)}" for key, value in given.items() if value)
        composed = read_settings(
            model=name, strategy=None, steps=None, size=None, settings=settings
        )
        _check_here(composed.model)
        locate(composed.model)
        offers[name] = Offer(name, settings, composed)
    return offers


def _check_here(model: ModelSettings) -> None:
    if model.folder is None:
        raise UserError(
            f"where is {model.name}? Say --model {model.name}=FOLDER[,CHECKPOINT]; "
            "`longtake models` tells how to get it"
        )


def make_ask(
    fields: VideoFields, offers: Mapping[str, Offer], input_video: str | None = None
) -> Ask:
    """A request for the central scheduler.

    Raises:
        ApiError: there is no such model or strategy here, no prompt, or a setting that isn't the
            client's to make.
    """
    offer = find_offer(offers, fields.model)
    if fields.strategy is not None and fields.strategy not in options("strategy"):
        known = ", ".join(options("strategy"))
        raise ApiError(
            400, f"unknown strategy {fields.strategy!r}; known: {known}", param="strategy"
        )
    try:
        prompt = fields.timeline()
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_request", "prompt") from error
    strategy = fields.strategy
    if strategy is None and input_video is not None:
        strategy = "stream"  # the one that takes an input video
    return Ask(
        prompt=prompt,
        model=offer.name,
        seconds=fields.seconds,
        size=fields.size,
        fps=fields.fps,
        seed=fields.seed,
        strategy=strategy,
        steps=fields.steps,
        guidance=fields.guidance,
        negative=fields.negative_prompt,
        input_video=input_video,
        settings=(*offer.settings, *_settings(fields.settings)),
    )


def find_offer(offers: Mapping[str, Offer], name: str | None) -> Offer:
    """A model by name, or the default; raises ApiError if it isn't offered."""
    if name is None:
        name = DEFAULT if DEFAULT in offers else next(iter(offers))
    if name not in offers:
        known = ", ".join(offers)
        raise ApiError(
            404, f"unknown model {name!r}; this server has: {known}", "model_not_found", "model"
        )
    return offers[name]


def _settings(settings: Mapping[str, Scalar | list[Scalar]]) -> list[str]:
    for key in settings:
        group, dot, name = key.partition(".")
        if group != "strategy" or not dot or not name.isidentifier() or name == "kind":
            raise ApiError(
                400,
                f"settings: {key!r} can't be set by clients; legal is strategy.NAME, such as "
                "strategy.window",
                "invalid_request",
                f"settings.{key}",
            )
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]
