"""What instances run at first boot and while an image is baked, for the judges of shell and of systemd.

shellcheck finds unquoted expansions, unset variables, conditions that are always true and bashisms that are not.
`systemd-analyze verify` finds unknown directives and sections, values of no form, and dependencies that form a circle.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from judges import Finding, NotHere, NotSetUp, Template, Templates
from judges.filled import filled, settled

UNIT = re.compile(r"^cat > /etc/systemd/system/(\S+) <<'?(\w+)'?\n(.*?)^\2$", re.MULTILINE | re.DOTALL)
NOT_OURS = ("is not executable", "Failed to open /dev", "/lib/systemd/", "/etc/systemd/")
"""What the machine that verifies has not, and what its own units do wrong."""


def user_data(template: Template, given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Title of the launch template -> its user data as an instance gets it."""
    found = {}
    for title, body in template.get("Resources", {}).items():
        said = body.get("Properties", {}).get("LaunchTemplateData", {}).get("UserData")
        if said is not None:
            text = str(filled(template, said, given))
            found[title] = text if isinstance(said, dict) and "Fn::Base64" in said else _decoded(text)
    return found


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return text


def components(template: Template, given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Title and phase of each script of Image Builder's components -> its text."""
    found = {}
    for title, body in template.get("Resources", {}).items():
        if body.get("Type") == "AWS::ImageBuilder::Component":
            for phase in read(filled(template, body["Properties"]["Data"], given)).get("phases", ()):
                commands = [one for step in phase["steps"] for one in step["inputs"]["commands"]]
                found[f"{title} {phase['name']}"] = "#!/bin/bash\n" + "\n".join(commands)
    return found


def read(document: str) -> dict[str, Any]:
    """A component's document; empty when it is none."""
    try:
        found = yaml.safe_load(document)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def scripts(templates: Templates) -> Iterator[tuple[str, str]]:
    """(where, text) of each script, whichever conditions hold, each text once for each template."""
    for name, template in templates.items():
        seen = set()
        for holds in (True, False):
            stack = settled(template, holds)
            for title, text in [*user_data(stack).items(), *components(stack).items()]:
                if text not in seen:
                    seen.add(text)
                    yield f"{name}: {title}", text


def shellcheck(templates: Templates) -> list[Finding]:
    """Every level of shellcheck's, down to style."""
    program = Path(sys.executable).with_name("shellcheck")
    if not program.exists():
        raise NotSetUp(f"{program} is not there; `make setup` installs it")
    findings = []
    for where, text in scripts(templates):
        done = subprocess.run([program, "--format=json", "-"], input=text, capture_output=True, text=True, check=False)
        findings += [
            Finding("shellcheck", f"{where} line {said['line']}", f"SC{said['code']} {said['message']}")
            for said in json.loads(done.stdout)
        ]
    return findings


def systemd(templates: Templates) -> list[Finding]:
    """The units that scripts write. Raises NotHere without systemd-analyze."""
    program = shutil.which("systemd-analyze")
    if program is None:
        raise NotHere("systemd-analyze is not on this machine")
    findings = []
    for where, text in scripts(templates):
        for unit, _, body in UNIT.findall(text):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / unit
                path.write_text(body, "utf-8")
                done = subprocess.run([program, "verify", path], capture_output=True, text=True, check=False)
            findings += [
                Finding("systemd", f"{where} {unit}", line.replace(f"{folder}/", ""))
                for line in done.stderr.splitlines()
                if unit in line and not any(part in line for part in NOT_OURS)
            ]
    return findings
