"""The degrees that a run takes where they are left open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longtake.launch.ask import read_settings
from longtake.launch.auto_plan import Described, choose_degrees
from longtake.launch.clusters import load_cluster, load_device, load_link
from longtake.launch.config import compose_settings
from longtake.launch.devices import describe_devices, describe_gpu, device_name
from longtake.launch.draft import make_draft
from longtake.launch.manifest import new_manifest
from longtake.launch.order import Order
from longtake.launch.settings import ParallelSettings
from longtake.launch.surroundings import ALL_HERE, Hosts
from longtake.scheduler.costs import Costs
from longtake.scheduler.degrees import Degrees
from longtake.scheduler.errors import UserError
from longtake.scheduler.known_models import WAN_1_3B, WAN_14B
from longtake.scheduler.plan import Plan
from longtake.scheduler.planner import all_degrees
from longtake.scheduler.request import Cue, Request
from longtake.scheduler.retention import Positions, Retention
from longtake.scheduler.simulator import Job, simulate
from longtake.scheduler.simulator_efforts import ClusterEfforts
from longtake.scheduler.strategies.bidirectional import Bidirectional
from longtake.scheduler.strategies.causal import Causal

PROMPT = "a large red circle bouncing around slowly on a gray background"
CPU = torch.device("cpu")
PARALLEL = compose_settings({}).parallel
REQUEST = Request((Cue(0.0, "a cat"),), 5.0, 480, 832, 16, guidance=5.0)
WINDOW = Retention(21, 3, Positions.RELATIVE)
JOINT = Job(Bidirectional(), REQUEST, WAN_1_3B, 4)
CAUSAL = Job(Causal(WINDOW), REQUEST, WAN_1_3B, 4)


def of(workers: int, **settled: int) -> ParallelSettings:
    return replace(PARALLEL, workers=workers, **settled)  # type: ignore[arg-type]


def never() -> Described:
    raise AssertionError("there is nothing to choose")


def on(name: str) -> Callable[[], Described]:
    return lambda: Described(load_cluster(name), name)


def seconds(job: Job, degrees: Degrees, cluster: str) -> float:
    there = load_cluster(cluster)
    costs = Costs(job.spec, job.request, degrees, there, 2, job.strategy)
    plan = Plan(degrees, 2, job.strategy.label)
    return simulate(job, plan, ClusterEfforts(plan, costs, there)).seconds


@pytest.mark.parametrize("cluster", ["h100x8", "rtx4090x8"])
@pytest.mark.parametrize("job", [JOINT, CAUSAL], ids=["joint", "causal"])
def test_no_degrees_are_predicted_to_be_sooner(job: Job, cluster: str) -> None:
    found = choose_degrees(of(4), job, 2, on(cluster))
    legal = [degrees for degrees in all_degrees(4) if WAN_1_3B.heads % degrees.ulysses == 0]
    times = {each: seconds(job, each, cluster) for each in legal if each.clip == 1}
    assert times[found.degrees] == pytest.approx(min(times.values()), rel=2e-3)
    assert f"by {cluster}" in found.why and "would take" in found.why


def test_what_is_settled_stays() -> None:
    found = choose_degrees(of(4, ring=2), JOINT, 2, on("h100x8")).degrees
    assert found.world == 4 and found.ring == 2
    whole = of(4, cfg=1, stages=2, clip=1, ring=2, ulysses=1)
    assert choose_degrees(whole, JOINT, 2, never).degrees == Degrees(stages=2, ring=2)
    assert choose_degrees(of(1), JOINT, 2, never).degrees == Degrees()


def test_fit_does_not_look_and_neither_does_what_has_no_end() -> None:
    rule = choose_degrees(replace(of(4), plan="fit"), JOINT, 2, never)
    assert rule.degrees == Degrees.fit(4, WAN_1_3B, 5.0, {})
    assert "--plan fit" in rule.why
    endless = replace(CAUSAL, request=replace(REQUEST, seconds=None))
    assert choose_degrees(of(4), endless, 2, never).degrees == rule.degrees


def test_what_can_not_be_says_why() -> None:
    with pytest.raises(UserError, match=r"no plan of 2 workers .*rtx4090x8: .* needs .* GiB"):
        choose_degrees(of(2), replace(JOINT, spec=WAN_14B), 2, on("rtx4090x8"))
    with pytest.raises(UserError, match="must multiply to the number of workers"):
        choose_degrees(of(3, ring=2), JOINT, 2, on("h100x8"))


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", "nvlink4"),
        ("NVIDIA H100 PCIe", "h100", "pcie5"),
        ("NVIDIA H200", "h200", "nvlink4"),
        ("NVIDIA H20", "h20", "nvlink4"),
        ("NVIDIA A100-SXM4-80GB", "a100", "nvlink3"),
        ("NVIDIA GeForce RTX 4090", "rtx4090", "pcie4-host"),
        ("NVIDIA GeForce RTX 4090 D", "rtx4090d", "pcie4-host"),
        ("NVIDIA L40S", "l40s", "pcie4"),
    ],
)
def test_gpus_are_known_by_their_names(name: str, kind: str, link: str) -> None:
    device, joined, by = describe_gpu(name)
    assert replace(device, name=kind) == load_device(kind) and device.name == name
    assert joined == load_link(link) and by == f"what is known of {kind}"


def test_an_unknown_gpu_is_taken_for_another_and_that_is_said() -> None:
    device, _, by = describe_gpu("NVIDIA Z9")
    assert device.peak_of("bfloat16") > 1e14 and by == "NVIDIA Z9, taken for an a100"


def test_hosts_become_nodes() -> None:
    described = describe_devices(CPU, of(5), Hosts((3, 2))).cluster
    assert [node.count for node in described.nodes] == [3, 2]
    assert all(node.shares_memory for node in described.nodes)
    gpus = Hosts((8, 4), "cuda", "H100")
    far = describe_devices(torch.device("cuda"), of(12), gpus).cluster
    assert [node.count for node in far.nodes] == [8, 4] and far.devices[0].name == "H100"


def test_a_measured_machine_is_gone_by_where_it_suits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert describe_devices(CPU, of(2), ALL_HERE).by == "a guess of this CPU"
    text = (Path(__file__).parents[2] / "configs" / "device" / "cpu.yaml").read_text()
    device = "\n".join(f"      {line}" for line in text.splitlines() if line[0] != "#")
    device = device.replace("name: cpu", f"name: '{device_name(CPU)}'")
    Path("here.yaml").write_text(
        f"nodes:\n  - device:\n{device}\n    count: 2\n    link: loopback\n    copies: 1\n"
        "network: null\n"
    )
    assert describe_devices(CPU, of(2), ALL_HERE).by == "here.yaml"
    assert describe_devices(CPU, of(3), ALL_HERE).by == "a guess of this CPU"
    named = describe_devices(CPU, replace(of(2), cluster="h100x8"), ALL_HERE)
    assert named.by == "h100x8" and named.cluster == load_cluster("h100x8")
    with pytest.raises(UserError, match="9 workers need a device each, but h100x8 has 8"):
        describe_devices(CPU, replace(of(9), cluster="h100x8"), ALL_HERE)


def test_a_run_keeps_its_plan() -> None:
    settings = read_settings(
        model="tinyworld", strategy=None, steps=None, size=None, settings=[], workers=2,
        seconds=2.0, device="cpu",
    )  # fmt: skip
    draft = make_draft(settings, [Cue(0.0, PROMPT)], 2.0)
    assert draft.degrees.world == 2 and "are predicted, by a guess of this CPU" in draft.why
    plan = new_manifest(draft, None)["plan"]
    told = {"degrees": draft.degrees.describe(), "decode": "rank 0", "why": draft.why}
    assert plan == told
    again = Order.from_json(Order(draft, 1).to_json()).draft
    assert again.degrees == draft.degrees and again.why == ""  # nothing was chosen there
