"""The stacks, in the order in which they are deployed: name -> build(settings, assets) -> Template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from troposphere import Export, FindInMap, GetAtt, Output, Parameter, Ref, Sub, Template, cloudwatch

from templates import alarms, batch, cluster, dashboard, data, files, fleet, functions, groups, image, market, network
from templates.assets import Assets
from templates.settings import Settings

CONSOLES = {
    "aws": "console.aws.amazon.com",
    "aws-cn": "console.amazonaws.cn",
    "aws-us-gov": "console.amazonaws-us-gov.com",
}
"""Where the console is, by partition."""
PROFILES = {"fleet": fleet.add, "groups": groups.add}
"""What buys the machines, by profile."""


def build_cluster(settings: Settings, assets: Assets) -> Template:
    """Everything that takes an upload to its result."""
    template = Template(Description="Spindrift: GPU batch work on spare EC2 capacity. Upload a file, get its result.")
    template.add_mapping("Consoles", {partition: {"Domain": domain} for partition, domain in CONSOLES.items()})
    template.add_parameter(
        Parameter(
            "AssetsBucket",
            Type="String",
            Description="Where `python build.py publish --bucket` put the assets: a bucket in the region of the stack",
        )
    )
    template.add_parameter(
        Parameter("WorkerImage", Type="String", Description="Container image of the GPU worker, as a URI")
    )
    template.add_parameter(
        Parameter(
            "AmiId",
            Type="AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
            Default=image.ECS_GPU_IMAGE,
            Description="SSM parameter with the id of the instances' image; by default ECS's newest with GPU drivers",
        )
    )
    places = network.add(template, settings)
    shared = files.add(template, settings, places)
    kept = data.add(template, settings)
    operators = alarms.add_topic(template, settings, kept)
    worker = cluster.add(template, settings, kept, shared)
    machines = PROFILES[settings.profile](template, settings, places, kept, worker, assets, operators)
    lambdas = functions.add(template, settings, kept, worker, machines, assets)
    pools = market.add(template, settings, places, kept, machines, assets)
    lambdas = replace(lambdas, market=pools.function)
    mounts = shared.mounts if shared else []
    services = cluster.add_services(template, settings, worker, ready=[*lambdas.ready, *mounts])
    alarms.add(template, settings, kept, lambdas, machines, operators)
    board = dashboard.add(template, settings, kept, lambdas, machines, worker)
    outputs: dict[str, tuple[str, Any]] = {
        "UploadsBucket": ("Put files here", Ref(kept.uploads)),
        "ResultsBucket": ("Results come here", Ref(kept.results)),
        "JobsTable": ("One record for each job", Ref(kept.table)),
        "PoolsTable": ("What is known of each Spot pool, one record each", Ref(pools.table)),
        "DeadLetterQueueUrl": ("Jobs that failed for good, with the reason", Ref(kept.dead_letter)),
        "NoticesQueueUrl": ("What the capacity Lambda hears", Ref(kept.notices)),
        "NoticesTopicArn": ("Where instances announce that they are being taken", Ref(kept.notices_topic)),
        "ClusterName": ("The ECS cluster", Ref(worker.cluster)),
        "OnDemandGroupName": ("The group that helps out", Ref(machines.on_demand)),
        "DashboardUrl": ("What happens, at a glance", _dashboard_url(board)),
        **machines.outputs,
    }
    if kept.upload_events is not None:
        outputs["UploadEventsQueueUrl"] = ("What S3 announced", Ref(kept.upload_events))
    for place, (queue, service) in enumerate(zip(settings.queues, services, strict=True)):
        # The first queue's have no name in front, so that whoever has one queue need not know its name.
        title = queue.title if place else ""
        outputs[f"{title}JobsQueueUrl"] = (f"Jobs that wait in {queue.name}", Ref(kept.jobs[queue.name]))
        outputs[f"{title}WorkerServiceName"] = (f"The ECS service of {queue.name}", GetAtt(service, "Name"))
    for title, (description, value) in outputs.items():
        name = Export(Sub(f"${{AWS::StackName}}-{title}"))
        template.add_output(Output(title, Description=description, Value=value, Export=name))
    return template


def _dashboard_url(board: cloudwatch.Dashboard) -> Sub:
    return Sub(
        f"https://${{Console}}/cloudwatch/home?region=${{AWS::Region}}#dashboards/dashboard/${{{board.title}}}",
        Console=FindInMap("Consoles", Ref("AWS::Partition"), "Domain"),
    )


STACKS: dict[str, Callable[[Settings, Assets], Template]] = {
    "cluster": build_cluster,
    "image": image.build,
    "batch": batch.build,
}


def rendered(template: Template) -> str:
    """The template's text: sorted and indented, the same from run to run."""
    return str(template.to_json(indent=2, sort_keys=True)) + "\n"
