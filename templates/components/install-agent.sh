mkdir -p /opt/spindrift /etc/spindrift /var/lib/spindrift {HOST_DIR}
is_the_agent() { printf '%s  %s\n' ${AgentSha256} "$1" | sha256sum --check --status 2> /dev/null; }
# An image of our own has it already.
if ! is_the_agent /opt/spindrift/agent.pyz; then
  fetch ${AgentKey} /opt/spindrift/agent.new
  if ! is_the_agent /opt/spindrift/agent.new; then
    echo "spindrift: s3://${AssetsBucket}/${AgentKey} is not the agent that this stack was built with" >&2
    exit 1
  fi
  mv /opt/spindrift/agent.new /opt/spindrift/agent.pyz
fi
cat > /etc/systemd/system/spindrift-agent.service <<'EOF'
{UNIT}EOF
