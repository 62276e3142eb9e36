"""cfn-policy-validator's parser, AWS's own: does every policy of a template come to something that IAM can read?

Finds managed policies that do not exist, roles and policies that are no such thing, and references in policies that
lead nowhere. It asks IAM for the managed policies; moto's copy of them answers, in this process.
"""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from unittest.mock import patch

import cfn_policy_validator
import moto
from botocore.exceptions import BotoCoreError, ClientError
from cfn_policy_validator import client
from cfn_policy_validator.application_error import ApplicationError

from judges import Finding, Template, Templates
from judges.filled import ACCOUNT, REGION, settled

NAME = "cfn-policy-validator"
PARTITION = "aws"


def judge(templates: Templates) -> list[Finding]:
    """All templates, with their conditions true and, where that makes other roles, false."""
    findings = set()
    logging.disable()  # it logs a traceback of what it then raises
    try:
        with (
            moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}),
            # Else moto looks for the caller in every partition, and reads all managed policies for each of them.
            patch.dict(os.environ, MOTO_ACCOUNT_ID=ACCOUNT),
            # It makes its clients anew for each template, and botocore then reads what AWS can do anew.
            patch.object(client, "build", cache(client.build)),
        ):
            for name, template in templates.items():
                given = {title: body.get("Default", title) for title, body in template.get("Parameters", {}).items()}
                for stack in _different(template):
                    try:
                        cfn_policy_validator.parse(json.dumps(stack), REGION, ACCOUNT, PARTITION, given)
                    except (ApplicationError, BotoCoreError, ClientError) as error:
                        findings.add(Finding(NAME, name, " ".join(str(error).split())))
    finally:
        logging.disable(logging.NOTSET)
    return sorted(findings)


def _different(template: Template) -> list[Template]:
    """The template with its conditions true, and with them false unless its roles and policies are then the same."""
    both = [settled(template, holds) for holds in (True, False)]
    true, false = ({t: b for t, b in one["Resources"].items() if b["Type"].startswith("AWS::IAM::")} for one in both)
    return both[:1] if true == false else both
