"""The stack `image`: EC2 Image Builder bakes an image with all that an instance would otherwise fetch or set up.

It starts from ECS's newest image with GPU drivers, and leaves the new image's id in an SSM parameter that the stack
`cluster` takes as its AmiId. The scripts are files in components/; why it is built so, and not on Spot, is in
docs/decisions/0030-an-image-of-our-own.md.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from troposphere import Export, GetAtt, Output, Parameter, Ref, Sub, Template, iam, imagebuilder, logs

from templates import machines, network, policies
from templates.assets import Assets
from templates.settings import Network, Settings
from templates.tags import as_mapping, tags
from templates.userdata import part

ECS_GPU_IMAGE = "/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id"
"""ECS Developer Guide, "Retrieving Amazon ECS-optimized Linux AMI metadata"."""
PARAMETER = "/imagebuilder/${AWS::StackName}/ami"
"""What Image Builder may write: EC2ImageBuilderExecutionPolicy knows no parameters but those of /imagebuilder/."""
MOST_DATA = 16_000
"""Characters of a component (API reference, CreateComponent)."""


@dataclass(frozen=True)
class Component:
    """Scripts of components/, joined, for three moments: on the instance that is baked, at its end, and on one that was
    started from the image.
    """

    name: str
    what: str
    build: tuple[str, ...] = ()
    validate: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


COMPONENTS = (
    Component("agent", "Installs the interruption agent", ("aws.sh", "install-agent.sh"), test=("check-agent.sh",)),
    Component("worker", "Pulls the worker's image", ("aws.sh", "pull-worker.sh"), test=("check-worker.sh",)),
    Component("boot", "Leaves out of a boot what nobody needs", ("tune-boot.sh",)),
    Component("apps", "Places what was built for each family", ("aws.sh", "place-apps.sh")),
    Component("shared", "Has /shared made at boot", ("set-up-shared.sh",), test=("check-shared.sh",)),
    Component("gpu", "Looks whether the driver works", test=("check-gpu.sh",)),
    Component("forget", "Clears ECS's state", ("forget-ecs.sh",), validate=("check-forgotten.sh",)),
)
"""In the order in which they run. `forget` is the last."""


def build(settings: Settings, assets: Assets) -> Template:
    """All that makes the image. It costs nothing until a build is started."""
    template = Template(Description="Spindrift: an image of our own, with the agent and the worker in it.")
    for title, kind, what in (
        ("AssetsBucket", "String", "Where `python build.py publish --bucket` put the assets: a bucket in this region"),
        ("WorkerImage", "String", "Container image of the GPU worker, as the stack cluster has it"),
    ):
        template.add_parameter(Parameter(title, Type=kind, Description=what))
    chosen = components(settings)
    scripts = [_component(template, settings, assets, one) for one in chosen]
    name, marks = Sub("${AWS::StackName}"), as_mapping(settings)
    recipe = template.add_resource(
        imagebuilder.ImageRecipe(
            "Recipe",
            Name=name,
            # Image Builder counts the x up itself whenever the recipe changes; a version once given cannot be replaced.
            Version="1.0.x",
            # Looked up at each build.
            ParentImage=f"ssm:{ECS_GPU_IMAGE}",
            Components=[imagebuilder.ComponentConfiguration(ComponentArn=Ref(one)) for one in scripts],
            BlockDeviceMappings=[
                imagebuilder.InstanceBlockDeviceMapping(
                    DeviceName=machines.ROOT_DEVICE,
                    Ebs=imagebuilder.EbsInstanceBlockDeviceSpecification(**machines.root_volume(settings)),
                )
            ],
            Tags=marks,
        )
    )
    machine = _infrastructure(template, settings, assets)
    goal = template.add_resource(
        imagebuilder.DistributionConfiguration(
            "Goal",
            Name=name,
            Distributions=[
                imagebuilder.Distribution(
                    Region=Ref("AWS::Region"),
                    AmiDistributionConfiguration=imagebuilder.AmiDistributionConfiguration(
                        Name=Sub("${AWS::StackName} {{ imagebuilder:buildDate }}"), AmiTags=marks
                    ),
                    SsmParameterConfigurations=[
                        imagebuilder.SsmParameterConfiguration(ParameterName=Sub(PARAMETER), DataType="text")
                    ],
                )
            ],
            Tags=marks,
        )
    )
    log = template.add_resource(
        # The name that Image Builder gives it, so that it does not make one that is kept for ever.
        logs.LogGroup(
            "Logs",
            LogGroupName=Sub("/aws/imagebuilder/${AWS::StackName}"),
            RetentionInDays=settings.logs.retention_days,
            Tags=tags(settings),
        )
    )
    pipeline = template.add_resource(
        imagebuilder.ImagePipeline(
            "Pipeline",
            Name=name,
            ImageRecipeArn=Ref(recipe),
            InfrastructureConfigurationArn=Ref(machine),
            DistributionConfigurationArn=Ref(goal),
            # Which writes the parameter (Image Builder User Guide, "Prerequisites for SSM output parameters").
            ExecutionRole=GetAtt(_role(template, settings, "BuilderRole", "EC2ImageBuilderExecutionPolicy"), "Arn"),
            ImageTestsConfiguration=imagebuilder.ImageTestsConfiguration(ImageTestsEnabled=True, TimeoutMinutes=60),
            EnhancedImageMetadataEnabled=False,
            # On each image: what `build.py ami` compares.
            ImageTags={**marks, "spindrift:agent": assets.agent.sha256[:16], "spindrift:worker": Ref("WorkerImage")},
            Tags=marks,
            DependsOn=[log.title],
        )
    )
    _clean_up(template, settings, recipe)
    for title, what, value in (
        ("PipelineArn", "What builds the image", Ref(pipeline)),
        ("AmiParameter", "The stack cluster's AmiId: the SSM parameter with the newest image's id", Sub(PARAMETER)),
    ):
        template.add_output(
            Output(title, Description=what, Value=value, Export=Export(Sub(f"${{AWS::StackName}}-{title}")))
        )
    return template


def components(settings: Settings) -> list[Component]:
    """Those that these settings need."""
    return [one for one in COMPONENTS if one.name != "apps" or settings.image.apps]


def document(settings: Settings, component: Component) -> str:
    """The component as Image Builder reads it, for Fn::Sub. Each step is a bash script of its own, run by root."""
    lines = [f"name: {component.name}", f"description: {component.what}", "schemaVersion: 1.0", "phases:"]
    for phase in ("build", "validate", "test"):
        if names := getattr(component, phase):
            script = "set -euo pipefail\n" + "".join(_filled(part(name), settings) for name in names)
            lines += [
                f"  - name: {phase}",
                "    steps:",
                f"      - name: {component.name}",
                "        action: ExecuteBash",
                "        inputs:",
                "          commands:",
                "            - |",
                textwrap.indent(script.rstrip("\n"), " " * 14),
            ]
    return "\n".join(lines) + "\n"


def _filled(script: str, settings: Settings) -> str:
    placed = [f"place {app} {family} {key}" for app, family, key in _archives(settings)]
    for place, text in (
        ("{DISK}", part("disk.sh")),
        ("{SHARED}", part("shared.sh")),
        ("{MEMORY_MIB}", str(settings.worker.memory_mib)),
        ("{PLACED}", "\n".join(placed)),
    ):
        script = script.replace(place, text)
    return script


def _archives(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, family and key of every archive."""
    return [(app, family, key) for app, keys in settings.image.apps.items() for family, key in keys.items()]


