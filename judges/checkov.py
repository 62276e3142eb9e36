"""checkov: what security auditors look for in a template.

Finds public SSH and buckets, IMDSv1, missing encryption, administrator policies and credentials in user data.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from judges import Finding, Templates, apart

SKIPPED = {
    "CKV_AWS_18": "S3 access logs want one more bucket; who needs them turns on CloudTrail's data events",
    "CKV_AWS_26": "without a customer key (security.customer_key) a topic has none; our own rule asks for it with one",
    "CKV_AWS_27": "without a customer key SQS encrypts by its own, which checkov does not know; our own rule does",
    "CKV_AWS_33": "who may use the key is named in a condition where the role may not exist yet; our own rule reads it",
    "CKV_AWS_65": "container insights cost for each task; our own metrics say what an operator must know",
    "CKV_AWS_115": "reserved concurrency takes from the account's pool; MaximumConcurrency of the event source limits",
    "CKV_AWS_116": "a dead-letter queue of the function is for asynchronous calls; ours read a queue that has its own",
    "CKV_AWS_117": "the functions call AWS only; in a VPC they would need endpoints",
    "CKV_AWS_119": "without a customer key DynamoDB has its own; our own rule asks for the key where there is one",
    "CKV_AWS_158": "CloudWatch Logs encrypts in any case, and logs hold neither keys nor contents of jobs",
    "CKV_AWS_173": "the environment holds names and numbers, no secret, and is encrypted at rest in any case",
}
"""Rule -> why it is not ours. All other rules of the cloudformation framework apply."""


def judge(templates: Templates) -> list[Finding]:
    """All rules but those skipped, over all templates in one process."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number, (name, template) in enumerate(sorted(templates.items())):
            path = Path(folder) / f"{number}.json"
            path.write_text(json.dumps(template), "utf-8")
            files[f"/{path.name}"] = name
        answer = json.loads(
            apart.run(
                [
                    "-m", "checkov.main", "--directory", folder, "--framework", "cloudformation", "--output", "json",
                    "--skip-download", "--compact", "--quiet", "--skip-check", ",".join(SKIPPED),
                ]
            )
        )  # fmt: skip
    return sorted(
        Finding("checkov", f"{files[said['file_path']]}: {title}", f"{said['check_id']} {said['check_name']}")
        for said in answer.get("results", {}).get("failed_checks", ())
        for title in [said["resource"].rpartition(".")[2]]
    )
