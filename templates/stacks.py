"""The stacks, in the order in which they are deployed: name -> build(settings, assets) -> Template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from troposphere import GetAtt, Output, Parameter, Ref, Template

from templates import cluster, data, fleet, functions, network
from templates.assets import Assets
from templates.settings import Settings

ECS_GPU_IMAGE = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id"
"""ECS Developer Guide, "Retrieving Amazon ECS-optimized Linux AMI metadata"."""


def build_cluster(settings: Settings, assets: Assets) -> Template:
    """Everything that takes an upload to its result."""
    template = Template(Description="Spindrift: GPU batch work on spare EC2 capacity. Upload a file, get its result.")
    template.add_parameter(
        Parameter("AssetsBucket", Type="String", Description="Where `python build.py publish --bucket` put the assets")
    )
    template.add_parameter(Parameter("WorkerImage", Type="String", Description="Container image URI of the GPU worker"))
    template.add_parameter(
        Parameter(
            "AmiId",
            Type="AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>",
            Default=ECS_GPU_IMAGE,
            Description="SSM parameter with the image of the instances",
        )
    )
    places = network.add(template, settings)
    kept = data.add(template, settings)
    worker = cluster.add(template, settings, kept)
    machines = fleet.add(template, settings, places, kept, worker, assets)
    hears_the_minute = functions.add(template, settings, kept, worker, machines, assets)
    service = cluster.add_service(template, settings, worker, ready=hears_the_minute)
    outputs: dict[str, tuple[str, Any]] = {
        "UploadsBucket": ("Put files here", Ref(kept.uploads)),
        "ResultsBucket": ("Results come here", Ref(kept.results)),
        "JobsTable": ("One record for each job", Ref(kept.table)),
        "JobsQueueUrl": ("Jobs that wait", Ref(kept.jobs)),
        "DeadLetterQueueUrl": ("Jobs that failed for good, with the reason", Ref(kept.dead_letter)),
        "UploadEventsQueueUrl": ("What S3 announced", Ref(kept.upload_events)),
        "NoticesQueueUrl": ("What the capacity Lambda hears", Ref(kept.notices)),
        "NoticesTopicArn": ("Where instances announce that they are being taken", Ref(kept.notices_topic)),
        "ClusterName": ("The ECS cluster", Ref(worker.cluster)),
        "WorkerServiceName": ("The ECS service of the workers", GetAtt(service, "Name")),
        "SpotFleetId": ("The Spot Fleet", Ref(machines.spot)),
        "OnDemandGroupName": ("The group that helps out", Ref(machines.on_demand)),
    }
    for title, (description, value) in outputs.items():
        template.add_output(Output(title, Description=description, Value=value))
    return template


STACKS: dict[str, Callable[[Settings, Assets], Template]] = {"cluster": build_cluster}


def rendered(template: Template) -> str:
    """The template's text: sorted and indented, the same from run to run."""
    return str(template.to_json(indent=2, sort_keys=True)) + "\n"
