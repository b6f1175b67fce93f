"""Clips of one video, made side by side, each seeing its surroundings and a sample of the whole.

Video-Infinity (arXiv 2406.16260): the video is cut into clips, all at the same level. A frame sees
the frames at most `halo` away, its clip's or a neighbour's, and `global_frames` that are spread
over the whole video. In the first steps the scores of the global frames are raised, so that the
clips agree on what they show; later those of the frames around, so that they agree on how it moves.

Where that work counts a frame twice that is in both scopes, here it counts once, with the higher
bias, unless `repeats` is set; and what lies outside the video is not seen at all. The work switches
at a timestep of 800, after the sixth of thirty steps; a schedule knows its steps alone, so here
`switch` is a share of them.

A clip sees the same whoever evaluates it, so what is made depends on the number of clips only by
their noise and their prompts, and on the number of workers not at all. One clip with an endless
halo and no global frames is joint generation, to the bit; several are joint generation in which
each range of frames reads its own text (TALC, arXiv 2405.04682).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from longtake.scheduler.degrees import shares
from longtake.scheduler.errors import UserError
from longtake.scheduler.geometry import ModelSpec
from longtake.scheduler.request import Request
from longtake.scheduler.schedule import Script
from longtake.scheduler.strategies.prompts import check_prompts
from longtake.scheduler.task import Kind, Part, Seen, Span, Task
from longtake.scheduler.traffic import runs


@dataclass(frozen=True)
class Scopes:
    """What a frame sees.

    Attributes:
        halo: latent frames on each side; None: all frames of the video.
        global_frames: how many of the whole video besides; all, where it has fewer.
        bias: added to the scores of one of the two.
        switch: the share of the steps, at the start, in which that is the global one.
        repeats: whether a frame that is in both counts twice.
    """

    halo: int | None = 8
    global_frames: int = 16
    bias: float = 10.0
    switch: float = 0.2
    repeats: bool = False

    def __post_init__(self) -> None:
        if self.halo is not None and self.halo < 0:
            raise UserError(f"halo must be at least 0 latent frames, got {self.halo}")
        if self.global_frames < 0:
            raise UserError(f"global_frames must be at least 0, got {self.global_frames}")
        if not self.bias >= 0:
            raise UserError(f"bias must be at least 0, got {self.bias:g}")
        if not 0 <= self.switch <= 1:
            raise UserError(f"switch is a share of the steps, 0 .. 1, got {self.switch:g}")

    def sample(self, total: int) -> list[int]:
        """The global frames of a video of so many: spread evenly, the first among them."""
        taken = min(self.global_frames, total)
        return [index * total // taken for index in range(taken)]

    def around(self, own: Span, total: int) -> Span:
        """The local scope of all frames of a clip together."""
        halo = total if self.halo is None else self.halo
        return Span(max(0, own.start - halo), min(total, own.stop + halo))

    def sees(self, own: Span, clips: Sequence[Span], early: bool, rows: int) -> tuple[Seen, ...]:
        """What the frames of a clip see, its own included, before the switch or after it.

        Positions count from the first frame of the local scope, so they are small, and the same
        for all clips inside the video. Global frames that are further away than the model has
        `rows` of positions are seen as near as the last of them.
        """
        total = clips[-1].stop
        sample = set(self.sample(total))
        bias = self.bias if sample else 0.0
        halo = total if self.halo is None else self.halo
        around = self.around(own, total)
        # What is in both scopes is left out of the one with the lower bias.
        raised = sample if early and bias and not self.repeats else set()
        beyond = None if raised or self.repeats else halo
        sees = []
        for clip in clips:
            local = set(clip.frames()).intersection(around.frames()) - raised
            for span in runs(local):
                within = halo if farthest(own, span) > halo else None
                at = span.start - around.start
                sees.append(Seen(span, at, None, 0.0 if early else bias, within))
        for clip in clips:
            for span in runs(sample.intersection(clip.frames())):
                if beyond is None or farthest(own, span) > beyond:
                    at = max(span.start - around.start, len(around) - rows)
                    at = min(at, rows - len(span))
                    sees.append(Seen(span, at, None, bias if early else 0.0, None, beyond))
        return tuple(sees)


@dataclass(frozen=True)
class Clip:
    """See the module. `number` clips, or as many as it takes for at most `length` latent frames.

    The first `blend` clips after a change of prompt run under a mixture of the prompts before and
    after it, with ever more of the new one.
    """

    scopes: Scopes
    length: int | None = 12
    number: int | None = None
    blend: int = 0
    label: str = "lossy"

    def __post_init__(self) -> None:
        if (self.length is None) == (self.number is None):
            raise UserError("set either clip_frames or clips, and the other to null")
        if self.length is not None and self.length < 1:
            raise UserError(f"clip_frames must be at least 1 latent frame, got {self.length}")
        if self.number is not None and self.number < 1:
            raise UserError(f"clips must be at least 1, got {self.number}")
        if self.blend < 0:
            raise UserError(f"blend must be at least 0 clips, got {self.blend}")

    def cut(self, frames: int) -> list[Span]:
        """The clips of so many latent frames; their lengths differ by one at most."""
        number = self.number
        if number is None:
            assert self.length is not None
            number = -(-frames // self.length)
        return shares(frames, number)

    def seams(self, frames: int) -> list[int]:
        """The latent frames with which clips after the first begin."""
        return [clip.start for clip in self.cut(frames)[1:]]

    def blocks(self, request: Request, spec: ModelSpec) -> int | None:
        """One for each clip."""
        return len(self.cut(spec.latent_frames(request.pixel_frames)))

    def check(self, request: Request, spec: ModelSpec) -> None:
        """Refuse sizes the model can't tile, endless videos, more clips than frames, and prompts
        that would never be seen."""
        spec.grid(request.height, request.width)
        if request.seconds is None:
            raise UserError("the clip strategy makes all of a video at once, so it needs --seconds")
        clips = self.cut(spec.latent_frames(request.pixel_frames))
        if not len(clips[-1]):
            raise UserError(
                f"{len(clips)} clips can't be cut out of {clips[-1].stop} latent frames; set clips "
                f"to at most that, or a longer video"
            )
        reach = max(len(self.scopes.around(clip, clips[-1].stop)) for clip in clips)
        if reach > spec.rotary_rows:
            raise UserError(
                f"clips see frames over {reach} positions around them, but the model's rotary "
                f"table has {spec.rotary_rows} rows; set strategy.halo or clip_frames lower"
            )
        check_prompts(request, spec, [clip.start for clip in clips], "clip")

    def longest_launch(self, request: Request, spec: ModelSpec) -> int:
        """All frames."""
        return spec.latent_frames(request.pixel_frames)

    def cached_frames(self, request: Request, spec: ModelSpec) -> int:
        """None: what is seen is live."""
        return 0

    def clips(self, request: Request, spec: ModelSpec) -> int:
        """A clip for each worker."""
        return len(self.cut(spec.latent_frames(request.pixel_frames)))

    def tasks(
        self, request: Request, spec: ModelSpec, steps: int, script: Script
    ) -> Iterator[Task]:
        """Begin all clips, write a launch for each step, then the decode of every clip."""
        ticks = count()
        clips: list[Span] = []
        cues: list[int] = []
        for block, frames in enumerate(self.cut(spec.latent_frames(request.pixel_frames))):
            cue = script.begin(block, frames.start)
            if cue is None:
                break
            if cue not in cues:
                yield Task(next(ticks), Kind.ENCODE, block, frames, cue)
            clips.append(frames)
            cues.append(cue)
        if not clips:
            return
        whole = Span(0, clips[-1].stop)
        texts = self._mixtures(cues)
        for step in range(steps):
            last = step == steps - 1
            early = step < round(self.scopes.switch * steps)
            yield Task(
                next(ticks),
                Kind.DENOISE,
                0,
                whole,
                cues[0],
                step,
                parts=tuple(
                    self._part(block, clips, text, step, last, early, spec.rotary_rows)
                    for block, text in enumerate(texts)
                ),
                drops=tuple(range(len(clips))) if last else (),
            )
        for block, (frames, cue) in enumerate(zip(clips, cues, strict=True)):
            yield Task(next(ticks), Kind.DECODE, block, frames, cue)

    def _mixtures(self, cues: Sequence[int]) -> list[tuple[int, tuple[int, float] | None]]:
        """What each clip runs under: a cue, and the share of a later one, as in `Part.blend`."""
        found: list[tuple[int, tuple[int, float] | None]] = []
        change = 0
        for block, cue in enumerate(cues):
            if block and cue != cues[block - 1]:
                change = block
            since = block - change
            if change and since < self.blend:
                share, before = (since + 1) / (self.blend + 1), cues[change - 1]
                if before < cue:
                    found.append((before, (cue, share)))
                else:
                    found.append((cue, (before, 1 - share)))
            else:
                found.append((cue, None))
        return found

    def _part(
        self,
        block: int,
        clips: Sequence[Span],
        text: tuple[int, tuple[int, float] | None],
        step: int,
        last: bool,
        early: bool,
        rows: int,
    ) -> Part:
        own, (cue, blend) = clips[block], text
        at = own.start - self.scopes.around(own, clips[-1].stop).start
        sees = self.scopes.sees(own, clips, early, rows)
        return Part(block, own, step, cue, at, sees, last=last, sees_itself=False, blend=blend)


def farthest(own: Span, other: Span) -> int:
    """The largest distance between frames of two spans."""
    return max(own.stop - other.start, other.stop - own.start) - 1
