"""The evaluation report: its figures are scikit-learn's, its page stands alone, and it names no customer."""

import dataclasses
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.async_api import async_playwright
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.inspection import partial_dependence
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import auc as area
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from models.scorer import Scorer
from models.training import plots
from models.training.dataset import Dataset, Example
from models.training.redeem import RedeemTask
from models.training.report_content import content_of
from models.training.report_document import Content
from models.training.report_evaluation import Evaluation, Fold, evaluate
from models.training.report_figures import (
    Curve,
    Ranking,
    effects,
    gain,
    importances,
    lift,
    resampled,
)
from models.training.report_pages import html, write
from models.training.train import Report
from nearcast.errors import ConfigurationError
from tests.services.browser import ARGUMENTS, chromium

TASK = RedeemTask()
TEST_FROM_MS = 1_502_755_200_000  # 2017-08-15
VOID = {"meta", "link", "br", "img", "input", "hr"}


@pytest.fixture(scope="module")
def marked(dataset: Dataset) -> Dataset:
    """The rows with ids that can't be taken for anything else."""
    return dataclasses.replace(dataset, customer=np.char.add("shopper-", dataset.customer))


@pytest.fixture(scope="module")
def scorer(trained: Report) -> Scorer:
    """The trained model, as it serves."""
    return Scorer.load(Path(trained.folder))


@pytest.fixture(scope="module")
def found(scorer: Scorer, marked: Dataset, trained: Report) -> Evaluation:
    """That model judged on those rows."""
    manifest = trained.manifest
    left_out = manifest.customers_left_out
    return evaluate(scorer, TASK, marked, manifest.data_fingerprint, left_out, 7, lambda _stage, _fraction: None)


@pytest.fixture(scope="module")
def content(found: Evaluation) -> Content:
    """The report on it."""
    return content_of(found, TASK.words)


