"""What Auto Scaling tells SNS of a group: PutNotificationConfiguration, and the messages.

Their form is the one of "Amazon SNS notification options" in the Auto Scaling User Guide.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from localcloud import substrate
from localcloud.instances import Instance
from localcloud.world import ACCOUNT

if TYPE_CHECKING:
    from localcloud.groupkeeper import Activity, Group

WORDS = {"LAUNCH": "launch", "LAUNCH_ERROR": "failure to launch", "TERMINATE": "termination"}
KINDS = {f"autoscaling:EC2_INSTANCE_{kind}" for kind in (*WORDS, "TERMINATE_ERROR")} | {"autoscaling:TEST_NOTIFICATION"}
Publish = Callable[[str, str, str], None]
"""`(topic ARN, subject, message)`; does not wait."""


class News:
    """Tells the topics that a group has."""

    def __init__(self, publish: Publish = substrate.publish) -> None:
        self._publish = publish

    def test(self, group: Group, topic: str, now: datetime) -> None:
        """What a topic gets when it is set up."""
        told = {**_common(group, "autoscaling:TEST_NOTIFICATION", now), "RequestId": str(uuid.uuid4())}
        self._publish(topic, f'Auto Scaling: test notification for group "{group.name}"', json.dumps(told))

    def tell(self, group: Group, kind: str, activity: Activity, instance: Instance | None, now: datetime) -> None:
        """Tell those topics that want to hear of it. `kind`: LAUNCH, LAUNCH_ERROR or TERMINATE."""
        event = f"autoscaling:EC2_INSTANCE_{kind}"
        told = {
            **_common(group, event, now),
            "ActivityId": activity.id,
            "RequestId": activity.id,
            "Description": activity.description,
            "Cause": activity.cause,
            "StartTime": f"{activity.start:%Y-%m-%dT%H:%M:%S.000Z}",
            "EndTime": f"{now:%Y-%m-%dT%H:%M:%S.000Z}",
            "StatusCode": "Failed" if activity.trouble else "InProgress",
            "StatusMessage": activity.trouble,
            "Progress": 100 if activity.trouble else 50,
        }
        if instance is not None:
            place = {"Subnet ID": instance.subnet.id, "Availability Zone": instance.pool.zone}
            told |= {"EC2InstanceId": instance.id, "Details": place}
        for topic, kinds in group.news.items():
            if event in kinds:
                self._publish(topic, f'Auto Scaling: {WORDS[kind]} for group "{group.name}"', json.dumps(told))


def _common(group: Group, event: str, now: datetime) -> dict[str, Any]:
    return {
        "Service": "AWS Auto Scaling",
        "AccountId": ACCOUNT,
        "AutoScalingGroupName": group.name,
        "AutoScalingGroupARN": group.arn,
        "Event": event,
        "Time": f"{now:%Y-%m-%dT%H:%M:%S.000Z}",
    }
