"""What is kept: uploads and results, the jobs and their records, the notices, and the key that encrypts them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from troposphere import AWSObject, GetAtt, Ref, Sub, Template, dynamodb, kms, s3, sns, sqs

from templates.settings import Queue, Settings
from templates.tags import tags

TWO_WEEKS = 14 * 24 * 3600
"""The longest that SQS keeps a message."""
MOST_RECEIVES = 1000
"""SQS's own limit, and so no limit of ours: a release is a receive too, and only failures count against a job."""
IN_BETWEEN = (".parts/", ".checkpoints/")
"""Folders of the results bucket in which workers leave something for each other (worker: parts.py, checkpoint.py)."""
LEFT_BEHIND_DAYS = 30
"""Longer than the message of a job and that of its part may wait, one after the other."""
INGEST_SECONDS = 30
CAPACITY_SECONDS = 30
"""The Lambdas' timeouts. A queue's visibility timeout must be at least its Lambda's."""


@dataclass(frozen=True)
class Data:
    """The resources that others refer to."""

    key: kms.Key | None
    """None where AWS's own keys do."""
    uploads: s3.Bucket
    results: s3.Bucket
    table: dynamodb.Table
    pools: dynamodb.Table
    """What is known of each Spot pool: knowledge, not work, and gone with the stack."""
    upload_events: sqs.Queue | None
    """None where S3 writes to the job queues itself."""
    jobs: dict[str, sqs.Queue]
    """By name of queue, in the order of the settings."""
    dead_letter: sqs.Queue
    notices: sqs.Queue
    notices_topic: sns.Topic


def add(template: Template, settings: Settings) -> Data:
    """Everything that outlives an instance."""
    key = _key_of_services(template, settings) if settings.security.customer_key else None
    # Not six times the Lambda's timeout, as is usual against throttling (the event source's MaximumConcurrency keeps
    # that away): a notice whose Lambda died must be heard again within the two minutes that it is worth something.
    notices, _ = _queue_with_dead(template, settings, key, "Notices", visibility=2 * CAPACITY_SECONDS, receives=5)
    dead_letter = _queue(template, settings, key, "DeadLetter", MessageRetentionPeriod=TWO_WEEKS)
    _keep(dead_letter)
    jobs = {queue.name: _jobs(template, settings, key, queue, dead_letter) for queue in settings.queues}
    upload_events = None
    if settings.uploads.ingest == "lambda":
        upload_events, dead = _queue_with_dead(
            template, settings, key, "UploadEvents", visibility=6 * INGEST_SECONDS, receives=10
        )
        # An upload that is announced and not a job yet is work. Notices are not: old news is worth nothing.
        _keep(upload_events)
        _keep(dead)
    uploads = _uploads(template, settings, key, _announced(settings, jobs, upload_events))
    results = _bucket(template, settings, key, "Results", between=IN_BETWEEN)
    table = _table(template, settings, key, "JobsTable", "job_id")
    _keep(table)
    pools = _table(template, settings, key, "PoolsTable", "pool")
    topic = _notices_topic(template, settings, key, notices)
    return Data(key, uploads, results, table, pools, upload_events, jobs, dead_letter, notices, topic)


@dataclass(frozen=True)
class Buckets:
    """Uploads and results alone, for a stack without queues."""

    key: kms.Key | None
    uploads: s3.Bucket
    results: s3.Bucket


def add_buckets(template: Template, settings: Settings, between: Sequence[str]) -> Buckets:
    """Uploads that nobody is told of, and results; `between` are folders of the results for a while only."""
    key = _key(template, settings, "Buckets", []) if settings.security.customer_key else None
    uploads = _bucket(template, settings, key, "Uploads")
    return Buckets(key, uploads, _bucket(template, settings, key, "Results", between=between))


def _key_of_services(template: Template, settings: Settings) -> kms.Key:
    """One customer key. Services that write to queues and topic use it in their own name, so its policy lets them."""

    def may_encrypt(services: list[str], **condition: Any) -> dict[str, Any]:
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": services},
            "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
            "Resource": "*",
        }
        return {**statement, "Condition": condition} if condition else statement

    return _key(
        template,
        settings,
        "Queues, topic, table and buckets",
        [
            may_encrypt(
                ["s3.amazonaws.com", "sns.amazonaws.com"],
                StringEquals={"aws:SourceAccount": Ref("AWS::AccountId")},
            ),
            # These two are not documented to name their source to KMS; the policies of the queue and the topic, which
            # do hear it, hold them to our own rules and alarms.
            may_encrypt(["events.amazonaws.com", "cloudwatch.amazonaws.com"]),
            *([_auto_scaling_may_encrypt()] if settings.notify.scaling else []),
        ],
    )


