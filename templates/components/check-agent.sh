# Whether the unit starts, and stays: user data says at first boot where its notices go.
cat > /etc/spindrift/agent.env <<EOF
SPINDRIFT_NOTICES_TOPIC_ARN=arn:${AWS::Partition}:sns:${AWS::Region}:${AWS::AccountId}:nobody
SPINDRIFT_HOST_DIR={HOST_DIR}
AWS_DEFAULT_REGION=${AWS::Region}
EOF
systemctl daemon-reload
systemctl start spindrift-agent.service
sleep 10
systemctl is-active spindrift-agent.service
if [ "$(systemctl show --property NRestarts --value spindrift-agent.service)" != 0 ]; then
  echo "spindrift: the agent does not stay up" >&2
  journalctl --unit spindrift-agent.service --no-pager >&2
  exit 1
fi
