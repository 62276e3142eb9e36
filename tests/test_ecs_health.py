"""Health checks of containers, as Docker counts them and ECS sums them up."""

import pytest

from localcloud.ecshealth import Health, HealthCheck, of_task


def check(**told):
    return HealthCheck.of({"healthCheck": {"command": ["CMD", "true"], **told}})


@pytest.mark.parametrize(
    "case, told, passed, statuses",
    [
        ("one success is enough", {}, "y", "HEALTHY"),
        ("three failures in a row are too many", {}, "nnn", "UNKNOWN UNKNOWN UNHEALTHY"),
        ("not in a row", {}, "nnynn", "UNKNOWN UNKNOWN HEALTHY HEALTHY HEALTHY"),
        ("it recovers", {"retries": 1}, "nyn", "UNHEALTHY HEALTHY UNHEALTHY"),
        ("failures of the start period do not count", {"startPeriod": 60}, "nnnn", "UNKNOWN UNKNOWN UNKNOWN UNKNOWN"),
        ("after it they do", {"startPeriod": 60, "retries": 2}, "nnnn", "UNKNOWN UNKNOWN UNKNOWN UNHEALTHY"),
        ("a success ends it", {"startPeriod": 300, "retries": 1}, "nyn", "UNKNOWN HEALTHY UNHEALTHY"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_checks_add_up(case, told, passed, statuses):
    """A check each 25 s from the start."""
    rule, health, seen = check(**told), Health(), []
    for turn, result in enumerate(passed, start=1):
        health = health.after(result == "y", rule, age=25.0 * turn)
        seen.append(health.status)

    assert seen == statuses.split()


def test_a_check_is_what_the_definition_says_and_the_image_says_nothing():
    assert HealthCheck.of({"name": "main"}) is None
    assert check(command=["CMD-SHELL", "a && b"]).command == ("/bin/sh", "-c", "a && b")
    assert check() == HealthCheck(("true",), interval=30, timeout=5, retries=3, start_period=0)


@pytest.mark.parametrize(
    "containers, status",
    [
        ("main:-", "UNKNOWN"),
        ("main:HEALTHY", "HEALTHY"),
        ("main:HEALTHY other:UNKNOWN", "UNKNOWN"),
        ("main:HEALTHY other:UNHEALTHY", "UNHEALTHY"),
        ("main:HEALTHY aside:UNHEALTHY", "HEALTHY"),
        ("main:- aside:UNHEALTHY", "UNHEALTHY"),
        ("main:- other:HEALTHY", "HEALTHY"),
    ],
)
def test_a_task_is_as_well_as_its_essential_containers(containers, status):
    """`-`: no check; `aside` is not essential."""
    told = dict(each.split(":") for each in containers.split())
    definition = {
        "containerDefinitions": [
            {"name": name, "essential": name != "aside", **({} if said == "-" else {"healthCheck": {}})}
            for name, said in told.items()
        ]
    }

    assert of_task(definition, {name: said for name, said in told.items() if said != "-"}) == status
