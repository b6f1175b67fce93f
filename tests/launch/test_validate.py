"""The simulator against published figures, and how figures are read."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from longtake.launch.validate import (
    COLUMNS,
    as_dict,
    find_cluster,
    find_device,
    read_figures,
    stacks,
    summary,
    validate,
)
from longtake.scheduler.errors import UserError
from longtake.scheduler.published import Skip
from longtake.scheduler.validation import Outcome
from longtake.scheduler.validation import validate as validate_figures

FIGURES = Path(__file__).parent / "figures.csv"
ROW = {
    "id": "one",
    "system": "Nobody's",
    "model": "wan2.1-1.3b",
    "task": "t2v",
    "height": "480",
    "width": "832",
    "pixel_frames": "81",
    "steps": "50",
    "cfg": "2",
    "gpu": "H100",
    "gpus": "1",
    "interconnect": "-",
    "parallelism": "none",
    "metric": "e2e_s",
    "value": "95",
    "source": "P",
    "note": "",
}


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return validate_figures(read_figures(FIGURES), stacks(), find_cluster)


def outcome(tmp_path: Path, *rows: dict[str, str]) -> list[Outcome]:
    file = tmp_path / "figures.csv"
    lines = [",".join((ROW | row)[name] for name in ROW) for row in rows]
    file.write_text("\n".join([",".join(ROW), *lines]))
    return validate_figures(read_figures(file), stacks(), find_cluster)


def test_figures_that_settled_nothing_are_met(outcomes: list[Outcome]) -> None:
    errors = [abs(o.error) for o in outcomes if not o.settles and o.error is not None]
    assert len([o for o in outcomes if o.skipped is None]) >= 32
    assert len(errors) >= 20
    assert median(errors) <= 0.08
    assert max(errors) <= 0.20


def test_a_figure_settles_one_number_at_most(outcomes: list[Outcome]) -> None:
    by = [id_ for stack in stacks() for id_ in (*stack.settled_by.values(), stack.floor_by) if id_]
    assert len(by) == len(set(by))
    assert {o.figure.id for o in outcomes if o.settles} == set(by)
    for stack in stacks():
        assert stack.settled_by.keys() == stack.software.efficiency.keys()
    for found in outcomes:
        if found.settles:
            assert found.error == pytest.approx(0, abs=2e-3), found.figure.id


def test_predictions_of_known_stacks_never_look_at_what_was_published(
    outcomes: list[Outcome], tmp_path: Path
) -> None:
    file = tmp_path / "blank.csv"
    table = FIGURES.read_text().splitlines()
    value = table[1].split(",").index("value")
    blank = [",".join("" if i == value else x for i, x in enumerate(r.split(","))) for r in table]
    file.write_text("\n".join([*table[:2], *blank[2:]]))
    blind = validate_figures(read_figures(file), stacks(), find_cluster)
    assert [o.predicted for o in blind] == [o.predicted for o in outcomes]


def test_what_can_not_be_expressed_says_why(outcomes: list[Outcome]) -> None:
    skipped = {o.figure.id: o.skipped or "" for o in outcomes if o.skipped is not None}
    assert "nuwa-xl is not known" in skipped["nuwa-xl"]
    assert "speedup has no definition" in skipped["dualparal-latency"] or (
        "wan2.1 is not known" in skipped["dualparal-latency"]
    )
    assert all(skipped.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpu": "Abacus"}, "no description of Abacus"),
        ({"gpus": "2", "interconnect": "string"}, "interconnect string"),
        ({"gpus": "12", "interconnect": "NVLink+IB", "parallelism": "usp"}, "no whole nodes"),
        ({"steps": ""}, "does not state steps"),
        ({"parallelism": "telepathy"}, "'telepathy' has no meaning"),
        ({"metric": "joy"}, "joy has no definition"),
        ({"model": "wan9"}, "shape of wan9 is not known"),
        (
            {"gpus": "8", "interconnect": "NVLink", "parallelism": "ring 3"},
            "does not make 8 devices",
        ),
        (
            {"gpus": "8", "interconnect": "NVLink", "parallelism": "ulysses 8"},
            "8 does not divide 12 heads",
        ),
        ({"parallelism": "one denoising step a GPU"}, "50 steps take 50 devices"),
        ({"pixel_frames": "0"}, "endless"),
    ],
)
def test_a_row_is_skipped_with_a_reason(tmp_path: Path, change: dict[str, str], words: str) -> None:
    (found,) = outcome(tmp_path, change)
    assert found.predicted is None
    assert words in (found.skipped or "")


def test_an_unknown_stack_is_settled_by_its_smallest_row(tmp_path: Path) -> None:
    two = {"id": "two", "gpus": "2", "interconnect": "NVLink", "parallelism": "ulysses"}
    large, one = outcome(tmp_path, two | {"value": "50"}, {})
    assert (large.rests_on, large.settles, one.settles) == ("one", False, True)
    assert one.predicted == pytest.approx(95, rel=1e-3)
    assert large.predicted is not None
    assert 95 / 2 < large.predicted < 95
    slower, _ = outcome(tmp_path, two | {"value": "50"}, {"value": "190"})
    assert slower.predicted is not None
    assert slower.predicted > 1.9 * large.predicted


def test_one_row_of_an_unknown_stack_rests_on_none(tmp_path: Path) -> None:
    (found,) = outcome(tmp_path, {})
    assert (found.rests_on, found.settles) == (None, False)
    assert found.error is not None
    assert abs(found.error) < 0.3


def test_same_means_the_row_before(tmp_path: Path) -> None:
    first = {
        "steps": "4",
        "cfg": "1",
        "pixel_frames": "0",
        "gpus": "5",
        "interconnect": "NVLink",
        "parallelism": "one denoising step a GPU and one GPU for the VAE",
        "metric": "fps",
        "value": "20",
    }
    _, after, last = outcome(
        tmp_path,
        first,
        first | {"id": "b", "parallelism": "same with faster kernels"},
        first | {"id": "c", "parallelism": "same", "metric": "ttff_s", "value": "1"},
    )
    assert after.predicted is not None
    assert last.predicted is not None
    assert 12 / after.predicted < last.predicted < 5 * 12 / after.predicted


def test_more_devices_sizes_and_degrees_are_read_without_new_code(tmp_path: Path) -> None:
    one = {"system": "Wan2.1 official", "model": "wan2.1-14b", "gpu": "A100-80G"}
    many = one | {"interconnect": "NVLink+IB", "gpus": "16"}
    small, ring, mixed, large = outcome(
        tmp_path,
        one,
        many | {"parallelism": "cfg2 x ring 2 x ulysses 4"},
        many | {"parallelism": "sequence + cfg"},
        one | {"height": "720", "width": "1280"},
    )
    assert None not in (small.predicted, ring.predicted, mixed.predicted, large.predicted)
    assert small.predicted / 16 < ring.predicted < small.predicted / 8  # type: ignore[operator]
    assert large.predicted > 3 * small.predicted  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("A100-80G", "a100"),
        ("NVIDIA H100 SXM5 80GB", "h100"),
        ("RTX4090", "rtx4090"),
        ("GeForce RTX 4090 D", "rtx4090d"),
        ("4090", "rtx4090"),
        ("L40S", "l40s"),
        ("L40", "l40"),
        ("GB200", "b200"),
    ],
)
def test_devices_by_their_usual_names(name: str, device: str) -> None:
    assert find_device(name).name == device


def test_an_unknown_device_is_skipped() -> None:
    with pytest.raises(Skip, match="no description of a device that is not stated"):
        find_device("")


def test_json_and_table(tmp_path: Path) -> None:
    file = tmp_path / "two.csv"
    lines = FIGURES.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[-1]]))
    known, skipped = json.loads(validate(file, as_json=True))
    assert known["id"] == "wan-a100-1"
    assert known["published"] == 3342.6
    assert known["predicted"] == pytest.approx(3342.6, rel=2e-3)
    assert known["calibration"] is True
    assert skipped.keys() == {"id", "published", "skipped"}
    text = validate(file)
    assert "itself" in text
    assert "1 of 2 figures expressed" in text


def test_the_summary_leaves_out_what_settled(outcomes: list[Outcome]) -> None:
    told = [as_dict(o) for o in outcomes]
    apart = [entry for entry in told if entry.get("calibration") is False]
    assert f"{len(apart)} of them settled nothing" in summary(outcomes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",".join(COLUMNS[:-1]) + "\n", "missing column 'note'"),
        (",".join(ROW) + "\n" + ",".join((ROW | {"steps": "some"}).values()), "line 2: steps must"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_figures(file)
    with pytest.raises(UserError, match="no file"):
        read_figures(tmp_path / "none.csv")
