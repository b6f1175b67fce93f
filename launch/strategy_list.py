"""What `longtake strategies` tells: every strategy, by the head of its file in `configs/`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile

from longtake.launch.config import CONFIGS, compose_settings, options
from longtake.launch.draft import make_draft
from longtake.scheduler.request import Cue

_PAPER = re.compile(r"arXiv \d{4}\.\d{5}")
PROMPT = "a red circle standing still on a black background"
SECONDS = 60.0


@dataclass(frozen=True)
class Listed:
    """A strategy as users choose it.

    Attributes:
        name: for `--strategy`.
        about: a sentence.
        source: the paper, or nothing.
        label: `exact`, `rounding` or `lossy`.
        clips: the largest clip degree for a minute of tinyworld.
    """

    name: str
    about: str
    source: str
    label: str
    clips: int

    @property
    def degrees(self) -> str:
        """The degrees that it can be split by, beyond what the model's heads and layers allow."""
        clip = f", clip to {self.clips}" if self.clips > 1 else ""
        return f"cfg, stages, ring, ulysses{clip}"


def strategies() -> Iterator[Listed]:
    """All of `configs/strategy`."""
    for name in options("strategy"):
        draft = make_draft(compose_settings({"strategy": name}), [Cue(0, PROMPT)], SECONDS)
        clips = draft.strategy.clips(draft.request, draft.spec)
        yield Listed(name, *_head(name), draft.strategy.label, clips)


def _head(name: str) -> tuple[str, str]:
    """The first sentence of the comment above a configuration, and the papers that it names."""
    text = (files(CONFIGS) / "strategy" / f"{name}.yaml").read_text("utf-8")
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    words = " ".join(line.lstrip("# ") for line in lines)
    papers = ", ".join(dict.fromkeys(_PAPER.findall(words)))
    plain = re.sub(r" \((?:[^()]*, )?arXiv[^()]*\)", "", re.sub(r"^arXiv [\d.]+[:,] ", "", words))
    sentence = re.split(r"(?<=[.]) (?=[A-Z])|: (?=[a-z])", plain)[0].rstrip(".")
    return sentence[:1].upper() + sentence[1:], papers
