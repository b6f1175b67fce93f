"""Rank, address and port come out of the variables of whoever started the process."""

from __future__ import annotations

from itertools import pairwise

import pytest

from longtake.launch.surroundings import Surroundings, expand_counts, expand_hosts, find
from longtake.scheduler.errors import UserError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "host7",
    "MASTER_PORT": "29500",
}
ALLOCATION = {  # what the shell of salloc sees
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "gpu[01-03]",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_NTASKS": "5",
}
BATCH = {**ALLOCATION, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {
    **ALLOCATION,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[02-03]",
    "SLURM_STEP_TASKS_PER_NODE": "3,2",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
OF_A_STEP = sorted(STEP.keys() - {"SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_STEP_ID"})


def test_torchrun() -> None:
    assert find(TORCHRUN) == Surroundings("torchrun", 5, 8, 1, 4, "host7", 29500)


@pytest.mark.parametrize(("agent", "listen"), [("True", False), ("False", True), (None, True)])
def test_rank_0_does_not_listen_where_the_agent_of_torchrun_does(
    agent: str | None, listen: bool
) -> None:
    mark = {} if agent is None else {"TORCHELASTIC_USE_AGENT_STORE": agent}
    found = find({**TORCHRUN, **mark})
    assert found is not None and found.listen is listen


def test_number_of_workers_is_that_of_the_launcher() -> None:
    found = find(TORCHRUN)
    assert found is not None and found.workers(None) == found.workers(8) == 8
    with pytest.raises(UserError, match="torchrun started 8 workers, but --workers asks for 4"):
        found.workers(4)


def test_torchrun_inside_srun_counts() -> None:
    assert find({**STEP, **TORCHRUN}) == find(TORCHRUN)


@pytest.mark.parametrize("name", TORCHRUN)
def test_half_set_torchrun_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} is not set, but .*; torchrun sets all"):
        find({key: value for key, value in TORCHRUN.items() if key != name})


def test_an_address_alone_is_no_world() -> None:
    assert find({"MASTER_ADDR": "host7", "MASTER_PORT": "29500"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "8"}, "rank 8 .* in a world of 8"),
        ({"RANK": "0"}, r"rank 0 \(local rank 1\)"),
        ({"LOCAL_RANK": "4"}, "local rank 4 of 4"),
        ({"LOCAL_WORLD_SIZE": "9"}, "local rank 1 of 9 in a world of 8"),
        ({"RANK": "-1"}, "RANK must be a whole number, got '-1'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number, got 'two'"),
        ({"MASTER_PORT": "65536"}, r"MASTER_PORT must be within 1 \.\. 65535, got 65536"),
    ],
)
def test_wrong_torchrun_is_told(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find({**TORCHRUN, **changes})


def test_step_of_srun() -> None:
    found = find(STEP)
    assert found is not None and found.launcher == "slurm" and found.address == "gpu02"
    assert (found.rank, found.world, found.local_rank, found.local_world) == (4, 5, 1, 2)


@pytest.mark.parametrize("step", [None, 0xFFFFFFFA, 0xFFFFFFFB])
def test_allocation_without_srun_is_a_world_of_its_own(step: int | None) -> None:
    """The last are the numbers that SLURM gives to a shell of salloc and to a batch script."""
    mark = {} if step is None else {"SLURM_STEP_ID": str(step)}
    assert find({**ALLOCATION, **mark}) is None
    assert find({**BATCH, **mark}) is None


def test_one_node_needs_no_name() -> None:
    one = {"SLURM_STEP_NODELIST": "gpu02", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NTASKS": "2"}
    place = {"SLURM_NODEID": "0", "SLURM_PROCID": "1"}
    found = find({**STEP, **one, **place})
    assert found is not None and found.address == "127.0.0.1" and found.local_world == 2


def test_ports_are_the_same_for_all_of_a_step_and_differ_between_neighbours() -> None:
    def port(**changes: str) -> int:
        found = find({**STEP, **changes})
        assert found is not None
        return found.port

    assert port() == port(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0")
    jobs = [port(SLURM_JOB_ID=str(job)) for job in (1, 9_998, 9_999, 10_000, 67_108_863)]
    assert all(20000 <= number <= 29999 for number in jobs)
    assert all(one != other for one, other in pairwise(jobs))
    assert port() != port(SLURM_STEP_ID="1")


@pytest.mark.parametrize("name", OF_A_STEP)
def test_half_set_step_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} is not set, but .*; srun sets all"):
        find({key: value for key, value in STEP.items() if key != name})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_NTASKS": "4"}, "SLURM_NTASKS=4, .*SLURM_STEP_TASKS_PER_NODE=3,2"),
        ({"SLURM_STEP_NODELIST": "gpu02"}, "SLURM_STEP_NODELIST=gpu02"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID=2"),
        ({"SLURM_PROCID": "5"}, "rank 5 .* in a world of 5"),
        ({"SLURM_LOCALID": "2"}, "local rank 2 of 2"),
        ({"SLURM_STEP_ID": "x"}, "SLURM_STEP_ID must be a whole number, got 'x'"),
        ({"SLURM_STEP_NODELIST": "gpu[02"}, r"not a list of hosts .*: 'gpu\[02'"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3;2"}, "not a list of counts .*: '3;2'"),
    ],
)
def test_wrong_step_is_told(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find({**STEP, **changes})


def test_ray() -> None:
    assert find({"RAY_ADDRESS": "10.0.0.1:6379"}) == Surroundings(
        "ray", 0, 1, 0, 1, "10.0.0.1:6379", 0
    )
    assert find({**BATCH, "RAY_ADDRESS": "auto"}) == Surroundings("ray", 0, 1, 0, 1, "auto", 0)
    assert find({"RAY_ADDRESS": ""}) is None


def test_nothing_around() -> None:
    assert find({"PATH": "/bin"}) is None


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("vm", ["vm"]),
        ("gpu[01-03,07],login1", ["gpu01", "gpu02", "gpu03", "gpu07", "login1"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("a[1-2]b[1-2]", ["a1b1", "a1b2", "a2b1", "a2b2"]),
        ("node[3]-ib.cluster,x-1", ["node3-ib.cluster", "x-1"]),
    ],
)
def test_hosts(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    "text", ["", "a,", ",a", "a[1-]", "a[]", "a[3-1]", "a[1", "a]1[", "a b", "a[1,]", "a[[1]]"]
)
def test_wrong_hosts(text: str) -> None:
    with pytest.raises(UserError, match="not a list of hosts"):
        expand_hosts(text)


@pytest.mark.parametrize(
    ("text", "counts"), [("2", [2]), ("4(x2),1", [4, 4, 1]), ("1,2(x3)", [1, 2, 2, 2])]
)
def test_counts(text: str, counts: list[int]) -> None:
    assert expand_counts(text) == counts


@pytest.mark.parametrize("text", ["", "0", "2(x0)", "2(x", "2x3", "2,,1", "-1"])
def test_wrong_counts(text: str) -> None:
    with pytest.raises(UserError, match="not a list of counts"):
        expand_counts(text)
