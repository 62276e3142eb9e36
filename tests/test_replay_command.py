"""`build.py replay`: what it reads, what it refuses in one line, and what it prints and writes."""

import json
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner

from build import cli

KEYS = [
    "policy",
    "cost_share",
    "cost_share_free_hour",
    "short_share",
    "short_capacity_share",
    "interruptions",
    "launches",
    "on_demand_unit_hours",
]
TRACE = "t_s,a,b\n0,2,2\n300,2,0\n600,0,0\n900,2,2\n1200,2,2\n"
ONES = "t_s,a,b\n0,1,1\n300,1,0\n600,1,1\n"
PRICES = "t_s,b,a\n0,1.2,0.9\n700,1.0,0.9\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with a trace and prices; `files(name, text)` adds one and returns its path."""

    def add(name, text):
        (tmp_path / name).write_text(text, "utf-8")
        return str(tmp_path / name)

    add("trace.csv", TRACE)
    add("ones.csv", ONES)
    add("prices.csv", PRICES)
    (tmp_path / "spindrift.toml").write_text("", "utf-8")
    monkeypatch.chdir(tmp_path)
    return add


def replay(*words):
    return CliRunner().invoke(cli, ["replay", *words])


def replayed(*words):
    result = replay(*words, "--json")
    assert result.exit_code == 0, result.output
    return {each["policy"]: each for each in json.loads(result.stdout)}


def test_json_has_the_promised_keys_and_all_policies(files):
    results = replayed("--availability", "trace.csv", "--units", "2")

    assert len(results) == 14
    assert all(list(each) == KEYS for each in results.values())
    assert results["on-demand"]["cost_share"] == 1
    assert results["spot-fleet"]["cost_share_free_hour"] < results["spot-fleet"]["cost_share"]
    assert results["bound"]["cost_share"] <= results["bound-never-short"]["cost_share"]


def test_the_table_says_what_was_asked_and_has_a_line_for_each_policy(files):
    result = replay("--availability", "trace.csv", "--units", "2", "--policy", "reactive", "--policy", "bound")

    assert "trace.csv: 2 zones, 0.0 days; 2 units always" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == ["policy", "reactive", "bound"]


def test_a_trace_that_begins_at_another_moment_is_the_same_trace(files):
    def later(text):
        return re.sub(r"^\d+", lambda at: str(int(at[0]) + 5000), text, flags=re.MULTILINE)

    files("trace2.csv", later(TRACE))
    files("prices2.csv", later(PRICES))
    files("load.csv", "t_s,jobs\n900,9\n")
    files("load2.csv", later("t_s,jobs\n900,9\n"))

    def asked(trace, prices, load):
        return replayed(
            "--availability", trace, "--prices", prices, "--load", load, "--zones", "b", "--policy", "reactive"
        )

    assert asked("trace2.csv", "prices2.csv", "load2.csv") == asked("trace.csv", "prices.csv", "load.csv")


def test_prices_are_those_of_the_zones_by_name(files):
    (bill,) = replayed(
        "--availability", "trace.csv", "--prices", "prices.csv", "--zones", "b", "--units", "1",
        "--policy", "spot-fleet", "--od-price", "3"
    ).values()  # fmt: skip

    # From 0 to 420 at 1.2, and from 900 to 1500 at 1.0.
    assert bill["cost_share"] == pytest.approx((420 * 1.2 + 600 * 1.0) / (1500 * 3), abs=1e-6)


def test_without_a_price_of_on_demand_the_lowest_of_spot_tells_it(files):
    words = ("--availability", "trace.csv", "--prices", "prices.csv")

    assert replayed(*words) == replayed(*words, "--od-price", "3")


def test_the_urgency_of_the_shipped_policy_can_be_chosen(files):
    words = ("--availability", "trace.csv", "--units", "2", "--policy", "shipped", "--policy", "shipped-spot-only")

    results = replayed(*words, "--urgency", "spot-only")

    assert results["shipped"] == results["shipped-spot-only"] | {"policy": "shipped"}
    assert replayed(*words)["shipped"]["short_share"] < results["shipped"]["short_share"]