def _component(template: Template, settings: Settings, assets: Assets, one: Component) -> imagebuilder.Component:
    text = document(settings, one)
    known = {"AgentKey": assets.agent.key, "AgentSha256": assets.agent.sha256}
    values = {name: value for name, value in known.items() if f"${{{name}}}" in text}
    return template.add_resource(
        imagebuilder.Component(
            f"{one.name.capitalize()}Component",
            Name=Sub(f"${{AWS::StackName}}-{one.name}"),
            # Always the same: Image Builder tells what changes apart by the build number behind it.
            Version="1.0.0",
            Platform="Linux",
            Description=one.what,
            Data=Sub(text, **values) if "${" in text else text,
            Tags=as_mapping(settings),
        )
    )


def _infrastructure(template: Template, settings: Settings, assets: Assets) -> imagebuilder.InfrastructureConfiguration:
    """Where it is built and tested: an instance that nothing can enter, with a way out."""
    chosen = settings.network
    # One public subnet is enough, and free: endpoints would cost all month for half an hour.
    where = chosen if chosen.vpc_id else Network(cidr=chosen.cidr, zones=1)
    place = network.add(template, settings.model_copy(update={"network": where}))
    role = _role(
        template,
        settings,
        "BuildRole",
        # What Image Builder itself asks of the instance (User Guide, "Prerequisites", IAM).
        "EC2InstanceProfileForImageBuilder",
        "AmazonSSMManagedInstanceCore",
        service=policies.EC2,
        statements=[
            policies.fetch_asset(assets.agent.key),
            *(policies.fetch_asset(key) for _, _, key in _archives(settings)),
            *policies.pull_images(),
        ],
    )
    profile = template.add_resource(iam.InstanceProfile("BuildProfile", Roles=[Ref(role)]))
    return template.add_resource(
        imagebuilder.InfrastructureConfiguration(
            "Infrastructure",
            Name=Sub("${AWS::StackName}"),
            InstanceProfileName=Ref(profile),
            InstanceTypes=list(settings.image.instance_types),
            SubnetId=place.places[0].subnet,
            SecurityGroupIds=[place.security_group],
            InstanceMetadataOptions=imagebuilder.InstanceMetadataOptions(
                HttpTokens="required", HttpPutResponseHopLimit=1
            ),
            TerminateInstanceOnFailure=True,
            ResourceTags=as_mapping(settings),
            Tags=as_mapping(settings),
            **({"DependsOn": place.ready} if place.ready else {}),
        )
    )


