"""What clients say and are told: the fields of OpenAI's videos, and Longtake's own beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from longtake.launch.jobs import PRIORITIES, Ask, Event, Job, Status
from longtake.launch.server.errors import without_paths

Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
Name = Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,64}$")]
Scalar = bool | int | float | str | None
VIDEO_ID = r"^video_[0-9a-f]{32}$"


def _number(value: Any) -> Any:
    """OpenAI's clients send seconds as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Seconds = Annotated[
    float,
    BeforeValidator(_number, json_schema_input_type=float | str),
    Field(gt=0, le=86400, allow_inf_nan=False),
]


class Strict(BaseModel):
    """A body in which an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class Cue(Strict):
    """A prompt from a second of the video on."""

    at: float = Field(ge=0, allow_inf_nan=False)
    text: Prompt


class Reference(Strict):
    """A picture or a video to begin from, as a data URL; other addresses are not fetched."""

    image_url: str = Field(description="data:image/png;base64,... or data:video/mp4;base64,...")


class VideoFields(Strict):
    """What a video is asked to be; what is left out is the model's own."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["prompts"]}]},
    )

    prompt: Prompt | None = Field(None, description="What the video shows.")
    prompts: list[Cue] | None = Field(
        None, min_length=1, max_length=1000, description="A timeline in place of `prompt`."
    )
    model: Name | None = Field(None, description="A name out of `/v1/models`.")
    seconds: Seconds | None = Field(None, description="Length.")
    size: Annotated[str, StringConstraints(pattern=r"^\d{2,4}x\d{2,4}$")] | None = Field(
        None, description="WIDTHxHEIGHT."
    )
    fps: int | None = Field(None, ge=1, le=120, description="Frames per second.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Another seed is another video.")
    strategy: Name | None = Field(None, description="How a long video is made.")
    steps: int | None = Field(None, ge=1, le=1000, description="Denoising steps of a block.")
    guidance: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    negative_prompt: str | None = Field(None, max_length=4000)
    settings: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict,
        max_length=50,
        description="`strategy.NAME` for any setting of the strategy, such as strategy.window.",
    )

    def timeline(self) -> tuple[tuple[float, str], ...]:
        """(second, text) pairs.

        Raises:
            ValueError: there is no prompt, or more than one kind of them.
        """
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("give either prompt or prompts")
        if self.prompt is not None:
            return ((0.0, self.prompt),)
        return tuple((cue.at, cue.text) for cue in self.prompts or ())


class VideoRequest(VideoFields):
    """A video to make."""

    priority: Literal["interactive", "batch"] = Field(
        "batch", description="What somebody waits for goes before what nobody does."
    )
    deadline: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Seconds from now until it should be there."
    )
    input_reference: Reference | None = Field(
        None, description="A picture or video to begin from; `stream` is the strategy then."
    )


class CameraRequest(VideoRequest):
    """A live session out of the client's own frames."""

    latency: float | None = Field(
        None,
        gt=0,
        le=600,
        allow_inf_nan=False,
        description="Seconds after which a frame's picture is due. Others may not make it late.",
    )


class PlanRequest(VideoFields):
    """What a plan is wanted for."""


class PromptSwitch(Strict):
    """Another prompt from now on."""

    prompt: Prompt


class Switched(BaseModel):
    """Where the new prompt begins; null: at the next block, when the video is worked at again."""

    id: str
    object: Literal["video.prompt"] = "video.prompt"
    from_second: float | None


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class Video(BaseModel):
    """A video on its way, or made."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "cancelling", "cancelled", "completed", "failed"]
    progress: int = Field(description="Per cent of the frames that are in the file.")
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str = Field(description="The first of `prompts`.")
    seconds: str
    size: str
    error: VideoError | None
    remixed_from_video_id: str | None = None
    prompts: list[Cue]
    stage: str = Field(description="What is being done, in one word.")
    seconds_left: float | None = Field(description="By the pace so far; null before there is one.")
    frames: int
    total_frames: int
    fps: int
    priority: Literal["interactive", "batch"]
    deadline: int | None
    started_at: int | None
    devices: list[str]
    faults: int = Field(description="How often workers were lost under it; it went on each time.")


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Page(Strict):
    """Which of the videos to list."""

    after: str | None = Field(None, max_length=100, description="The last id seen.")
    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"


class Variant(Strict):
    """What of a video to send."""

    variant: str = Field("video", max_length=20)


class Deleted(BaseModel):
    """A video that is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(BaseModel):
    """A model that this server makes videos with, and what it makes where nothing is asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    seconds: float
    size: str
    fps: int
    strategy: str
    grammar: str | None = Field(description="Set where the model knows one form of sentence only.")


class ModelList(BaseModel):
    """All models of this server."""

    object: Literal["list"] = "list"
    data: list[Model]


class JobEvent(BaseModel):
    """Something that happened to a video; `number` rises."""

    number: int
    at: float
    kind: str
    facts: dict[str, Any]


def video_of(job: Job) -> Video:
    """A job as its owner is told of it."""
    ask: Ask = job.ask
    ended = job.status is Status.COMPLETED
    assert job.priority in PRIORITIES
    return Video(
        id=job.id,
        model=ask.model,
        status=job.status.value,
        progress=100 if ended else min(99, int(100 * job.progress)),
        created_at=int(job.created_at),
        completed_at=_whole(job.ended_at) if ended else None,
        expires_at=None,
        prompt=ask.prompt[0][1],
        seconds=f"{job.seconds:g}",
        size=f"{job.width}x{job.height}",
        error=_error(job),
        prompts=[Cue(at=at, text=text) for at, text in ask.prompt],
        stage=job.stage,
        seconds_left=job.seconds_left,
        frames=job.frames,
        total_frames=job.total_frames,
        fps=job.fps,
        priority="interactive" if job.priority == "interactive" else "batch",
        deadline=_whole(job.deadline),
        started_at=_whole(job.started_at),
        devices=list(job.devices),
        faults=job.faults,
    )


def event_of(event: Event) -> JobEvent:
    """An event as the owner of its job is told of it."""
    facts = {
        name: without_paths(fact) if isinstance(fact, str) else fact
        for name, fact in event.facts.items()
    }
    return JobEvent(number=event.number, at=event.at, kind=event.kind, facts=facts)


def _error(job: Job) -> VideoError | None:
    if job.status is not Status.FAILED:
        return None
    return VideoError(code="generation_failed", message=without_paths(job.error or "it failed"))


def _whole(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
