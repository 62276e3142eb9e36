"""The stack `batch`: what Batch may buy, when it tries again, and what a job may touch."""

import pytest

from localcloud import batch, wire
from localcloud.batchjobs import Definition, Job, is_tried_again
from localcloud.ecs import Ecs
from localcloud.formation import NotPlayed
from localcloud.wire import Call, Fault
from templates.instance_types import INSTANCE_TYPES
from templates.settings import BadSettings, Settings
from tests.ec2_make import Cloud, Surveyed
from tests.stacks_make import EVERYTHING, IMAGE, stack
from tests.worker_make import NOON

GONE = "Host EC2 (instance i-0123456789abcdef0) terminated."
"""What Batch says of a job whose machine was taken (Batch User Guide, "Automated job retries")."""
QUEUES = {
    "queues": [
        {"name": "urgent", "prefix": "u/", "placement": "on-demand", "max_tasks": 2},
        {"name": "cheap", "prefix": "c/", "placement": "spot"},
        {"name": "default", "max_failures": 5},
    ]
}


def resources(table=None):
    return stack(table or {}, name="batch")["Resources"]


def properties(title, table=None):
    return resources(table)[title]["Properties"]


def test_the_stack_renders_as_agreed(golden):
    from templates.stacks import STACKS, rendered
    from tests.stacks_make import assets

    golden("batch.json", rendered(STACKS["batch"](Settings.read({}), assets())))