def _key(template: Template, settings: Settings, of: str, users: Sequence[dict[str, Any]]) -> kms.Key:
    """A customer key for whom IAM lets, and for `users` by its policy."""
    key = template.add_resource(
        kms.Key(
            "Key",
            Description=Sub(f"{of} of ${{AWS::StackName}}"),
            EnableKeyRotation=True,
            KeyPolicy={
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": {"AWS": Sub("arn:${AWS::Partition}:iam::${AWS::AccountId}:root")},
                        "Action": "kms:*",
                        "Resource": "*",
                    },
                    *users,
                ],
            },
            Tags=tags(settings),
        )
    )
    _keep(key)
    return key


def _auto_scaling_may_encrypt() -> dict[str, Any]:
    """Groups tell the operators' topic in the name of their service-linked role (SNS Developer Guide, "Managing Amazon
    SNS encryption keys"); without this the stack could not be made, for Auto Scaling tries the topic first.

    The role is named in a condition: as a principal it would have to exist before the account's first group does.
    """
    role = "role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    return {
        "Effect": "Allow",
        "Principal": {"AWS": "*"},
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": "*",
        "Condition": {
            "StringEquals": {"kms:CallerAccount": Ref("AWS::AccountId")},
            "ArnEquals": {"aws:PrincipalArn": Sub(f"arn:${{AWS::Partition}}:iam::${{AWS::AccountId}}:{role}")},
        },
    }


def _keep(resource: AWSObject) -> None:
    """Survive the stack's end and its own replacement: there is work or history in it."""
    resource.DeletionPolicy = "Retain"
    resource.UpdateReplacePolicy = "Retain"


def _queue(template: Template, settings: Settings, key: kms.Key | None, title: str, **properties: Any) -> sqs.Queue:
    # A data key serves an hour before SQS asks KMS again: 300 s would be 12 requests an hour for each caller.
    sealed = (
        {"KmsMasterKeyId": GetAtt(key, "Arn"), "KmsDataKeyReusePeriodSeconds": 3600}
        if key
        else {"SqsManagedSseEnabled": True}
    )
    return template.add_resource(sqs.Queue(title, Tags=tags(settings), **sealed, **properties))


def _jobs(
    template: Template, settings: Settings, key: kms.Key | None, queue: Queue, dead_letter: sqs.Queue
) -> sqs.Queue:
    jobs = _queue(
        template,
        settings,
        key,
        f"{queue.title}Jobs",
        VisibilityTimeout=queue.lease_seconds,
        MessageRetentionPeriod=TWO_WEEKS,
        ReceiveMessageWaitTimeSeconds=20,
        RedrivePolicy=sqs.RedrivePolicy(deadLetterTargetArn=GetAtt(dead_letter, "Arn"), maxReceiveCount=MOST_RECEIVES),
    )
    _keep(jobs)
    return jobs


def _queue_with_dead(
    template: Template, settings: Settings, key: kms.Key | None, title: str, visibility: int, receives: int
) -> tuple[sqs.Queue, sqs.Queue]:
    """An event queue, and the place for what its Lambda could not handle."""
    dead = _queue(template, settings, key, f"{title}Dead", MessageRetentionPeriod=TWO_WEEKS)
    queue = _queue(
        template,
        settings,
        key,
        title,
        VisibilityTimeout=visibility,
        RedrivePolicy=sqs.RedrivePolicy(deadLetterTargetArn=GetAtt(dead, "Arn"), maxReceiveCount=receives),
    )
    return queue, dead


def let_service_send(service: str, queue: sqs.Queue, **condition: Any) -> dict[str, Any]:
    """The statement that lets an AWS service put messages into a queue, on a condition about their source."""
    return {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sqs:SendMessage",
        "Resource": GetAtt(queue, "Arn"),
        "Condition": condition,
    }


def _table(template: Template, settings: Settings, key: kms.Key | None, title: str, identity: str) -> dynamodb.Table:
    table = template.add_resource(
        dynamodb.Table(
            title,
            AttributeDefinitions=[dynamodb.AttributeDefinition(AttributeName=identity, AttributeType="S")],
            KeySchema=[dynamodb.KeySchema(AttributeName=identity, KeyType="HASH")],
            BillingMode="PAY_PER_REQUEST",
            PointInTimeRecoverySpecification=dynamodb.PointInTimeRecoverySpecification(PointInTimeRecoveryEnabled=True),
            Tags=tags(settings),
        )
    )
    if key:
        table.SSESpecification = dynamodb.SSESpecification(
            SSEEnabled=True, SSEType="KMS", KMSMasterKeyId=GetAtt(key, "Arn")
        )
    return table


def _announced(
    settings: Settings, jobs: dict[str, sqs.Queue], upload_events: sqs.Queue | None
) -> list[tuple[str, sqs.Queue]]:
    """What S3 announces: the beginning of the keys, and the queue that hears of them."""
    if upload_events is None:
        return [(queue.prefix, jobs[queue.name]) for queue in settings.queues]
    # S3 takes no filter within another; with more queues than one the ingest Lambda hears everything and chooses.
    only = settings.queues[0].prefix if len(settings.queues) == 1 else ""
    return [(only, upload_events)]


