"""What surrounds the videos: models, plans, the cluster, its health, and numbers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from longtake.launch.jobs import NoSuchJob
from longtake.launch.server import metrics
from longtake.launch.server.entry import Here, Known, Sent
from longtake.launch.server.errors import ApiError, documented, without_paths
from longtake.launch.server.offers import Offer, find_offer
from longtake.launch.server.schemas import Model, ModelList, PlanRequest
from longtake.launch.server.services import Services

router = APIRouter(tags=["service"])


class Device(BaseModel):
    """A device and what it does now; `video` is told to its owner only."""

    name: str
    node: str
    kind: str
    memory_gib: float
    busy: bool
    video: str | None
    rank: int | None
    stage: str | None
    warm: str | None
    silent: float | None


class Cluster(BaseModel):
    """All devices of this server; `lost` are those that were there before."""

    object: Literal["cluster"] = "cluster"
    devices: list[Device]
    lost: list[str]
    queued: int
    in_progress: int


class HealthReply(BaseModel):
    """`problems` are sentences for the operator; who has no key is not told them."""

    status: Literal["ok", "unhealthy"]
    problems: list[str]


@router.get("/v1/models", responses=documented())
def models(services: Here, caller: Known) -> ModelList:
    """The models of this server, and what they make where nothing else is asked."""
    return ModelList(data=[_model(offer) for offer in services.offers.values()])


@router.get("/v1/models/{model}", responses=documented(404))
def model(services: Here, caller: Known, model: Annotated[str, Path(max_length=100)]) -> Model:
    """One of the models."""
    return _model(find_offer(services.offers, model))


@router.post("/v1/plans", responses=documented(404))
def plan(services: Here, caller: Known, wanted: PlanRequest) -> dict[str, Any]:
    """Which plans this cluster has for a video, the best first, what each would cost, and why
    others are impossible; nothing is made."""
    return services.plan(wanted, caller)


@router.get("/v1/cluster", responses=documented())
def cluster(services: Here, caller: Known) -> Cluster:
    """Which worker does what now."""
    view = services.central.cluster()
    own = _own_ids(services, caller.owner, [d.job for d in view.devices if d.job is not None])
    devices = [
        Device(
            name=device.name,
            node=device.node,
            kind=device.kind,
            memory_gib=device.memory_gib,
            busy=device.job is not None,
            video=device.job if device.job in own else None,
            rank=device.rank,
            stage=device.stage,
            warm=device.warm,
            silent=device.silent,
        )
        for device in view.devices
    ]
    return Cluster(
        devices=devices,
        lost=list(view.lost),
        queued=view.queued,
        in_progress=view.in_progress,
    )


@router.get(
    "/health",
    response_model=HealthReply,
    responses={503: {"model": HealthReply, "description": "Unhealthy."}},
    openapi_extra={"security": [{}, {"HTTPBearer": []}]},
)
def health(services: Here, sent: Sent) -> JSONResponse:
    """Whether this server makes videos: 200, or 503 with what is wrong. Needs no key."""
    found = services.central.health()
    problems = [without_paths(problem) for problem in found.problems]
    if problems and not services.door.open:
        try:
            services.door.caller(sent)
        except ApiError:
            problems = []
    reply = HealthReply(status="ok" if found.ok else "unhealthy", problems=problems)
    return JSONResponse(reply.model_dump(), 200 if found.ok else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        **documented(),
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
def prometheus(services: Here, caller: Known) -> Response:
    """Numbers for Prometheus; docs/operations.md tells what each is."""
    return Response(services.metrics.text(), media_type=metrics.MEDIA_TYPE)


def _model(offer: Offer) -> Model:
    defaults = offer.defaults
    return Model(
        id=offer.name,
        created=0,
        owned_by="longtake",
        seconds=defaults.seconds,
        size=offer.size,
        fps=defaults.model.fps if defaults.fps is None else defaults.fps,
        strategy=defaults.strategy.kind,
        grammar=defaults.model.grammar,
    )


def _own_ids(services: Services, owner: str, ids: list[str]) -> set[str]:
    own = set()
    for id_ in set(ids):
        try:
            own.add(services.central.get(id_, owner).id)
        except NoSuchJob:
            continue
    return own