@pytest.mark.parametrize(
    "case, types, units",
    [
        ("one GPU each", ["g4dn.xlarge", "g4dn.2xlarge"], 8),
        ("several GPUs", ["g4dn.12xlarge", "g5.xlarge"], 9),
        ("large ones only", ["g5.48xlarge"], 16),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_there_are_never_more_gpus_than_units_whichever_types_batch_buys(case, types, units):
    table = {"compute": {"instance_types": types, "max_units": units}, "worker": {"cpu": 2048}}
    bought = properties("SpotMachines", table)["ComputeResources"]

    assert (bought["InstanceTypes"], bought["MinvCpus"]) == (types, 0)
    for kind in (INSTANCE_TYPES[name] for name in types):
        assert bought["MaxvCpus"] // kind.vcpus * kind.gpus <= units
    assert any(bought["MaxvCpus"] / kind.vcpus * kind.gpus == units for kind in map(INSTANCE_TYPES.get, types))


def test_spot_comes_first_and_the_first_queue_before_the_others():
    made = resources(QUEUES)
    order = {
        title: [each["ComputeEnvironment"]["Ref"] for each in one["Properties"]["ComputeEnvironmentOrder"]]
        for title, one in made.items()
        if one["Type"] == "AWS::Batch::JobQueue"
    }
    priority = {title: made[title]["Properties"]["Priority"] for title in order}

    assert order == {
        "UrgentQueue": ["OnDemandMachines"],
        "CheapQueue": ["SpotMachines"],
        "DefaultQueue": ["SpotMachines", "OnDemandMachines"],
    }
    assert sorted(priority, key=priority.get, reverse=True) == ["UrgentQueue", "CheapQueue", "DefaultQueue"]
    assert len(set(priority.values())) == 3


def test_without_on_demand_there_is_only_spot():
    made = resources({"on_demand": {"urgency": "spot-only", "max_units": 0}})

    assert "OnDemandMachines" not in made
    assert [
        each["ComputeEnvironment"]["Ref"] for each in made["DefaultQueue"]["Properties"]["ComputeEnvironmentOrder"]
    ] == ["SpotMachines"]


@pytest.mark.parametrize("title, market", [("SpotMachines", "SPOT"), ("OnDemandMachines", "EC2")])
def test_machines_are_renewed_in_place_and_their_jobs_may_end_first(title, market):
    made = properties(title, {"worker": {"job_seconds": 36_000}})
    bought = made["ComputeResources"]

    assert (bought["Type"], made["ReplaceComputeEnvironment"]) == (market, False)
    assert bought["AllocationStrategy"] in ("SPOT_PRICE_CAPACITY_OPTIMIZED", "BEST_FIT_PROGRESSIVE")
    # Batch's own role, or an update would have to replace it; its own count, or an update would reset it.
    assert not {"ServiceRole", "SpotIamFleetRole", "DesiredvCpus"} & {*made, *bought}
    assert made["UpdatePolicy"]["TerminateJobsOnUpdate"] is False
    longest = properties("DefaultJob", {"worker": {"job_seconds": 36_000}})["Timeout"]["AttemptDurationSeconds"]
    assert made["UpdatePolicy"]["JobExecutionTimeoutMinutes"] * 60 >= longest


def test_a_new_image_and_a_new_launch_template_reach_the_machines():
    bought = properties("SpotMachines")["ComputeResources"]
    start = properties("LaunchTemplate")["LaunchTemplateData"]

    assert bought["Ec2Configuration"] == [{"ImageType": "ECS_AL2023_NVIDIA", "ImageIdOverride": {"Ref": "AmiId"}}]
    assert bought["LaunchTemplate"]["Version"] == {"Fn::GetAtt": ["LaunchTemplate", "LatestVersionNumber"]}
    assert (start["MetadataOptions"]["HttpTokens"], start["MetadataOptions"]["HttpPutResponseHopLimit"]) == (
        "required",
        1,
    )
    assert start["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True


def after(code, why, attempts=1, table=None):
    """Whether Batch would try again."""
    asked = properties("DefaultJob", table)["RetryStrategy"]
    strategy = {
        "attempts": asked["Attempts"],
        "evaluateOnExit": [
            {key[0].lower() + key[1:]: value for key, value in one.items()} for one in asked["EvaluateOnExit"]
        ],
    }
    job = Job("j", "j", "q", Definition("d", {"retryStrategy": strategy}, "t"), {}, 0, NOON, attempts=[{}] * attempts)
    return is_tried_again(job, code, "", why)


EXITED = "Essential container in task exited"


@pytest.mark.parametrize(
    "case, code, why, again",
    [
        ("the machine was taken", None, GONE, True),
        ("the machine was taken while it wrote its code", 3, GONE, True),
        ("a failure", 1, EXITED, True),
        ("killed for want of memory", 137, EXITED, True),
        ("not now", 4, EXITED, True),
        ("a broken GPU", 64, EXITED, True),
        ("the image could not be pulled", None, "CannotPullContainerError: timeout", True),
        ("refused", 2, EXITED, False),
        ("rejected, or failures used up", 3, EXITED, False),
        ("a code that begins like one of ours", 33, EXITED, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_tried_again(case, code, why, again):
    assert after(code, why) is again


def test_batch_itself_gives_up_after_ten_attempts_whatever_they_ended_by():
    assert after(None, GONE, attempts=9)
    assert not after(None, GONE, attempts=10)
    assert not after(None, GONE, attempts=3, table={"batch": {"attempts": 3}})
    with pytest.raises(BadSettings, match=r"batch\.attempts: at most 10, got 11"):
        Settings.read({"batch": {"attempts": 11}})


def test_the_workers_own_time_is_over_before_batchs_which_would_be_final():
    for seconds in (60, 43_200):
        made = properties("DefaultJob", {"worker": {"job_seconds": seconds}})
        told = {one["Name"]: one["Value"] for one in made["ContainerProperties"]["Environment"]}
        assert int(told["SPINDRIFT_JOB_SECONDS"]) + 600 <= made["Timeout"]["AttemptDurationSeconds"]


def test_each_queue_has_its_own_patience():
    told = {
        title: {one["Name"]: one["Value"] for one in made["Properties"]["ContainerProperties"]["Environment"]}
        for title, made in resources(QUEUES).items()
        if made["Type"] == "AWS::Batch::JobDefinition"
    }

    assert {title: each["SPINDRIFT_MAX_FAILURES"] for title, each in told.items()} == {
        "UrgentJob": "3", "CheapJob": "3", "DefaultJob": "5",
    }  # fmt: skip


def test_a_job_gets_what_a_task_gets():
    container = properties("DefaultJob")["ContainerProperties"]
    needs = {one["Type"]: one["Value"] for one in container["ResourceRequirements"]}

    assert needs == {"GPU": "1", "MEMORY": "12288", "VCPU": "3"}
    assert container["ReadonlyRootFilesystem"] is True and "Privileged" not in container
    assert container["Command"] == ["once"]
    assert needs | {"VCPU": "4"} == {
        one["Type"]: one["Value"]
        for one in properties("DefaultJob", {"worker": {"cpu": 3073}})["ContainerProperties"]["ResourceRequirements"]
    }


def test_shared_is_what_it_is_in_the_cluster():
    def mounts(table):
        container = properties("DefaultJob", table)["ContainerProperties"]
        return {one["ContainerPath"]: (one["SourceVolume"], one["ReadOnly"]) for one in container["MountPoints"]}

    assert mounts({}) == {"/tmp": ("scratch", False)}
    assert mounts(EVERYTHING)["/shared"] == ("shared", False)
    assert mounts(IMAGE)["/shared"] == ("shared", True)
    [shared] = [
        one for one in properties("DefaultJob", EVERYTHING)["ContainerProperties"]["Volumes"] if one["Name"] == "shared"
    ]
    system = shared["EfsVolumeConfiguration"]
    assert (system["TransitEncryption"], system["AuthorizationConfig"]["Iam"]) == ("ENABLED", "ENABLED")
    [apps] = [
        one for one in properties("DefaultJob", IMAGE)["ContainerProperties"]["Volumes"] if one["Name"] == "shared"
    ]
    assert apps["Host"] == {"SourcePath": "/shared"}


def test_machines_wait_for_what_they_and_their_jobs_need():
    waits = resources(EVERYTHING)["SpotMachines"]["DependsOn"]

    assert {"WorkersReachFiles", "SharedFilesMount1"} <= set(waits)


def test_what_is_kept_and_what_a_job_may_do():
    made = resources()
    kept = {title for title, one in made.items() if one.get("DeletionPolicy") == "Retain"}
    allowed = {
        action
        for statement in made["WorkerRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
        for action in statement["Action"]
    }

    assert kept == {"UploadsBucket", "ResultsBucket", "Key"}
    assert {action.partition(":")[0] for action in allowed} == {"s3", "kms"}
    assert "s3:DeleteObjectVersion" not in allowed
    rules = made["ResultsBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert {one["Prefix"]: one["ExpirationInDays"] for one in rules if "Prefix" in one} == dict.fromkeys(
        (".manifests/", ".failures/", ".checkpoints/"), 30
    )


# Batch as the local cloud plays it, without anything inside its machines


class Played:
    """The stack's environments, queues and job definitions in a small cloud whose clock is the test's."""

    def __init__(self, folder, table=None):
        self.cloud = Cloud(folder)
        self.batch = batch.Batch(Ecs(self.cloud.world, lambda *_: None), self.cloud.instances, Surveyed())
        self.kinds = batch.resources(self.batch)
        made = stack(table or {}, name="batch")["Resources"]
        self.ids = {}
        for kind in self.kinds:
            for title, one in made.items():
                if one["Type"] == kind:
                    self.make(title, kind, self.settled(one["Properties"]))

    def make(self, title, kind, properties):
        self.ids[title], _ = self.kinds[kind].create(title, properties, "mine")

    def settled(self, value):
        """References as CloudFormation would have resolved them."""
        known = {"SpotMachines", "OnDemandMachines"}
        if isinstance(value, list):
            return [self.settled(one) for one in value]
        if not isinstance(value, dict):
            return value
        if "Ref" in value:
            name = value["Ref"]
            return self.ids[name] if name in known else {"Subnet1": "subnet-a", "Subnet2": "subnet-b"}.get(name, name)
        if "Fn::If" in value:
            return "subnet-c"
        if "Fn::GetAtt" in value:
            return "7" if value["Fn::GetAtt"][1] == "LatestVersionNumber" else ".".join(value["Fn::GetAtt"])
        if "Fn::Sub" in value:
            return value["Fn::Sub"].replace("${AWS::StackName}", "mine")
        return {name: self.settled(one) for name, one in value.items()}

    def ask(self, operation, **params):
        answer = self.batch.answer(Call(operation, params, "operator"))
        wire.hold_to_model(wire.model("batch").operation_model(operation), answer)
        return answer

    def update(self, title, **changes):
        """As CloudFormation does it: another revision, then the clean-up of the earlier one. Its ARN."""
        kind, earlier = self.kinds["AWS::Batch::JobDefinition"], self.ids[title]
        old = self.settled(properties(title))
        self.ids[title], _ = kind.update(earlier, old, {**old, **changes}, "mine")
        kind.delete(earlier, old)
        return earlier

    def active(self):
        found = self.ask("DescribeJobDefinitions", status="ACTIVE")["jobDefinitions"]
        return {one["jobDefinitionArn"] for one in found}

    def submit(self, size, title="Default"):
        given = {"jobQueue": self.ids[f"{title}Queue"], "jobDefinition": self.ids[f"{title}Job"]}
        return self.ask("SubmitJob", jobName="j", arrayProperties={"size": size}, **given)["jobId"]

    def bought(self, lifecycle):
        """GPUs that were launched."""
        living = [one for one in self.cloud.instances.all() if one.lifecycle == lifecycle and one.living]
        return sum(INSTANCE_TYPES[one.pool.type].gpus for one in living)


@pytest.fixture
def played(tmp_path, monkeypatch):
    monkeypatch.setattr(batch.EnvironmentResource, "_role", lambda *_: "arn:aws:iam::123456789012:role/instance")
    return lambda table=None: Played(tmp_path, table)


SMALL = {"compute": {"instance_types": ["g4dn.xlarge", "g5.xlarge"], "max_units": 4}, "queues": [{"max_tasks": 4}]}


def test_what_spot_has_no_room_for_goes_to_on_demand_and_neither_exceeds_its_units(played):
    cloud = played(SMALL)
    cloud.submit(3)
    cloud.cloud.world.advance(60)
    assert (cloud.bought("spot"), cloud.bought("on-demand")) == (3, 0)

    cloud.submit(100)
    cloud.cloud.world.advance(60)
    assert (cloud.bought("spot"), cloud.bought("on-demand")) == (4, 4)


def test_without_spot_capacity_on_demand_takes_its_place(played):
    cloud = played(SMALL)
    for kind in ("g4dn.xlarge", "g5.xlarge"):
        for zone in "abc":
            cloud.cloud.fate.capacity(f"{kind}/us-east-1{zone}", 0)
    cloud.submit(2)
    cloud.cloud.world.advance(60)

    assert (cloud.bought("spot"), cloud.bought("on-demand")) == (0, 2)


def test_jobs_for_spot_wait_for_spot(played):
    cloud = played({**SMALL, "queues": [{"placement": "spot", "max_tasks": 4}]})
    cloud.submit(100)
    cloud.cloud.world.advance(60)

    assert (cloud.bought("spot"), cloud.bought("on-demand")) == (4, 0)


def test_nothing_is_bought_for_nothing(played):
    cloud = played(SMALL)
    job = cloud.submit(2)
    cloud.ask("TerminateJob", jobId=job, reason="changed my mind")
    cloud.cloud.world.advance(60)

    [seen] = cloud.ask("DescribeJobs", jobs=[job])["jobs"]
    assert (seen["status"], seen["arrayProperties"]["statusSummary"]["FAILED"]) == ("FAILED", 2)
    assert cloud.bought("spot") == 0


LONGER = {"Timeout": {"AttemptDurationSeconds": 40_000}}


def test_what_waits_keeps_its_job_definition_when_an_update_brings_another(played):
    cloud = played(SMALL)
    job = cloud.submit(2)
    earlier = cloud.update("DefaultJob", **LONGER)
    cloud.cloud.world.advance(60)

    [seen] = cloud.ask("DescribeJobs", jobs=[job])["jobs"]
    assert (seen["jobDefinition"], seen["arrayProperties"]["statusSummary"]["RUNNABLE"]) == (earlier, 2)
    assert cloud.active() == {earlier, cloud.ids["DefaultJob"]}
    later = cloud.submit(2)
    assert cloud.ask("DescribeJobs", jobs=[later])["jobs"][0]["jobDefinition"] == cloud.ids["DefaultJob"]

    cloud.kinds["AWS::Batch::JobDefinition"].delete(cloud.ids["DefaultJob"], {})
    assert cloud.active() == {earlier}, "CloudFormation does not know of it any more"


def test_the_local_cloud_does_not_make_up_what_becomes_of_a_job_whose_definition_is_taken_away(played):
    cloud = played(SMALL)
    job = cloud.submit(2)
    earlier = cloud.update("DefaultJob", ResourceRetentionPolicy={"SkipDeregisterOnUpdate": False})
    cloud.cloud.world.advance(60)

    assert cloud.active() == {cloud.ids["DefaultJob"]}
    [child] = cloud.ask("DescribeJobs", jobs=[f"{job}:1"])["jobs"]
    assert (child["status"], "AWS does not say" in child["statusReason"]) == ("FAILED", True)
    assert {one["subject"] for one in cloud.cloud.world.diary("fault")} == {f"{job}:0", f"{job}:1"}
    with pytest.raises(Fault, match="not found"):
        cloud.ask("SubmitJob", jobName="j", jobQueue=cloud.ids["DefaultQueue"], jobDefinition=earlier)


def test_a_job_definition_that_was_deregistered_is_still_shown(played):
    cloud = played(SMALL)
    arn = cloud.ids["DefaultJob"]
    cloud.ask("DeregisterJobDefinition", jobDefinition=arn.rpartition("/")[2])

    [seen] = cloud.ask("DescribeJobDefinitions")["jobDefinitions"]
    assert (seen["jobDefinitionArn"], seen["status"], cloud.active()) == (arn, "INACTIVE", set())
    assert seen["tags"]["spindrift:stack"] == "AWS::StackName"
    with pytest.raises(Fault, match="not found"):
        cloud.ask("DeregisterJobDefinition", jobDefinition="nobody:1")


@pytest.mark.parametrize("size", [1, 10_001])
def test_an_array_has_two_to_ten_thousand_children(played, size):
    with pytest.raises(Fault, match="Array size"):
        played().submit(size)


@pytest.mark.parametrize(
    "title, change, said",
    [
        ("SpotMachines", lambda one: one["ComputeResources"].update(BidPercentage=50), "BidPercentage"),
        ("SpotMachines", lambda one: one["ComputeResources"].update(AllocationStrategy="BEST_FIT"), "managed"),
        ("SpotMachines", lambda one: one["ComputeResources"].update(MinvCpus=4), "MinvCpus 0"),
        ("SpotMachines", lambda one: one["ComputeResources"].update(InstanceTypes=["g4dn.tiny"]), "g4dn.tiny"),
        ("SpotMachines", lambda one: one["ComputeResources"].update(Nonsense=1), "Nonsense"),
        ("SpotMachines", lambda one: one.update(ReplaceComputeEnvironment=True), "ReplaceComputeEnvironment"),
        ("DefaultQueue", lambda one: one.update(SchedulingPolicyArn="arn"), "SchedulingPolicyArn"),
        ("DefaultQueue", lambda one: one["ComputeEnvironmentOrder"][0].update(ComputeEnvironment="arn"), "no compute"),
        ("DefaultJob", lambda one: one.update(SchedulingPriority=3), "SchedulingPriority"),
        ("DefaultJob", lambda one: one["ResourceRetentionPolicy"].update(Keep=3), "Keep"),
        ("DefaultJob", lambda one: one["ContainerProperties"].update(Privileged=True), "privileged"),
        ("DefaultJob", lambda one: one["RetryStrategy"].update(Attempts=11), "1 to 10 attempts"),
        ("DefaultJob", lambda one: one["Timeout"].update(AttemptDurationSeconds=59), "60 seconds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_local_cloud_does_not_play_is_an_error(played, title, change, said):
    cloud = played()
    one = resources()[title]
    properties = cloud.settled(one["Properties"])
    change(properties)

    with pytest.raises(NotPlayed, match=said):
        cloud.make(f"{title}Again", one["Type"], properties)