def test_a_launch_by_its_name_sets_both_delays_and_tells_their_parts(files, tmp_path):
    words = ("--availability", "trace.csv", "--units", "2", "--policy", "reactive", "--launch", "warm")
    parts = ("pending 17, boot 40, register 8, pull 2, start 56", "pending 17, boot 25, register 8, pull 2, start 24")
    told = f"Spot is ready after 123 s ({parts[0]}), On-Demand after 76 s ({parts[1]}), notice 120 s."

    written = replay(*words, "--html", "report.html").stdout
    result = replayed(*words)["reactive"]

    assert told in written
    assert told in (tmp_path / "report.html").read_text("utf-8")
    assert list(result) == [*KEYS, "launch"]
    assert result["launch"]["on_demand"] == {"pending": 17, "boot": 25, "register": 8, "pull": 2, "start": 24}
    assert sum(result["launch"]["spot"].values()) == 123
    by_hand = replayed(*words[:-2], "--spot-delay", "123", "--launch-delay", "76")["reactive"]
    assert by_hand["short_share"] == result["short_share"] < replayed(*words[:-2])["reactive"]["short_share"]


def test_a_launch_in_seconds_is_both_delays_at_once(files):
    words = ("--availability", "trace.csv", "--units", "2", "--policy", "shipped")

    assert replayed(*words, "--launch", "300") == replayed(*words, "--spot-delay", "300", "--launch-delay", "300")
    assert replayed(*words, "--launch", "180") == replayed(*words)
    assert "Spot is ready after 188 s (joined after 70), On-Demand" in replay(*words, "--launch", "70+118").stdout


def test_what_has_joined_does_not_work_yet_and_the_shipped_policy_minds(files):
    words = ("--days", "2", "--policy", "shipped", "--launch")

    stock, parts, whole = (replayed(*words, launch)["shipped"] for launch in ("stock", "70+118", "188"))
    assert stock.pop("launch")
    assert stock["short_share"] == pytest.approx(whole["short_share"], rel=0.2)
    assert whole["short_share"] > 0
    assert stock == parts


def test_depth_turns_a_file_of_ones_into_counts(files):
    results = replayed("--availability", "ones.csv", "--depth", "4", "--units", "8", "--policy", "spot-fleet")

    assert results["spot-fleet"]["interruptions"] == 4


def test_without_a_file_there_is_a_market_by_its_seed(files):
    words = ("--days", "2", "--policy", "reactive", "--seed")

    assert replayed(*words, "1") == replayed(*words, "1")
    assert replayed(*words, "1") != replayed(*words, "2")


def test_a_load_adds_what_became_of_its_jobs(files):
    files("load.csv", "t_s,jobs,seconds\n0,10,20\n600,5,10\n")

    results = replayed("--availability", "trace.csv", "--load", "load.csv", "--units", "2", "--max-wait", "700")

    assert {"shipped", "shipped-now", "shipped-deadline"} < set(results)
    assert not {"bound", "bound-never-short"} & set(results)
    shipped = results["shipped"]
    assert list(shipped) == [*KEYS, "jobs", "in_time_share", "done_seconds_p50", "done_seconds_p99"]
    assert (shipped["jobs"], shipped["in_time_share"]) == (15, 1)