def _clean_up(template: Template, settings: Settings, recipe: imagebuilder.ImageRecipe) -> None:
    """Remove images that are neither among the newest nor in use."""
    role = _role(template, settings, "CleanUpRole", "service-role/EC2ImageBuilderLifecycleExecutionPolicy")
    template.add_resource(
        imagebuilder.LifecyclePolicy(
            "CleanUp",
            Name=Sub("${AWS::StackName}"),
            ExecutionRole=GetAtt(role, "Arn"),
            ResourceType="AMI_IMAGE",
            PolicyDetails=[
                imagebuilder.PolicyDetail(
                    Action=imagebuilder.Action(
                        Type="DELETE", IncludeResources=imagebuilder.IncludeResources(Amis=True, Snapshots=True)
                    ),
                    Filter=imagebuilder.Filter(Type="COUNT", Value=settings.image.keep),
                    ExclusionRules=imagebuilder.ExclusionRules(
                        Amis=imagebuilder.AmiExclusionRules(
                            LastLaunched=imagebuilder.LastLaunched(Value=settings.image.in_use_days, Unit="DAYS")
                        )
                    ),
                )
            ],
            ResourceSelection=imagebuilder.ResourceSelection(
                Recipes=[imagebuilder.RecipeSelection(Name=recipe.Name, SemanticVersion="x.x.x")]
            ),
            Tags=as_mapping(settings),
        )
    )


def _role(
    template: Template,
    settings: Settings,
    title: str,
    *managed: str,
    service: Any = "imagebuilder.amazonaws.com",
    statements: list[policies.Statement] | None = None,
) -> iam.Role:
    arns = [Sub(f"arn:${{AWS::Partition}}:iam::aws:policy/{name}") for name in managed]
    return template.add_resource(policies.role(title, service, tags(settings), statements or [], arns))
