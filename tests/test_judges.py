import copy
import json
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner

import build
from judges import Finding, NotHere, NotSetUp, apart, cfn_lint, hadolint, rules, scripts
from judges.filled import settled
from judges.panel import JUDGES, Product
from judges.rules import RULES
from judges.rules.stack import Stack
from tests.faults import DOCKERFILE_FAULTS, FAULTS
from tests.stacks_make import IMAGE, TABLES, stack
from tests.test_updates import CHANGES

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "ecs-tasks/gpu-worker/Dockerfile").read_text("utf-8")


def title(fault):
    return f"{fault.judge}, {fault.name}"


@cache
def good():
    return {
        **{name: stack(table) for name, table in TABLES.items()},
        "image": stack(IMAGE, name="image"),
        "batch": stack(TABLES["everything"], name="batch"),
        "batch by default": stack(IMAGE, name="batch"),
    }


@cache
def faulty(judge):
    templates = {}
    for fault in FAULTS:
        if fault.judge == judge:
            templates[title(fault)] = template = copy.deepcopy(good()[fault.of])
            fault.change(template)
            assert template != good()[fault.of], f"{title(fault)}: nothing was planted"
            if judge in SLOW:
                template["Resources"], template["Outputs"] = concerned(template["Resources"], good()[fault.of]), {}
    return templates


SLOW = {"cfn-lint", "checkov"}
"""A second and more for a template: of a faulty one they are shown what it is about."""


def concerned(resources, template):
    """The resources that are not as in this template, and all that they refer to; all where no resource was changed."""
    changed = {title for title, body in resources.items() if body != template["Resources"].get(title)}
    found, more = set(), changed or {*resources}
    while more:
        found |= more
        told = json.dumps([resources[title] for title in found])
        more = {title for title in resources.keys() - found if f'"{title}"' in told or f"${{{title}" in told}
    return {title: body for title, body in resources.items() if title in found}


@cache
def verdict(judge):
    """What a judge says of the good and the faulty templates, asked once for all."""
    if judge == "hadolint":
        return hadolint.judge({"good": DOCKERFILE, **faulty_dockerfiles()})
    try:
        return JUDGES[judge](Product({**good(), **faulty(judge)}, {}))
    except NotHere as error:
        pytest.skip(str(error))


def faulty_dockerfiles():
    texts = {}
    for name, _, good_part, bad_part in DOCKERFILE_FAULTS:
        assert good_part in DOCKERFILE, name
        texts[name] = DOCKERFILE.replace(good_part, bad_part)
    return texts


def about(findings, name):
    """What is said of one template: a finding is of `name: resource` or `name line 3`."""
    return [
        finding for finding in findings if finding.where.startswith((f"{name}:", f"{name} ")) or finding.where == name
    ]


@pytest.mark.parametrize("judge", JUDGES)
def test_good_templates_leave_every_judge_silent(judge):
    names = ["good"] if judge == "hadolint" else list(good())

    assert [finding for name in names for finding in about(verdict(judge), name)] == []


@pytest.mark.parametrize("key", CHANGES)
def test_our_rules_object_to_no_setting(key):
    assert (
        rules.judge({side: stack(table) for side, table in zip(("before", "after"), CHANGES[key][:2], strict=True)})
        == []
    )


@pytest.mark.parametrize("fault", FAULTS, ids=title)
def test_a_planted_fault_is_seen_by_its_judge(fault):
    said = about(verdict(fault.judge), title(fault))

    assert [finding for finding in said if fault.said in f"{finding.where} {finding.what}"], said


@pytest.mark.parametrize(("name", "said"), [(name, said) for name, said, _, _ in DOCKERFILE_FAULTS])
def test_a_fault_in_the_dockerfile_is_seen(name, said):
    assert any(finding.what.startswith(said) for finding in about(verdict("hadolint"), name))


def test_every_judge_and_every_rule_of_ours_has_a_fault_to_see():
    assert {fault.judge for fault in FAULTS} | {"hadolint"} == set(JUDGES)
    assert len({title(fault) for fault in FAULTS}) == len(FAULTS) >= 45
    assert [rule.__name__ for rule in RULES if rule not in {one for said in objecting().values() for one in said}] == []


@pytest.mark.parametrize("name", ["image", "batch"])
def test_every_judge_of_templates_sees_a_fault_in_every_stack(name):
    assert {fault.judge for fault in FAULTS if fault.of.partition(" ")[0] == name} == set(JUDGES) - {"hadolint"}


def test_a_fault_concerns_few_rules():
    """A rule that objects to everything would pass the table."""
    assert {name: said for name, said in objecting().items() if len(said) > 3} == {}


@cache
def objecting():
    """Fault -> the rules of ours that object to it."""
    stacks = {name: Stack(settled(template, holds=True)) for name, template in faulty("rules").items()}
    return {name: [rule for rule in RULES if any(rule(stack))] for name, stack in stacks.items()}


def test_all_regions_that_can_have_our_machines_are_judged():
    assert {"us-east-1", "eu-west-1", "ap-northeast-1", "us-gov-west-1", "cn-north-1"} <= set(cfn_lint.REGIONS)
    assert not [region for region in cfn_lint.REGIONS if "iso" in region]


# Set-up


def test_a_missing_environment_is_told_with_what_installs_it(tmp_path):
    with pytest.raises(NotSetUp, match="make setup"):
        apart.run(["-c", "print()"], python=tmp_path / "python")


def test_a_judge_that_breaks_down_is_no_judge_that_finds_nothing():
    with pytest.raises(NotSetUp, match=r"did not answer.*no such judge"):
        apart.run(["-c", "raise SystemExit('no such judge')"])


def test_without_systemd_the_judge_says_so(monkeypatch):
    monkeypatch.setattr(scripts.shutil, "which", lambda _: None)

    with pytest.raises(NotHere, match="systemd-analyze is not on this machine"):
        scripts.systemd(good())


# The command


def check(monkeypatch, tmp_path, **judges):
    monkeypatch.setattr("judges.panel.JUDGES", judges)
    return CliRunner().invoke(build.cli, ["check", "--out", str(tmp_path)])


def test_check_shows_every_judge_the_templates_and_the_dockerfile(monkeypatch, tmp_path):
    shown = []
    done = check(monkeypatch, tmp_path, first=lambda product: shown.append(product) or [])

    (product,) = shown
    assert "Resources" in product.templates["cluster"]
    assert product.dockerfiles["ecs-tasks/gpu-worker/Dockerfile"] == DOCKERFILE
    assert done.exit_code == 0
    assert done.output.startswith("first: nothing found in ")


def test_check_names_judge_place_and_fault_and_asks_on(monkeypatch, tmp_path):
    done = check(
        monkeypatch, tmp_path, first=lambda _: [Finding("first", "cluster: Key", "rusty")], second=lambda _: []
    )

    assert done.exit_code == 1
    first, told, second = done.output.splitlines()
    assert first == "first: cluster: Key: rusty"
    assert told.startswith("first: 1 found in ") and second.startswith("second: nothing found in ")


def test_check_tells_which_judge_this_machine_cannot_ask(monkeypatch, tmp_path):
    def absent(_):
        raise NotHere("no such program")

    done = check(monkeypatch, tmp_path, first=absent)

    assert (done.exit_code, done.output) == (0, "first: not asked: no such program\n")


def test_check_without_a_judges_environment_is_a_matter_of_set_up(monkeypatch, tmp_path):
    def missing(_):
        raise NotSetUp("`make setup` installs it")

    done = check(monkeypatch, tmp_path, first=missing)

    assert (done.exit_code, done.output) == (2, "first: `make setup` installs it\n")