@pytest.fixture(scope="module")
def page(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report as a file."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    write(content, out)
    return out


@pytest.fixture(scope="module")
def test(marked: Dataset) -> Dataset:
    """The rows that the model is judged on."""
    return marked.where(marked.at_ms >= TEST_FROM_MS)


@pytest.fixture(scope="module")
def scores(scorer: Scorer, test: Dataset) -> np.ndarray:
    """The model's, on those."""
    return np.array(scorer.score(test.rows.tolist()))


class Page(HTMLParser):
    """A page's tables by caption, its ids, and what it refers to; fails on tags that don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.labels: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        self.references += [str(given[name]) for name in ("src", "href", "xlink:href", "srcset") if name in given]
        self.references += re.findall(r"url\(([^)]*)\)", " ".join(value or "" for value in given.values()))
        if tag == "table":
            self.rows: list[list[str]] = []
            self.tables[str(given["aria-label"])] = self.rows
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        if tag == "svg":
            self.labels.append(str(given["aria-label"]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def parsed(page: Path) -> Page:
    """What a reader's program finds in it."""
    return Page(page.read_text(encoding="utf-8"))


def test_the_page_shows_scikit_learns_figures(parsed: Page, test: Dataset, scores: np.ndarray) -> None:
    """AUC, average precision, log-loss, Brier: as scikit-learn computes them on the same rows."""
    outcome = test.outcome
    shown = dict(zip(*(parsed.tables["On the test rows"][line] for line in (0, 1)), strict=True))
    assert shown[""] == "model"
    assert shown["AUC"] == f"{roc_auc_score(outcome, scores):.3f}"
    assert shown["average precision"] == f"{average_precision_score(outcome, scores):.3f}"
    assert shown["log-loss"] == f"{log_loss(outcome, scores):.4f}"
    assert shown["Brier"] == f"{brier_score_loss(outcome, scores):.4f}"


def test_the_bins_are_those_of_scikit_learn(parsed: Page, test: Dataset, scores: np.ndarray) -> None:
    """Ten of equal width; their intervals are Wilson's, their error is the one that is stated."""
    rates, predicted = calibration_curve(test.outcome, scores, n_bins=10)
    _, *rows = parsed.tables["Ten bins of equal width; empty ones are left out"]
    assert [row[1] for row in rows] == [f"{value:.3f}" for value in predicted]
    assert [row[2] for row in rows] == [f"{value:.3f}" for value in rates]
    counts = np.array([int(row[0].replace(",", "")) for row in rows])
    assert counts.sum() == len(scores)
    shown = dict(zip(*(parsed.tables["On the test rows"][line] for line in (0, 1)), strict=True))
    assert shown["ECE"] == f"{np.average(np.abs(rates - predicted), weights=counts):.3f}"


def test_curves_enclose_the_stated_areas(found: Evaluation, test: Dataset, scores: np.ndarray) -> None:
    """The ROC curve's area is the AUC; the gain curve is what sorting gives."""
    assert area(found.roc["model"].x, found.roc["model"].y) == pytest.approx(roc_auc_score(test.outcome, scores))
    best_first = test.outcome[np.argsort(-scores, kind="stable")]
    for count in (1, 50, 200, len(scores)):
        share = count / len(scores)
        assert lift(found.gain["model"], share) * share == pytest.approx(best_first[:count].sum() / best_first.sum())


def test_ties_are_taken_evenly() -> None:
    """With one score for all, every share of rows finds that share of outcomes."""
    curve = gain(np.array([True, False, False, True, False]), np.full(5, 0.3))
    assert [lift(curve, share) for share in (0.1, 0.5, 1.0)] == pytest.approx([1.0, 1.0, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=4, max_size=60))
def test_weighted_areas_are_scikit_learns(rows: list[tuple[bool, int, int]]) -> None:
    """With ties, and with rows of no weight, as the bootstrap has them."""
    outcome, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    found = Ranking(outcome, scores / 5).areas(weights.astype(np.float64))
    if outcome[weights > 0].any() and not outcome[weights > 0].all():
        expected = (
            roc_auc_score(outcome, scores, sample_weight=weights),
            average_precision_score(outcome, scores, sample_weight=weights),
        )
        assert found == pytest.approx(expected)
    else:
        assert np.isnan(found).all()


def test_whole_customers_are_resampled(test: Dataset) -> None:
    """All rows of a customer are drawn equally often, and as many customers as there are."""
    for weights in resampled(test.customer, seed=3)[:5]:
        per_customer = {customer: set(weights[test.customer == customer]) for customer in np.unique(test.customer)}
        assert all(len(drawn) == 1 for drawn in per_customer.values())
        assert sum(drawn.pop() for drawn in per_customer.values()) == len(np.unique(test.customer))


def test_differences_are_the_models_less_the_baselines(found: Evaluation, test: Dataset, scores: np.ndarray) -> None:
    """And each lies within its interval, which a baseline that is the model itself would have at zero."""
    train_rate = found.train.positives / found.train.rows
    prior = next(one for one in found.compared if one.name == "prior")
    assert prior.auc.value == pytest.approx(roc_auc_score(test.outcome, scores) - 0.5)
    expected = log_loss(test.outcome, scores) - log_loss(test.outcome, np.full(len(scores), train_rate))
    assert prior.log_loss.value == pytest.approx(expected)
    for one in found.compared:
        for interval in one[1:]:
            assert interval.low < interval.value < interval.high


def test_groups_and_weeks_hold_every_test_row(parsed: Page, test: Dataset, scores: np.ndarray) -> None:
    """Counts, rates, AUCs and intervals by campaign and by week, counted anew."""
    mondays = test.at_ms.astype("datetime64[ms]").astype("datetime64[D]")
    mondays = np.array([str(day - (day.astype("datetime64[D]").astype(int) + 3) % 7) for day in mondays])
    for caption, name_of in (
        ("By group, in order of time", test.group),
        ("By calendar week; the date is its Monday", mondays),
    ):
        _, *rows = parsed.tables[caption]
        assert sorted(row[0] for row in rows) == sorted(set(name_of))
        for name, count, positives, predicted, rate, interval, auc, _ in rows:
            mine = name_of == name
            outcome = test.outcome[mine]
            assert (count, positives) == (f"{mine.sum():,}", f"{outcome.sum():,}")
            assert predicted == f"{scores[mine].mean():.3f}"
            customers = len(np.unique(test.customer[mine]))
            if customers == mine.sum():
                wilson = binomtest(int(outcome.sum()), customers).proportion_ci(method="wilson")
                assert interval == f"{wilson.low:.3f} to {wilson.high:.3f}"
            assert rate == f"{outcome.mean():.3f}"
            both = 0 < outcome.sum() < len(outcome)
            assert auc == (f"{roc_auc_score(outcome, scores[mine]):.3f}" if both else "")


def test_each_month_is_judged_by_a_model_of_the_past(found: Evaluation, marked: Dataset, trained: Report) -> None:
    """The manifest's algorithm fitted on the rows before the cut, judged on the month after it."""
    assert len(found.folds) > 2

    def again(fold: Fold) -> float:
        begin = np.datetime64(fold.cut[:7])
        month = marked.at_ms.astype("datetime64[ms]").astype("datetime64[M]")
        before, block = marked.where(month < begin), marked.where(month == begin)
        assert (fold.train_rows, fold.rows) == (len(before.outcome), len(block.outcome))
        model = TASK.algorithms(7)[trained.manifest.algorithm].fit(*before.lessons())
        return float(roc_auc_score(block.outcome, model.predict_proba(block.rows)[:, 1]))

    assert [fold.model.auc for fold in found.folds] == pytest.approx([again(fold) for fold in found.folds])


def test_effects_are_scikit_learns() -> None:
    """Partial dependence on the same values; an unused feature loses nothing when shuffled, a used one does."""
    random = np.random.default_rng(5)
    columns = random.normal(size=(400, 3))
    outcome = columns[:, 0] + 0.3 * columns[:, 1] + random.normal(size=400) > 1
    examples = [
        Example(row=row.tolist(), outcome=bool(yes), at_ms=number, group="one", customer=f"shopper-{number // 2}")
        for number, (row, yes) in enumerate(zip(columns, outcome, strict=True))
    ]
    rows = Dataset.of(examples, 3)
    model = LogisticRegression().fit(rows.rows[:, :2], rows.outcome)

    def score(some: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict_proba(some[:, :2])[:, 1])

    names = {"used": 0, "also": 1, "unused": 2}
    for name, curve in effects(rows, score, names, seed=1).items():
        if name != "unused":
            given = {names[name]: curve.x}
            expected = partial_dependence(
                model,
                rows.rows[:, :2],
                [names[name]],
                custom_values=given,
                method="brute",
                response_method="predict_proba",
            )
            np.testing.assert_allclose(curve.y, expected["average"].reshape(-1)[-len(curve.y) :], atol=1e-9)
        else:
            np.testing.assert_allclose(curve.y, score(rows.rows).mean())
    lost = {one.feature: one for one in importances(rows, score, names, seed=1)}
    assert lost["unused"].auc_lost == pytest.approx((0, 0, 0), abs=1e-9)
    assert lost["unused"].log_loss_gained == pytest.approx((0, 0, 0), abs=1e-9)
    assert lost["used"].auc_lost.value > 0.02
    assert lost["used"].auc_lost.low <= lost["used"].auc_lost.value <= lost["used"].auc_lost.high


def test_drift_is_counted_between_deciles(found: Evaluation, marked: Dataset) -> None:
    """The index, computed anew from the training deciles, for every feature."""
    for one in found.feature_drifts:
        column = marked.rows[:, TASK.features.columns.index(one.name)].astype(np.float32)
        before, after = column[marked.at_ms < TEST_FROM_MS], column[marked.at_ms >= TEST_FROM_MS]
        cuts = np.unique(np.sort(before)[np.ceil(np.arange(1, 10) / 10 * len(before)).astype(int) - 1])
        shares = [
            np.maximum([np.mean(sum(part > cut for cut in cuts) == number) for number in range(len(cuts) + 1)], 1e-4)
            for part in (before, after)
        ]
        assert one.psi == pytest.approx(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def test_the_page_stands_alone(page: Path, parsed: Page) -> None:
    """Tags match, ids are unique, references lead to them and nowhere else; every picture has words."""
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {reference[0] for reference in parsed.references} == {"#"}
    assert {reference[1:] for reference in parsed.references} <= set(parsed.ids)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert not re.search(r"<script|<link|@import|<iframe|<object", text)
    assert set(re.findall(r"https?://[^\"' ]*", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert len(parsed.labels) > 15
    assert all(len(label) > 20 for label in parsed.labels)


def test_no_customer_is_in_it(content: Content, tmp_path: Path, page: Path, marked: Dataset) -> None:
    """Neither form of the report has any id of the rows that it was made from."""
    assert all("shopper-" in customer for customer in marked.customer)
    write(content, tmp_path / "report.md")
    written = [page, *tmp_path.rglob("*")]
    assert len([path for path in written if path.suffix == ".svg"]) == len(list(content.plots()))
    for path in written:
        assert path.is_dir() or b"shopper" not in path.read_bytes()


def test_markdown_says_the_same(content: Content, tmp_path: Path, parsed: Page) -> None:
    """The same tables, and a picture file for each plot, of valid XML with words; written again it replaces itself."""
    out = tmp_path / "model.md"
    for _ in range(2):
        write(content, out)
    text = out.read_text(encoding="utf-8")
    for rows in parsed.tables.values():
        assert all(" | ".join(row) in text for row in rows if any(row))
    pictures = re.findall(r"!\[(.+)\]\((.+)\)", text)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.svg"))] == sorted(
        path for _, path in pictures
    )
    for shows, path in pictures:
        drawn = Page((tmp_path / path).read_text(encoding="utf-8"))
        assert (drawn.open, len(drawn.labels)) == ([], 1)
        assert shows.replace("\\", "") == drawn.labels[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-pictures", "model.md"]


def test_a_plot_is_the_same_again_and_follows_the_page() -> None:
    """No date, no chance; every colour is a name that the page can give another meaning."""
    curve = Curve(np.array([0.0, 0.5]), np.array([0.1, 0.2]))
    one, two = (plots.effect("same", "A curve that rises.", curve, 0.3) for _ in range(2))
    assert one == two
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", one.svg)) <= {"none"} | set(
        re.findall(r"var\(--\w+, #\w+\)", one.svg)
    )


def test_too_little_to_judge_is_named(scorer: Scorer, marked: Dataset) -> None:
    """No rows, or outcomes of one kind only, before the test or in it."""
    later = marked.at_ms >= TEST_FROM_MS

    def cases() -> Iterator[tuple[np.ndarray, str]]:
        yield ~later, "no rows from 2017-08-15 on, which the model is judged on"
        yield later, "no rows before 2017-08-15, which baselines are fitted on"
        yield ~(later & marked.outcome), "rows from 2017-08-15 on, which the model is judged on, lack the outcome"
        yield later | marked.outcome, "rows before 2017-08-15, which baselines are fitted on, have the outcome"

    for kept, complaint in cases():
        with pytest.raises(ConfigurationError, match=complaint):
            evaluate(scorer, TASK, marked.where(kept), "", 0, 7, lambda _stage, _fraction: None)


def test_cautions_come_first(found: Evaluation, content: Content) -> None:
    """A trial on part of the data is called that, before any figure."""
    assert found.customers_left_out > 0
    assert found.cautions == [f"A trial on part of the data: {found.customers_left_out:,} customers were left out."]
    text = html(content)
    assert text.index("A trial on part of the data") < text.index("<dl")


def test_a_place_that_can_not_be_written_is_named(content: Content, tmp_path: Path) -> None:
    """Another ending, a missing folder, a folder in the way: named, and nothing is left behind."""
    (tmp_path / "taken.html").mkdir()
    for name, complaint in (("r.pdf", "html or .md"), ("no/r.html", "there is no folder"), ("taken.html", "a folder")):
        with pytest.raises(ConfigurationError, match=complaint):
            write(content, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.html"]


@pytest.mark.browser
async def test_a_browser_shows_it_alone_on_a_phone(page: Path) -> None:
    """Chromium asks for nothing else, finds nothing to complain of, needs no sideways scrolling at 360 pixels, opens
    details by keyboard, and paints plots in other colours in the dark.
    """
    said: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        phone = await browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="light")
        phone.on("console", lambda message: said.append(message.text))
        phone.on("request", lambda request: said.append(request.url))
        await phone.goto(page.as_uri())
        summary = phone.locator("summary").first
        await summary.focus()
        await phone.keyboard.press("Enter")
        assert await phone.locator("details").first.get_attribute("open") is not None
        await phone.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert await phone.evaluate("document.documentElement.scrollWidth") <= 360
        colour = "getComputedStyle(document.querySelector('svg text')).fill"
        light = await phone.evaluate(colour)
        await phone.emulate_media(color_scheme="dark")
        assert await phone.evaluate(colour) != light
        await browser.close()
    assert said == [page.as_uri()]
