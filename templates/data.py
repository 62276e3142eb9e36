"""What is kept: uploads and results, the jobs and their records, the notices, and the key that encrypts them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from troposphere import AWSObject, GetAtt, Ref, Sub, Template, dynamodb, kms, s3, sns, sqs

from templates.settings import Settings
from templates.tags import tags

TWO_WEEKS = 14 * 24 * 3600
"""The longest that SQS keeps a message."""
MOST_RECEIVES = 1000
"""SQS's own limit, and so no limit of ours: a release is a receive too, and only failures count against a job."""
INGEST_SECONDS = 30
CAPACITY_SECONDS = 30
"""The Lambdas' timeouts. A queue's visibility timeout must be at least its Lambda's."""


@dataclass(frozen=True)
class Data:
    """The resources that others refer to."""

    key: kms.Key
    uploads: s3.Bucket
    results: s3.Bucket
    table: dynamodb.Table
    upload_events: sqs.Queue
    jobs: sqs.Queue
    dead_letter: sqs.Queue
    notices: sqs.Queue
    notices_topic: sns.Topic


def add(template: Template, settings: Settings) -> Data:
    """Everything that outlives an instance."""
    key = _key(template, settings)
    upload_events = _queue_with_dead(
        template, settings, key, "UploadEvents", visibility=6 * INGEST_SECONDS, receives=10
    )
    # Not six times the Lambda's timeout, as is usual against throttling (the event source's MaximumConcurrency keeps
    # that away): a notice whose Lambda died must be heard again within the two minutes that it is worth something.
    notices = _queue_with_dead(template, settings, key, "Notices", visibility=2 * CAPACITY_SECONDS, receives=5)
    dead_letter = _queue(template, settings, key, "DeadLetter", MessageRetentionPeriod=TWO_WEEKS)
    _keep(dead_letter)
    jobs = _queue(
        template,
        settings,
        key,
        "Jobs",
        VisibilityTimeout=settings.queue.lease_seconds,
        MessageRetentionPeriod=TWO_WEEKS,
        ReceiveMessageWaitTimeSeconds=20,
        RedrivePolicy=sqs.RedrivePolicy(deadLetterTargetArn=GetAtt(dead_letter, "Arn"), maxReceiveCount=MOST_RECEIVES),
    )
    _keep(jobs)
    uploads = _uploads(template, settings, key, upload_events)
    results = _bucket(template, settings, key, "Results", settings.buckets.results)
    table = template.add_resource(
        dynamodb.Table(
            "JobsTable",
            AttributeDefinitions=[dynamodb.AttributeDefinition(AttributeName="job_id", AttributeType="S")],
            KeySchema=[dynamodb.KeySchema(AttributeName="job_id", KeyType="HASH")],
            BillingMode="PAY_PER_REQUEST",
            PointInTimeRecoverySpecification=dynamodb.PointInTimeRecoverySpecification(PointInTimeRecoveryEnabled=True),
            SSESpecification=dynamodb.SSESpecification(
                SSEEnabled=True, SSEType="KMS", KMSMasterKeyId=GetAtt(key, "Arn")
            ),
            Tags=tags(settings),
        )
    )
    _keep(table)
    topic = _notices_topic(template, settings, key, notices)
    return Data(key, uploads, results, table, upload_events, jobs, dead_letter, notices, topic)


def _key(template: Template, settings: Settings) -> kms.Key:
    """One customer key. Services that write to queues and topic use it in their own name, so its policy lets them."""

    def may_encrypt(services: list[str], **condition: Any) -> dict[str, Any]:
        statement = {
            "Effect": "Allow",
            "Principal": {"Service": services},
            "Action": ["kms:Decrypt", "kms:GenerateDataKey*"],
            "Resource": "*",
        }
        return {**statement, "Condition": condition} if condition else statement

    key = template.add_resource(
        kms.Key(
            "Key",
            Description=Sub("Queues, topic, table and buckets of ${AWS::StackName}"),
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
                    may_encrypt(
                        ["s3.amazonaws.com", "sns.amazonaws.com"],
                        StringEquals={"aws:SourceAccount": Ref("AWS::AccountId")},
                    ),
                    # These two are not documented to name their source to KMS; the policies of the queue and the
                    # topic, which do hear it, hold them to our own rules and alarms.
                    may_encrypt(["events.amazonaws.com", "cloudwatch.amazonaws.com"]),
                ],
            },
            Tags=tags(settings),
        )
    )
    _keep(key)
    return key


