"""cfn-lint: types, properties, values, references and regions, by AWS's own resource schemas.

Finds misspelt properties, wrong types and enumerations, references to what is not there, circular dependencies,
values that exclude each other, ended Lambda runtimes, resource types that a region lacks, and ARNs of one partition.
"""

from __future__ import annotations

import json
from importlib import resources

from cfnlint.config import ConfigMixIn, ManualArgs
from cfnlint.decode.decode import decode_str
from cfnlint.helpers import REGIONS as KNOWN
from cfnlint.runner import Runner, run_template_by_data
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER as SCHEMAS

from judges import Finding, Template, Templates
from templates.instance_types import INSTANCE_TYPES

IGNORED = {
    # Wants DeletionPolicy written on queues and log groups too; our own rule says which must be kept, and the rest go.
    "I3011": "explicit DeletionPolicy on everything that holds anything",
    "I3013": "explicit retention on every queue",
    # Types are chosen for the region of the stack; `doctor` asks EC2 what it has there, and our own rule whether a type
    # exists at all.
    "E3628": "an instance type that one of the regions lacks",
    # The same sentence in two descriptions is no mistake.
    "I4010": "literals that are repeated",
}


def _regions() -> list[str]:
    """The regions of the commercial, GovCloud and China partitions with at least one GPU type that we can buy.

    By cfn-lint's copy of which region has which instance type; it is renewed with cfn-lint.
    """
    offered = resources.files("cfnlint.data.schemas.extensions.aws_ec2_instance") / "instancetype_enum.json"
    types = json.loads(offered.read_text("utf-8"))
    public = (region for region in KNOWN if not region.startswith("eusc-") and "-iso" not in region)
    return [region for region in public if INSTANCE_TYPES.keys() & set(types.get(region, {}).get("enum", ()))]


REGIONS = _regions()


def partition(region: str) -> str:
    """The partition that a region belongs to."""
    return {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rpartition("-")[0].rpartition("-")[0], "aws")


def different(template: Template) -> list[str]:
    """The regions that can be told apart: by partition, by the schemas of the template's types, and by name where the
    template's conditions or mappings have that name. The others would be told the same as one of these.
    """
    names = json.dumps([template.get("Conditions"), template.get("Mappings")])
    known = {region: [partition(region), region if f'"{region}"' in names else ""] for region in REGIONS}
    for kind in sorted({body.get("Type", "") for body in template.get("Resources", {}).values()}):
        for number, (regions, _) in enumerate(SCHEMAS.get_resource_schemas_by_regions(kind, REGIONS)):
            for region in regions:
                known[region].append(f"{kind} {number}")
    firsts = {tuple(said): region for region, said in reversed(known.items())}
    return sorted(firsts.values())


def judge(templates: Templates) -> list[Finding]:
    """All rules of cfn-lint, the informational and experimental too, in every region."""
    rules = Runner(_config(REGIONS)).rules
    findings = set()
    for name, template in templates.items():
        decoded, unreadable = decode_str(json.dumps(template))
        judged = run_template_by_data(decoded or {}, _config(different(template)), rules)
        for match in [*unreadable, *judged]:
            place = "/".join(str(step) for step in match.path or ())
            findings.add(Finding("cfn-lint", f"{name}: {place}", f"{match.rule.id} {match.message}"))
    return sorted(findings)


def _config(regions: list[str]) -> ConfigMixIn:
    return ConfigMixIn(
        **ManualArgs(
            regions=regions,
            include_experimental=True,
            include_checks=["I"],
            ignore_checks=list(IGNORED),
            configure_rules={"E3012": {"strict": True}},
        )
    )
