"""What a score costs: features of real customers, the model, and both together against bare ONNX Runtime.

    python -m bench.scoring [--customers 200] [--offers 8]

Customers are households of the public purchase history, as the fold leaves them after a year, each with 50 messages;
offers are its last campaigns. The peers score the same rows in the same run: ONNX Runtime alone (rows as one array, no
checks), and scikit-learn's `predict_proba` of the same algorithm. `ort_raw_ratio` is what ONNX Runtime alone takes for
batches of about 100 rows, over what the server's way takes for the same batches from customers to probabilities:
features, checks and all. With a logistic regression that is mostly the features.

Each figure is the best of several runs: the others were disturbed. The last line is one JSON object.
"""

import argparse
import json
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bench.parts import best_us
from models.fallback import Guard
from models.features import redeem
from models.manifest import MODEL_FILE
from models.registry import Serving
from models.scorer import Scorer
from models.training.extract import extract
from models.training.history import Campaign, History, load, package_folder
from models.training.redeem import RedeemTask
from nearcast import fold
from nearcast.customer import Customer, SentMessage
from nearcast.ids import DecisionId, MessageId, PromotionId
from nearcast.world import Promotion, What, Words

SIZES = (1, 100, 1_000)
_MESSAGES = 50
#: Of the messages, one in so many was redeemed.
_REDEEMED = 10
_FOLDER = Path(str(resources.files("models").joinpath("artifacts", "redeem")))


def customers_of(history: History) -> list[Customer]:
    """Everybody at the end of the history."""
    rules = fold.FoldRules()
    made = []
    for household in history.households:
        customer = Customer(id=household)
        for purchase in history.purchases(household):
            fold.apply(customer, purchase, history.segments, rules)
        customer.messages = [
            SentMessage(
                MessageId(f"m{number}"),
                DecisionId(f"d{number}"),
                PromotionId("p"),
                history.begins_ms,
                "opened" if number % _REDEEMED else "redeemed",
                "websocket",
            )
            for number in range(_MESSAGES)
        ]
        made.append(customer)
    return made


def measure(customers: int, offers: int) -> dict[str, object]:
    history = load(package_folder(), customers)
    people = customers_of(history)
    campaigns = [campaign for campaign in history.campaigns if campaign.promotion.what.segments][-offers:]
    scorer = Scorer.load(_FOLDER)
    serving = Serving(Guard(scorer))
    at_ms = history.ends_ms

    def features() -> list[list[float]]:
        return [row for customer in people for row in rows_of(customer, campaigns, at_ms)]

    narrow = [
        Promotion(
            id=f"narrow-{number}",
            name="",
            trigger="enter",
            what=What(segments=campaign.promotion.what.segments[:1]),
            words={"en": Words(title="One segment")},
        )
        for number, campaign in enumerate(campaigns)
    ]

    def features_of_narrow() -> None:
        for customer in people:
            part = redeem.customer_part(customer, at_ms)
            for promotion in narrow:
                redeem.candidate_row(part, promotion, None)

    rows = features()
    ids = [customer.id for customer in people for _ in campaigns]
    given = np.asarray(rows, dtype=np.float32)
    figures: dict[str, object] = {"rows": len(rows), "features": len(rows[0]), "algorithm": scorer.manifest.algorithm}
    figures["feature_us_per_row"] = feature_us = best_us(features, len(rows))
    figures["feature_us_per_row_one_segment"] = best_us(features_of_narrow, len(rows))
    figures["segments_per_offer"] = sum(len(each.promotion.what.segments) for each in campaigns) / len(campaigns)
    raw_us = {size: bare(scorer, np.resize(given, (size, given.shape[1]))) for size in SIZES}
    for size in SIZES:
        some = [rows[number % len(rows)] for number in range(size)]
        whose = [ids[number % len(ids)] for number in range(size)]
        figures[f"us_per_row_{size}"] = best_us(partial(serving.score, some, whose), size)
        figures[f"raw_us_per_row_{size}"] = raw_us[size]
    together = max(1, 100 // len(campaigns))
    groups = [people[first : first + together] for first in range(0, len(people), together)]

    def whole() -> None:
        for group in groups:
            made = [row for customer in group for row in rows_of(customer, campaigns, at_ms)]
            serving.score(made, [customer.id for customer in group for _ in campaigns])

    figures["whole_us_per_row"] = whole_us = best_us(whole, len(rows))
    alone_us = bare(scorer, given[: together * len(campaigns)])
    figures["ort_raw_ratio"] = alone_us / whole_us
    figures["ort_raw_ratio_without_features"] = alone_us / max(whole_us - feature_us, 1e-9)
    dataset = extract(history, RedeemTask())
    model = RedeemTask().algorithms(scorer.manifest.seed)[scorer.manifest.algorithm]
    model.fit(dataset.rows, dataset.outcome)
    for size in SIZES:
        doubles = np.resize(given.astype(np.float64), (size, given.shape[1]))
        figures[f"sklearn_us_per_row_{size}"] = best_us(partial(model.predict_proba, doubles), size)
    return figures


def rows_of(customer: Customer, campaigns: list[Campaign], at_ms: int) -> list[list[float]]:
    """A row for each offer, as the engine makes them for one moment."""
    part = redeem.customer_part(customer, at_ms)
    return [redeem.candidate_row(part, campaign.promotion, None) for campaign in campaigns]


def bare(scorer: Scorer, rows: np.ndarray) -> float:
    """ONNX Runtime with the server's options and nothing else."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession((_FOLDER / MODEL_FILE).read_bytes(), options, providers=["CPUExecutionProvider"])
    taken, given = session.get_inputs()[0].name, [session.get_outputs()[1].name]
    rows = scorer.choose(rows)
    return best_us(lambda: session.run(given, {taken: rows}), len(rows), 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--customers", type=int, default=200)
    parser.add_argument("--offers", type=int, default=8)
    given = parser.parse_args()
    figures = measure(given.customers, given.offers)
    print(f"{figures['rows']} rows of {figures['features']} features; {figures['algorithm']}")
    print(f"{'microseconds per row, batches of':36}" + "".join(f"{size:>10,}" for size in SIZES))
    for name, prefix in (("nearcast", ""), ("ONNX Runtime alone", "raw_"), ("scikit-learn", "sklearn_")):
        print(f"{name:36}" + "".join(f"{figures[f'{prefix}us_per_row_{size}']:10.3f}" for size in SIZES))
    print(
        f"features: {figures['feature_us_per_row']:.2f} a row; {figures['feature_us_per_row_one_segment']:.2f} for "
        f"offers on one segment (these have {figures['segments_per_offer']:.0f}); "
        f"features and scores: {figures['whole_us_per_row']:.2f}"
    )
    print(f"ONNX Runtime alone takes {figures['ort_raw_ratio']:.2f} of that")
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"bench": "scoring", **rounded}))


if __name__ == "__main__":
    main()
