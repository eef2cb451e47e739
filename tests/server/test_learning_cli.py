"""`nearcast evaluate-policy` and `nearcast evaluate-uplift`, on logs of a known world."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree as ET

import click.testing
import numpy as np
import pandas as pd
import pytest

from models.features.redeem import REDEEM
from models.scorer import Scorer
from models.training.logged import LogWriter, read_choices
from models.training.uplift import read_units
from server.cli import main

MODEL = Path(str(resources.files("models").joinpath("artifacts", "redeem")))


def nearcast(*arguments: str | Path) -> click.testing.Result:
    """Run a command."""
    result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def value_of(number: int, promotion: str) -> float:
    """What a redemption is worth in the decision of this number, cents."""
    return 50.0 + (7 * number if promotion == "tea" else 11 * number + 5) % 200


def cost_of(number: int) -> float:
    """What a message costs there: from a hundredth of a cent to some euros."""
    return float(10.0 ** (number % 9 / 2 - 2))


def rows_of(number: int, chosen: str | None, probabilities: Mapping[str, float], **chosen_fields: object) -> list[dict]:  # type: ignore[type-arg]
    """The rows of one decision between two offers and nothing. Inputs, values and costs are its own, from so small to
    so large that a model has to choose each of them somewhere.
    """
    random = np.random.default_rng(number)
    shared = {
        "decision": f"d{number}",
        "customer": f"c{number // 2}",
        "at": number,
        "outcome": "offer" if chosen else "nothing",
    }
    nothing = {"position": -1, "kind": "nothing", "expected_cents": 0.0, "value_cents": 0.0, "cost_cents": 0.0}
    nothing |= {"chosen": chosen is None, "probability": 1 - sum(probabilities.values())}
    rows = [shared | nothing | ({} if chosen else {"reward_cents": 0.0} | chosen_fields)]
    for place, (name, probability) in enumerate(probabilities.items()):
        values = np.abs(random.normal(size=len(REDEEM.columns))).tolist()
        inputs = {f"f_{column}": value for column, value in zip(REDEEM.columns, values, strict=True)}
        row = shared | inputs | {"position": place, "promotion": name, "kind": "offer", "propensity": 0.1}
        row |= {"value_cents": value_of(number, name), "cost_cents": cost_of(number)}
        row |= {"expected_cents": 1.0, "probability": probability}
        row |= {"chosen": name == chosen}
        rows.append(row | (chosen_fields if name == chosen else {}))
    return rows


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred decisions drawn with known probabilities, and some that no policy can be judged by."""
    path = tmp_path_factory.mktemp("logs") / "log.parquet"
    random = np.random.default_rng(4)
    with LogWriter(path, REDEEM.columns) as writer:
        for number in range(400):
            probabilities = {"coffee": 0.2, "tea": 0.5} if number % 3 else {"tea": 0.1, "coffee": 0.6}
            place = np.searchsorted(np.cumsum([0.3, *probabilities.values()]), random.random())
            chosen = [None, *probabilities][int(place)]
            redeemed = bool(random.random() < 0.3)
            outcome = (
                {"redeemed": redeemed, "reward_cents": value_of(number, chosen) * redeemed - cost_of(number)}
                if chosen
                else {}
            )
            for row in rows_of(number, chosen, probabilities, **outcome):
                writer.add(row)
        tried = {"coffee": 0.5, "tea": 0.25}
        known = {"redeemed": False, "reward_cents": -1.0}
        unusable = [
            [row | {"kind": "assist"} for row in rows_of(1_000, "tea", tried, **known)],
            [row | {"probability": None} for row in rows_of(1_001, "tea", tried, **known)],
            rows_of(1_002, "tea", tried),
            rows_of(1_003, None, {}),
            # Held out of it, though it was stopped for another reason first.
            [
                row | {"stopped_by": "not_worth_it", "candidate_held_out": "promotion" in row}
                for row in rows_of(1_004, None, {"tea": 0.0})
            ],
            [row | {f"f_{REDEEM.columns[3]}": None} for row in rows_of(1_005, "tea", tried, **known)],
        ]
        for rows in unusable:
            for row in rows:
                writer.add(row)
    return path


