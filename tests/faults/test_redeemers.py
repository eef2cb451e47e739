"""64 redeemers of one coupon, their processes killed, the store killed: exactly one wins, in every round.

`python -m bench.redeemers` runs 10,000 rounds of the same.
"""

from pathlib import Path

from bench.redeemers import Faults, storm


def test_one_wins(tmp_path: Path, seed: int) -> None:
    """40 rounds, 5 killed processes, a store killed twice: one winner each, who stays it."""
    wrong, count = storm(tmp_path, 40, Faults(kills=5, store_kills=2), seed)
    assert not wrong, wrong
    assert (count["rounds"], count["won"], count["refused"]) == (40, 40, 40 * 63)
    assert (count["kills"], count["store_kills"]) == (5, 2)


def test_the_check_sees(tmp_path: Path, seed: int) -> None:
    """With looking apart from redeeming the same check turns red, without any kill."""
    wrong, _ = storm(tmp_path, 60, Faults(kills=0, store_kills=0), seed, "look, then redeem")
    assert any("purchases were told that they have the coupon" in each for each in wrong), wrong


def test_the_check_sees_a_forgetful_store(tmp_path: Path, seed: int) -> None:
    """Without its append-only file a killed store knows no winner any more."""
    wrong, _ = storm(tmp_path, 6, Faults(kills=0, store_kills=2), seed, "no append-only file")
    assert wrong