def test_the_report_stands_alone_and_its_plots_are_well_formed(files, tmp_path):
    result = replay("--availability", "trace.csv", "--units", "2", "--html", "report.html")

    page = (tmp_path / "report.html").read_text("utf-8")
    plots = [ET.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert result.stdout.splitlines()[-1] == "report.html"
    assert len(plots) == 1 + 12
    assert {text.text for text in plots[0].iter("text")} >= {"shipped", "spothedge-4", "bound", "bound-never-short"}
    assert not re.search(r"https?:|<script|<link|@import|url\(|src=", page)


@pytest.mark.parametrize(
    "words, told",
    [
        (("--availability", "none.csv"), "none.csv: there is no such file"),
        (("--availability", "."), ".: cannot be read"),
        (("--availability", "t_s,a\n0,1\n600,1\n300,1"), "row 4: rows must be in the order of t_s, got 300 after 600"),
        (("--availability", "t_s,a\n0,1\n300,1\n300,1"), "row 4: rows must be in the order of t_s, got 300 after 300"),
        (
            ("--availability", "t_s,a\n0,1\n300,1\n900,1\n1200,1"),
            "row 4: a gap of 600 s, where the usual step is 300 s",
        ),
        (("--availability", "t_s,a\n0,-1\n300,1"), "row 2: a must be a whole number from 0, got -1"),
        (("--availability", "t_s,a\n0,1.5\n300,1"), "row 2: a must be a whole number from 0, got 1.5"),
        (("--availability", "t_s,a\n0,nan\n300,1"), "row 2: a must be a number, got 'nan'"),
        (("--availability", "t_s,a\n0,\n300,1"), "row 2: a must be a number, got ''"),
        (("--availability", "t_s,a\n0,1,1\n300,1"), "row 2: 2 cells expected, got 3"),
        (("--availability", "t_s,a\n0,1"), "a trace has at least two rows, got 1"),
        (("--availability", "t_s,a,a\n0,1,1"), "the column a is there twice"),
        (("--availability", "time,a\n0,1"), "the first column must be t_s, got time"),
        (("--availability", "t_s\n0\n1"), "there is no column beside t_s"),
        (("--availability", ""), "the first column must be t_s, got an empty file"),
        (("--availability", TRACE, "--zones", "a,c"), "there is no zone c; it has a, b"),
        (("--availability", TRACE, "--zones", "a,a"), "--zones: a is there twice"),
        (("--availability", TRACE, "--depth", "4"), "row 2: --depth is for a file of 0 and 1, got 2"),
        (("--availability", TRACE, "--prices", "t_s,a,b\n0,1,-1"), "row 2: the price of b must be above 0, got -1"),
        (("--availability", TRACE, "--prices", "t_s,a\n0,1"), "there is no zone b; it has a"),
        (("--availability", TRACE, "--prices", "t_s,a,b\n"), "no prices, only a header"),
        (("--availability", TRACE, "--prices", PRICES, "--od-ratio", "3"), "--od-ratio: not with --prices"),
        (("--availability", TRACE, "--od-price", "3"), "--od-price: only with --prices"),
        (("--launch", "hot"), "--launch hot: neither stock, baked, warm nor seconds from 0"),
        (("--launch", "-3"), "--launch -3: neither"),
        (("--launch", "nan"), "--launch nan: neither"),
        (("--launch", "inf"), "--launch inf: neither"),
        (("--launch", "70+118+9"), "--launch 70+118+9: neither"),
        (("--launch", "70+-1"), "--launch 70+-1: neither"),
        (("--launch", "stock", "--launch-delay", "0"), "--launch: not with --launch-delay"),
        (("--launch", "stock", "--spot-delay", "0"), "--launch: not with --launch-delay or --spot-delay; it says both"),
        (
            ("--availability", TRACE, "--policy", "reactiv"),
            "--policy reactiv: there is no such policy; did you mean reactive?",
        ),
        (("--availability", TRACE, "--policy", "?"), "--policy ?: there is no such policy; there are shipped, "),
        (
            ("--availability", TRACE, "--load", "t_s,jobs\n0,1", "--policy", "bound"),
            "--policy bound: a bound is known only",
        ),
        (("--availability", TRACE, "--load", "t_s,count\n0,1"), "a load has the columns t_s, jobs and perhaps seconds"),
        (("--availability", TRACE, "--load", "t_s,jobs\n0,-1"), "row 2: jobs must be a whole number from 0, got -1"),
        (("--availability", TRACE, "--load", "t_s,jobs,seconds\n0,1,0"), "row 2: seconds must be above 0, got 0"),
        (("--availability", TRACE, "--load", "t_s,jobs\n-9,1"), "row 2: -9 is before the trace begins, at 0"),
        (("--availability", TRACE, "--load", "t_s,jobs\n0,0"), "there is nothing to do while the trace lasts"),
        (("--availability", TRACE, "--html", "no/such/folder.html"), "--html no/such/folder.html: cannot be written"),
        (("--zones", "mars-a"), "there is no zone mars-a in the generated market; it has east-a"),
        (("--settings", "none.toml"), "none.toml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told_in_one_line_with_status_2(files, words, told):
    given = [files(f"{index}.csv", word) if "\n" in word or not word else word for index, word in enumerate(words)]

    result = replay(*given)

    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("words", [("--units", "0"), ("--notice", "-1"), ("--urgency", "soon"), ("--depth", "x")])
def test_numbers_and_words_that_make_no_sense_are_refused(files, words):
    result = replay("--availability", "trace.csv", *words)

    assert result.exit_code == 2
    assert words[0] in result.stderr


def test_the_bounds_need_their_solver_and_nothing_else_does(files):
    for name in [name for name in sys.modules if name.startswith("highspy")]:
        del sys.modules[name]

    replayed("--availability", "trace.csv", "--policy", "reactive")

    assert "highspy" not in sys.modules