def _uploads(
    template: Template, settings: Settings, key: kms.Key | None, announced: list[tuple[str, sqs.Queue]]
) -> s3.Bucket:
    """The bucket that makes jobs. S3 tries the queues when the bucket is made, so their policies come first; those
    cannot name a bucket whose name is not known yet, and let in S3 for any bucket of this account.
    """
    policies = [
        template.add_resource(
            sqs.QueuePolicy(
                f"{queue.title}Policy",
                Queues=[Ref(queue)],
                PolicyDocument={
                    "Version": "2012-10-17",
                    "Statement": [
                        let_service_send(
                            "s3.amazonaws.com", queue, StringEquals={"aws:SourceAccount": Ref("AWS::AccountId")}
                        )
                    ],
                },
            )
        )
        for _, queue in announced
    ]
    return _bucket(
        template,
        settings,
        key,
        "Uploads",
        NotificationConfiguration=s3.NotificationConfiguration(
            QueueConfigurations=[_announcement(prefix, queue) for prefix, queue in announced]
        ),
        DependsOn=[policy.title for policy in policies],
    )


def _announcement(prefix: str, queue: sqs.Queue) -> s3.QueueConfigurations:
    announcement = s3.QueueConfigurations(Event="s3:ObjectCreated:*", Queue=GetAtt(queue, "Arn"))
    if prefix:
        announcement.Filter = s3.Filter(S3Key=s3.S3Key(Rules=[s3.Rules(Name="prefix", Value=prefix)]))
    return announcement


def _bucket(
    template: Template,
    settings: Settings,
    key: kms.Key | None,
    title: str,
    between: Sequence[str] = (),
    **properties: Any,
) -> s3.Bucket:
    """A private, versioned, encrypted bucket that only speaks TLS. CloudFormation names it: a name that was chosen
    could only be changed by another bucket in its place. What is in the folders `between` is for a while only.
    """
    sealed = (
        s3.ServerSideEncryptionByDefault(SSEAlgorithm="aws:kms", KMSMasterKeyID=GetAtt(key, "Arn"))
        if key
        else s3.ServerSideEncryptionByDefault(SSEAlgorithm="AES256")
    )
    bucket = template.add_resource(
        s3.Bucket(
            f"{title}Bucket",
            VersioningConfiguration=s3.VersioningConfiguration(Status="Enabled"),
            BucketEncryption=s3.BucketEncryption(
                ServerSideEncryptionConfiguration=[
                    s3.ServerSideEncryptionRule(
                        ServerSideEncryptionByDefault=sealed, **({"BucketKeyEnabled": True} if key else {})
                    )
                ]
            ),
            PublicAccessBlockConfiguration=s3.PublicAccessBlockConfiguration(
                BlockPublicAcls=True, BlockPublicPolicy=True, IgnorePublicAcls=True, RestrictPublicBuckets=True
            ),
            LifecycleConfiguration=s3.LifecycleConfiguration(
                Rules=[
                    s3.LifecycleRule(
                        Id="parts-of-uploads-never-finished",
                        Status="Enabled",
                        AbortIncompleteMultipartUpload=s3.AbortIncompleteMultipartUpload(DaysAfterInitiation=7),
                    ),
                    *(
                        s3.LifecycleRule(
                            Id=f"{folder.strip('./')}-left-behind",
                            Status="Enabled",
                            Prefix=folder,
                            ExpirationInDays=LEFT_BEHIND_DAYS,
                            NoncurrentVersionExpiration=s3.NoncurrentVersionExpiration(NoncurrentDays=1),
                        )
                        for folder in between
                    ),
                ]
            ),
            Tags=tags(settings),
            **properties,
        )
    )
    _keep(bucket)
    template.add_resource(
        s3.BucketPolicy(
            f"{title}BucketPolicy",
            Bucket=Ref(bucket),
            PolicyDocument={
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Deny",
                        "Principal": "*",
                        "Action": "s3:*",
                        "Resource": [GetAtt(bucket, "Arn"), Sub(f"${{{bucket.title}.Arn}}/*")],
                        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
                    }
                ],
            },
        )
    )
    return bucket


def _notices_topic(template: Template, settings: Settings, key: kms.Key | None, notices: sqs.Queue) -> sns.Topic:
    """Where instances say that they are being taken; it only leads to the notices queue."""
    topic = template.add_resource(sns.Topic("NoticesTopic", Tags=tags(settings)))
    if key:
        topic.KmsMasterKeyId = GetAtt(key, "Arn")
    template.add_resource(
        sns.SubscriptionResource(
            "NoticesSubscription",
            TopicArn=Ref(topic),
            Protocol="sqs",
            Endpoint=GetAtt(notices, "Arn"),
            RawMessageDelivery=True,
        )
    )
    return topic
