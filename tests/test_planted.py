"""Faults planted in the capacity policy, each a small change of its source, and the law that must see it."""

import importlib
import sys
from pathlib import Path

import lambdas_make
import pytest
import test_laws
from hypothesis import Phase, settings

PURE = Path(__file__).parent.parent / "lambdas" / "capacity"
THOROUGH = settings(max_examples=3000, phases=[Phase.generate], database=None, deadline=None, derandomize=True)
PARTS = ("breaker", "gpus", "moves", "need", "pace", "topup", "trial", "policy")

FAULTS = [
    ("work in flight is forgotten", "need", "service.backlog / load.jobs", "service.visible / load.jobs", "every_unit_of_work_counts_wherever_it_waits"),
    ("the limit of Spot is not minded", "need", "spot=min(policy.max_units, _room(units, spot, policy, Placement.ANY, Placement.SPOT))", "spot=_room(units, spot, policy, Placement.ANY, Placement.SPOT)", "targets_keep_within_the_limits"),
    ("work for Spot alone is a reason to buy", "need", "_room(units, spot, policy, Placement.ANY)\n", "_room(units, spot, policy, Placement.ANY, Placement.SPOT)\n", "work_for_spot_alone_never_raises_on_demand"),
    ("without work capacity lingers", "need", "if 0 < enough[name].units", "if enough[name].units", "without_work_nothing_idles"),
    ("nothing lingers", "need", ">= policy.linger", ">= policy.settle", "a_backlog_about_a_threshold_does_not_flap"),
    ("an old job is taken for a young one", "need", "left = timedelta(seconds=jobs * seconds * worth), time - age", "left = timedelta(seconds=jobs * seconds * worth), time + age", "jobs_that_are_late_already_get_all_the_help_there_is_work_for"),
    ("help is bought for jobs that can wait", "need", "if work >= (left - load.max_wait * spare) * most:", "if True:", "jobs_that_can_wait_for_spot_buy_nothing"),
    ("help is bought for whatever Spot is short of", "topup", "late = max(0, min(now_or_late, now.shared) - spot.have)", "late = max(0, now.shared - spot.have)", "jobs_that_can_wait_for_spot_buy_nothing"),
    ("what worked is forgotten", "policy", "min(now.shared, max(seen.notes.worked, spot.joined + _helping(seen, now, taken)))", "min(now.shared, spot.joined + _helping(seen, now, taken))", "what_an_interruption_took_is_made_up_for_at_once"),
    ("a launching fleet is taken for a loss", "topup", "lost = max(0, notes.worked - (", "lost = max(0, now.shared - (", "a_fleet_that_still_launches_buys_nothing"),
    ("what is not needed is missed", "policy", "worked=min(now.shared, max(", "worked=max(now.shared, max(", "the_fleet_s_own_scale_in_buys_nothing"),
    ("instances are bought one too many", "topup", "ceil((now.on_demand + aid.buy) / size),", "(now.on_demand + aid.buy) // size + 1,", "no_more_is_bought_than_spot_is_short_of"),
    ("On-Demand leaves before Spot has settled", "topup", "stay=max(0, held.shared - spot.settled)", "stay=0", "who_leaves_is_never_missed"),
    ("what boots counts, however late it comes", "topup", "spot.joined if comes_before_spot(seen, notes.on_demand_took, policy) else spot.have", "spot.have", "where_on_demand_comes_within_a_notice_nobody_is_missed"),
    ("only Spot is missed", "policy", "spot.joined + _helping(seen, now, taken)", "spot.joined + sum(i.units for i in taken if i.joined)", "where_on_demand_comes_within_a_notice_nobody_is_missed"),
    ("a top-up is called off for Spot that boots", "topup", "stay=max(0, held.shared - spot.settled)", "stay=max(0, held.shared - spot.have)", "a_top_up_stays_until_spot_has_lasted_in_its_place"),
    ("On-Demand never leaves a backlog", "policy", "may_be_relieved=lambda _: True", "may_be_relieved=lambda _: False", "busy_on_demand_goes_back_to_spot_in_a_few_passes_and_nobody_is_missed"),
    ("the group picks a victim", "policy", "return max(wanted, min(seen.on_demand_requested, seen.on_demand_present))", "return wanted", "a_group_is_never_asked_to_pick_a_victim"),
    ("any busy Spot may be relieved", "policy", "may_be_relieved=lambda i: i.id in risky", "may_be_relieved=lambda i: True", "a_busy_spot_instance_leaves_only_when_it_is_at_risk"),
    ("all that is at risk is had twice", "policy", "ceil(held.spot * policy.risk_share)", "held.spot", "what_is_at_risk_is_replaced_a_quarter_at_a_time"),
    ("our own scale-in is told of the pool", "policy", "and i.id in seen.noticed and not i.surplus]", "and i.id in seen.noticed]", "what_is_taken_from_us_is_told_and_what_we_gave_up_is_not"),
    ("a recommendation is written again and again", "policy", "and not _known(i, seen, policy)),", "),", "a_recommendation_is_written_down_once"),
    ("busy instances drain like idle ones", "moves", "leaves = relieve if", "leaves = drain if", "scale_in_touches_nobody_who_works"),
    ("who has work is ended once drained", "moves", "leaves = None if joined.tasks else end", "leaves = end", "scale_in_touches_nobody_who_works"),
    ("what boots ends while it is needed", "moves", "or units <= spare else None", "or True else None", "what_boots_has_time_to_join_while_it_is_needed"),
    ("one wave trips the breaker", "breaker", ">= TWICE", ">= 1.0", "the_breaker_trips_when_spot_was_lost_twice_over"),
    ("machines of no use are replaced for ever", "trial", ">= IN_A_ROW\n", "> IN_A_ROW\n", "after_three_of_no_use_in_a_row_one_is_tried_each_quarter_of_an_hour"),
    ("a second is tried while the first is on trial", "trial", "another = is_due and all(", "another = is_due or all(", "after_three_of_no_use_in_a_row_one_is_tried_each_quarter_of_an_hour"),
    ("what worked before they came proves them well", "trial", "all(bad.launched > proof for proof in proofs)", "not proofs", "one_that_works_clears_its_kind_of_what_was_launched_before"),
    ("nothing proves a kind well again", "trial", " and all(bad.launched > proof for proof in proofs))", ")", "what_spoils_every_machine_costs_one_of_each_kind_in_a_quarter_of_an_hour_until_it_is_mended"),
    ("one of no use is one too many", "trial", "IN_A_ROW = 3", "IN_A_ROW = 1", "up_to_two_of_no_use_in_a_row_change_nothing"),
]  # fmt: skip


