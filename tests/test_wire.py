"""What goes over the local cloud's wire is what botocore's models say, or it does not go."""

import pytest

from localcloud.wire import Call, Fault, Service, Unfaithful, answer_of, params_of, plays


@pytest.mark.parametrize(
    "case, answer",
    [
        ("unknown field", {"clusters": [], "klusters": []}),
        ("mistyped field", {"clusters": [{"clusterName": 7}]}),
        ("unknown field deep down", {"clusters": [{"clusterName": "x", "Status": "ACTIVE"}]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_that_aws_could_not_give_is_not_given(case, answer):
    with pytest.raises(Unfaithful):
        answer_of("ecs", "DescribeClusters", answer)


def test_an_answer_is_written_in_the_services_own_protocol():
    status, headers, body = answer_of("ec2", "DescribeInstances", {"Reservations": [{"ReservationId": "r-1"}]})

    assert status == 200
    assert "xml" in headers["Content-Type"]
    assert b"<reservationId>r-1</reservationId>" in body


def test_a_request_is_read_and_what_it_lacks_is_told():
    form = b"Action=TerminateInstances&Version=2016-11-15&InstanceId.1=i-1&InstanceId.2=i-2"

    assert params_of("ec2", "TerminateInstances", {}, form) == {"InstanceIds": ["i-1", "i-2"]}
    with pytest.raises(Fault, match="InstanceIds"):
        params_of("ec2", "TerminateInstances", {}, b"Action=TerminateInstances&Version=2016-11-15")


class Clock(Service):
    name = "ecs"

    @plays("cluster")
    def list_services(self, call):
        return {"serviceArns": [call.params["cluster"]]}

    def list_tasks(self, call):
        raise AssertionError("not marked as played")


def test_a_parameter_that_is_not_played_is_refused_not_ignored():
    clock = Clock()

    assert clock.answer(Call("ListServices", {"cluster": "x"}, "arn")) == {"serviceArns": ["x"]}
    with pytest.raises(Fault, match="does not play launchType of ListServices"):
        clock.answer(Call("ListServices", {"cluster": "x", "launchType": "EC2"}, "arn"))


def test_only_what_is_marked_is_played():
    assert Clock().plays("ListServices")
    assert not Clock().plays("ListTasks")
    assert not Clock().plays("DeleteEverything")