def _keep(resource: AWSObject) -> None:
    """Survive the stack's end and its own replacement: there is work or history in it."""
    resource.DeletionPolicy = "Retain"
    resource.UpdateReplacePolicy = "Retain"


def _queue(template: Template, settings: Settings, key: kms.Key, title: str, **properties: Any) -> sqs.Queue:
    return template.add_resource(
        sqs.Queue(
            title,
            KmsMasterKeyId=GetAtt(key, "Arn"),
            # A data key serves so long before SQS asks KMS again: 300 s would be 12 requests an hour for each caller.
            KmsDataKeyReusePeriodSeconds=3600,
            Tags=tags(settings),
            **properties,
        )
    )


def _queue_with_dead(
    template: Template, settings: Settings, key: kms.Key, title: str, visibility: int, receives: int
) -> sqs.Queue:
    """An event queue and the place for what its Lambda could not handle; nobody's work, so it goes with the stack."""
    dead = _queue(template, settings, key, f"{title}Dead", MessageRetentionPeriod=TWO_WEEKS)
    return _queue(
        template,
        settings,
        key,
        title,
        VisibilityTimeout=visibility,
        RedrivePolicy=sqs.RedrivePolicy(deadLetterTargetArn=GetAtt(dead, "Arn"), maxReceiveCount=receives),
    )


def let_service_send(service: str, queue: sqs.Queue, **condition: Any) -> dict[str, Any]:
    """The statement that lets an AWS service put messages into a queue, on a condition about their source."""
    return {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sqs:SendMessage",
        "Resource": GetAtt(queue, "Arn"),
        "Condition": condition,
    }


def _uploads(template: Template, settings: Settings, key: kms.Key, events: sqs.Queue) -> s3.Bucket:
    """The bucket that makes jobs. S3 tries the queue when the bucket is made, so the queue's policy comes first; and so
    that policy can name the bucket only if its name is chosen. Otherwise it is any bucket of this account.
    """
    name = settings.buckets.uploads
    policy = template.add_resource(
        sqs.QueuePolicy(
            "UploadEventsPolicy",
            Queues=[Ref(events)],
            PolicyDocument={
                "Version": "2012-10-17",
                "Statement": [
                    let_service_send(
                        "s3.amazonaws.com",
                        events,
                        StringEquals={"aws:SourceAccount": Ref("AWS::AccountId")},
                        ArnLike={"aws:SourceArn": Sub(f"arn:${{AWS::Partition}}:s3:::{name or '*'}")},
                    )
                ],
            },
        )
    )
    announce = s3.QueueConfigurations(Event="s3:ObjectCreated:*", Queue=GetAtt(events, "Arn"))
    if settings.uploads.prefix:
        rule = s3.Rules(Name="prefix", Value=settings.uploads.prefix)
        announce.Filter = s3.Filter(S3Key=s3.S3Key(Rules=[rule]))
    return _bucket(
        template,
        settings,
        key,
        "Uploads",
        name,
        NotificationConfiguration=s3.NotificationConfiguration(QueueConfigurations=[announce]),
        DependsOn=policy.title,
    )


def _bucket(
    template: Template, settings: Settings, key: kms.Key, title: str, name: str | None, **properties: Any
) -> s3.Bucket:
    """A private, versioned, encrypted bucket that only speaks TLS."""
    bucket = template.add_resource(
        s3.Bucket(
            f"{title}Bucket",
            VersioningConfiguration=s3.VersioningConfiguration(Status="Enabled"),
            BucketEncryption=s3.BucketEncryption(
                ServerSideEncryptionConfiguration=[
                    s3.ServerSideEncryptionRule(
                        BucketKeyEnabled=True,
                        ServerSideEncryptionByDefault=s3.ServerSideEncryptionByDefault(
                            SSEAlgorithm="aws:kms", KMSMasterKeyID=GetAtt(key, "Arn")
                        ),
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
                    )
                ]
            ),
            Tags=tags(settings),
            **({"BucketName": name} if name else {}),
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


def _notices_topic(template: Template, settings: Settings, key: kms.Key, notices: sqs.Queue) -> sns.Topic:
    """Where instances say that they are being taken; it only leads to the notices queue."""
    topic = template.add_resource(sns.Topic("NoticesTopic", KmsMasterKeyId=GetAtt(key, "Arn"), Tags=tags(settings)))
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