@pytest.mark.parametrize("name, module, old, new, law", FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_caught_by_its_law(tmp_path, monkeypatch, name, module, old, new, law):
    test = getattr(test_laws, f"test_{law}")
    # Without the search for the smallest example, and with more to find one.
    monkeypatch.setattr(test, "_hypothesis_internal_use_settings", THOROUGH)
    with_parts(monkeypatch, planted(tmp_path, module, old, new))

    with pytest.raises(AssertionError):
        test()


def planted(folder, module, old, new):
    """The pure modules with one changed, as a package of another name; the nouns stay the same."""
    package = folder / "planted"
    package.mkdir()
    (package / "__init__.py").touch()
    for part in PARTS:
        source = (PURE / f"{part}.py").read_text()
        if part == module:
            assert source.count(old) == 1, f"{old} is there {source.count(old)} times"
            source = source.replace(old, new)
        for other in PARTS:
            source = source.replace(f"from capacity.{other} import", f"from planted.{other} import")
            source = source.replace(f"from capacity import {other}\n", f"from planted import {other}\n")
        (package / f"{part}.py").write_text(source)
    return folder


def with_parts(monkeypatch, folder):
    """Have the laws judge these modules."""
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "planted"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    decide = importlib.import_module("planted.policy").decide
    breaker = importlib.import_module("planted.breaker")
    for module in (test_laws, lambdas_make):
        monkeypatch.setattr(module, "decide", decide)
    for name in ("tripped_until", "with_loss"):
        monkeypatch.setattr(test_laws, name, getattr(breaker, name))
