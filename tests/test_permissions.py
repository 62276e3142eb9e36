"""The page of permissions, and whether the proof that stands behind it would find anything (the proof: test_story.py)."""

import pytest

from tests.permissions import (
    OPTIONS,
    UNUSED,
    UNUSED_BATCH,
    UNUSED_OPTIONS,
    WIDE,
    Answer,
    Grant,
    Unused,
    page,
    permissions,
    unused,
    wrong,
)
from tests.stacks_make import EVERYTHING, IMAGE, TABLES
from tests.test_updates import CHANGES

QUEUE = "arn:aws:sqs:us-east-1:123456789012:story-Jobs"
TAKE, LOOK = Grant("Worker", "sqs:ReceiveMessage", "Jobs"), Grant("Worker", "s3:ListBucket", "Uploads")
GRANTS = {TAKE: {QUEUE}, LOOK: {"arn:aws:s3:::uploads"}}
TOOK = Answer("Worker", "sqs:ReceiveMessage", QUEUE, True)
REASON = Unused(("Worker",), ("s3:ListBucket",), "Uploads", "it says 404, not 403")


def test_the_page_says_what_the_templates_allow(golden):
    golden("../../docs/permissions.md", page())


def test_what_is_used_or_has_a_reason_is_right():
    assert wrong(GRANTS, [TOOK]) + unused(GRANTS, [TOOK], [REASON]) == []


def test_what_is_allowed_and_never_used_is_found():
    assert unused(GRANTS, [TOOK], []) == ["Worker: s3:ListBucket on Uploads is allowed, and never used"]


def test_a_use_of_one_resource_does_not_excuse_another():
    grants = {TAKE: {QUEUE}, Grant("Worker", "sqs:ReceiveMessage", "Dead"): {f"{QUEUE}-dead"}}

    assert unused(grants, [TOOK], []) == ["Worker: sqs:ReceiveMessage on Dead is allowed, and never used"]


def test_a_use_by_one_actor_does_not_excuse_another():
    grants = {TAKE: {QUEUE}, Grant("Ingest", "sqs:ReceiveMessage", "Jobs"): {QUEUE}}

    assert unused(grants, [TOOK], []) == ["Ingest: sqs:ReceiveMessage on Jobs is allowed, and never used"]


def test_a_wildcard_is_used_by_what_it_matches():
    grants = {Grant("Worker", "s3:PutObject", "Results/*"): {"arn:aws:s3:::results/*"}}

    put = Answer("Worker", "s3:PutObject", "arn:aws:s3:::results/a [1].jpg", True)

    assert wrong(grants, [put]) + unused(grants, [put], []) == []


def test_a_refusal_is_found():
    refused = Answer("Worker", "s3:DeleteObject", "arn:aws:s3:::uploads/1", False)

    assert wrong(GRANTS, [TOOK, refused]) == ["Worker was refused s3:DeleteObject on arn:aws:s3:::uploads/1"]


def test_what_was_done_without_a_statement_is_found():
    done = Answer("Worker", "s3:DeleteObject", "arn:aws:s3:::uploads/1", True)

    assert wrong(GRANTS, [TOOK, done]) == [
        "Worker did s3:DeleteObject on arn:aws:s3:::uploads/1, which its role does not allow"
    ]


@pytest.mark.parametrize(
    ("answers", "grants", "why"),
    [
        ([TOOK, Answer("Worker", "s3:ListBucket", "arn:aws:s3:::uploads", True)], GRANTS, "and is used"),
        ([TOOK], {TAKE: {QUEUE}}, "and is not allowed"),
    ],
)
def test_a_reason_that_is_out_of_date_is_found(answers, grants, why):
    assert unused(grants, answers, [REASON]) == [
        f"Worker: s3:ListBucket on Uploads has a reason for not being used, {why}"
    ]


def test_every_wildcard_in_a_resource_has_a_reason_and_no_other_has():
    made = [permissions(table) for table in ({}, *TABLES.values(), *OPTIONS.values())]
    made += [permissions(IMAGE, "image"), permissions(EVERYTHING, "batch")]
    wild = {on for found in made for one in found for on in one.on if "*" in on and on != "*"}

    assert wild == WIDE.keys()


def test_the_page_has_every_setting_that_allows_an_actor_more():
    known = {one for table in [{}, *OPTIONS.values()] for one in permissions(table)}
    actions = {(one.actor, action) for one in known for action in one.actions}

    for key, (before, after, _) in CHANGES.items():
        for table in (before, after):
            more = {(one.actor, action) for one in permissions(table) for action in one.actions} - actions
            assert not more, f"{key} allows {sorted(more)}"


@pytest.mark.parametrize(("name", "most"), [("image", IMAGE), ("batch", EVERYTHING)])
def test_of_the_other_stacks_no_setting_allows_an_actor_more_than_the_page_says(name, most):
    actions = {(one.actor, action) for one in permissions(most, name) for action in one.actions}

    for key, tables in CHANGES.items():
        for table in tables[:2]:
            more = {(one.actor, action) for one in permissions(table, name) for action in one.actions} - actions
            assert not more, f"{key} allows {sorted(more)}"


def test_every_reason_is_a_sentence_without_an_end():
    for why in [*WIDE.values(), *(one.why for one in (*UNUSED, *UNUSED_OPTIONS, *UNUSED_BATCH))]:
        assert len(why.split()) > 4
        assert not why.endswith(".")