def test_a_model_is_judged_by_what_it_would_have_done(log: Path) -> None:
    """The command's figures are those of the formulas, worked out here by the shipped model's own scores."""
    result = nearcast("evaluate-policy", log, "--model", MODEL, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    frame = pd.read_parquet(log).iloc[: 400 * 3].reset_index(drop=True)
    offers = frame.promotion.notna()
    scorer = Scorer.load(MODEL)
    rows = frame.loc[offers, [f"f_{name}" for name in REDEEM.columns]].to_numpy(dtype=np.float32)
    frame["expected"] = 0.0
    frame.loc[offers, "expected"] = np.array(scorer.score(rows)) * frame.value_cents[offers]
    frame["expected"] -= frame.cost_cents
    best = frame.loc[frame.groupby("decision", sort=False).expected.idxmax()].set_index("decision")
    done = frame[frame.chosen].set_index("decision")
    same = (best.position == done.position).astype(float)
    # All three actions are the model's choice somewhere, or this would show little.
    assert set(best.promotion.fillna("nothing")) == {"nothing", "coffee", "tea"}
    assert found["estimates"]["ips"]["cents"] == pytest.approx((same / done.probability * done.reward_cents).mean())
    assert found["agreement"] == pytest.approx(same.mean())
    assert found["logged"]["cents"] == pytest.approx(done.reward_cents.mean())
    assert (found["decisions"], found["customers"], found["untried"]) == (400, 200, 0.0)
    assert found["model"] == scorer.version
    assert found["left_out"] == {
        "an alert or a notice was possible": 1,
        "nothing but nothing was possible": 2,
        "no probabilities were noted": 1,
        "no inputs of the model": 1,
        "what came of it is not known": 1,
    }


def test_the_table_for_people(log: Path) -> None:
    """Logged, nothing and four estimates, with their intervals; the same figures as for programs."""
    found = json.loads(nearcast("evaluate-policy", log, "--model", MODEL, "--json").stdout)
    result = nearcast("evaluate-policy", log, "--model", MODEL)
    assert result.stderr == ""
    robust = next(line for line in result.stdout.splitlines() if "doubly robust" in line)
    low, high = found["estimates"]["dr"]["interval"]
    assert f"{found['estimates']['dr']['cents']:.3f}" in robust
    assert f"{low:.3f} to {high:.3f}" in robust
    assert "400 decisions about 200 customers" in result.stdout


def test_a_log_without_chance_is_warned_of(tmp_path: Path) -> None:
    """Never anything but tea: what the model would do otherwise, nobody tried, and so few decisions tell little."""
    path = tmp_path / "log.parquet"
    with LogWriter(path, REDEEM.columns) as writer:
        for number in range(50):
            for row in rows_of(
                number, "tea", {"coffee": 0.0, "tea": 1.0}, redeemed=False, reward_cents=-cost_of(number)
            ):
                writer.add(row)
    result = nearcast("evaluate-policy", path, "--model", MODEL)
    assert result.exit_code == 0
    assert "was never possible in the log" in result.stderr
    assert "too few to go by" in result.stderr


def test_actions_stand_in_the_servers_order(log: Path) -> None:
    """Of equals the server takes the first by promotion: the log's actions come nothing first, then by promotion."""
    choices = read_choices(log)
    assert (np.diff(choices.decision) >= 0).all()
    expected = [[0.0, value_of(number, "coffee"), value_of(number, "tea")] for number in range(400)]
    assert choices.value_cents.reshape(-1, 3).tolist() == expected


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand customers, a fifth held out; the offer moves those whose first input is large."""
    path = tmp_path_factory.mktemp("logs") / "log.parquet"
    random = np.random.default_rng(9)
    with LogWriter(path, REDEEM.columns) as writer:
        for number in range(1_000):
            is_held = number % 5 == 0
            rows = rows_of(2 * number, None if is_held else "tea", {"tea": float(not is_held)})
            likes = rows[1][f"f_{REDEEM.columns[0]}"] > 0.7
            bought = bool(random.random() < 0.2 + 0.4 * (likes and not is_held))
            for row in rows:
                outcome = {"purchased_after": bought} if row["chosen"] else {}
                writer.add(row | outcome | {"would_be_promotion": "tea" if is_held else None, "held_out": is_held})
    return path


def test_uplift_of_a_log(held: Path, tmp_path: Path) -> None:
    """Lift, rankings and their curves: for programs, for people, and as a picture."""
    picture = tmp_path / "qini.svg"
    found = json.loads(nearcast("evaluate-uplift", held, "--json").stdout)
    units = read_units(held)
    lift = found["overall"]["lift"]
    assert lift == pytest.approx(units.outcome[units.treated].mean() - units.outcome[~units.treated].mean())
    assert (found["overall"]["offered"], found["overall"]["held_out"]) == (800, 200)
    low, high = found["overall"]["interval"]
    # Of the normal distribution's absolute values 0.484 are above 0.7: so many are moved by 0.4.
    assert low < 0.4 * 0.484 < high
    result = nearcast("evaluate-uplift", held, "--out", picture)
    assert f"{found['rankings']['two models']['qini']:.4f}" in result.stdout
    assert f"{lift:+.1%}" in result.stdout
    svg = ET.fromstring(picture.read_text(encoding="utf-8"))
    words = " ".join(svg.itertext())
    assert all(name in words for name in (*found["rankings"], "chance", "share of customers offered"))


def test_what_cannot_be_judged(log: Path, tmp_path: Path) -> None:
    """One line that names the fault and the file, exit code 2, and no file made."""
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"no parquet")
    other = tmp_path / "other.parquet"
    pd.DataFrame({"x": [1]}).to_parquet(other)
    empty = tmp_path / "empty.parquet"
    with LogWriter(empty, REDEEM.columns):
        pass
    narrow = tmp_path / "narrow.parquet"
    pd.read_parquet(log).drop(columns=[f"f_{REDEEM.columns[0]}"]).to_parquet(narrow)
    plot = tmp_path / "plot.svg"
    for arguments, complaint in (
        (("evaluate-policy", broken, "--model", MODEL), "is no Parquet file, or damaged"),
        (("evaluate-policy", other, "--model", MODEL), "has no column decision"),
        (("evaluate-policy", empty, "--model", MODEL), "no decision can be used"),
        (("evaluate-policy", narrow, "--model", MODEL), f"lacks the model's inputs {REDEEM.columns[0]}"),
        (("evaluate-policy", log, "--model", tmp_path), "can't be read"),
        (("evaluate-uplift", log, "--out", plot), "no promotion of which some customers were held out"),
        (("evaluate-uplift", empty, "--out", plot), "no promotion of which some customers were held out"),
        (("evaluate-uplift", log, "--outcome", "position"), "no promotion of which"),
    ):
        result = nearcast(*arguments)
        assert result.exit_code == 2, arguments
        assert complaint in result.stderr
        assert result.stderr.count("\n") == 1
    assert not plot.exists()
