"""--launcher and --ray-address: what surrounds a run by the user's word."""

from __future__ import annotations

import pytest

from longtake.launch.surroundings import LAUNCHERS, Surroundings, choose, find
from longtake.scheduler.errors import UserError

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
RAY = {"RAY_ADDRESS": "10.0.0.2:6379"}


def driver(address: str) -> Surroundings:
    return Surroundings("ray", 0, 1, 0, 1, address, 0)


@pytest.mark.parametrize("environment", [{}, TORCHRUN, RAY, TORCHRUN | RAY])
def test_auto_is_what_the_variables_tell(environment: dict[str, str]) -> None:
    assert choose(environment, "auto", None) == find(environment)


def test_local_is_alone_whatever_surrounds_it() -> None:
    assert choose(TORCHRUN | RAY, "local", None) is None


def test_ray_is_where_one_says_then_where_the_variable_says_then_here() -> None:
    assert choose(RAY, "auto", "10.0.0.3:1") == driver("10.0.0.3:1")
    assert choose(RAY, "ray", "10.0.0.3:1") == driver("10.0.0.3:1")
    assert choose(TORCHRUN | RAY, "ray", None) == driver("10.0.0.2:6379")
    assert choose({}, "ray", None) == driver("auto")


def test_a_driver_of_ray_may_ask_for_any_number_of_workers() -> None:
    assert driver("auto").workers(7) == 7
    assert driver("auto").workers(None) is None


@pytest.mark.parametrize(
    ("launcher", "address", "told"),
    [
        ("mpi", None, f"one of {', '.join(LAUNCHERS)}; got 'mpi'"),
        ("slurm", "10.0.0.3:1", "--ray-address is for --launcher ray"),
        ("slurm", None, "srun did not start this process"),
        ("torchrun", None, "torchrun did not start this process"),
    ],
)
def test_what_can_not_be_is_told(launcher: str, address: str | None, told: str) -> None:
    with pytest.raises(UserError, match="--launcher") as caught:
        choose(RAY, launcher, address)
    assert told in str(caught.value) and "\n" not in str(caught.value)
