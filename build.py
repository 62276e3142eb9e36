#!/usr/bin/env python3
"""Spindrift's one door. Without a command it renders the templates and their assets into build/.

Exit status: 0 done; 1 it could not be done; 2 the settings, the command line or the set-up is wrong.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

try:
    import click

    from ops.package import CannotPackage, package
    from ops.publish import CannotPublish, publish
    from templates.settings import BadSettings, Settings, must_name_a_bucket
    from templates.stacks import STACKS, rendered
except ModuleNotFoundError as error:
    print(f"build.py: {error.name} is not installed for {sys.executable}; `make setup` installs it", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parent
MANIFEST = "manifest.json"
STACK_NAME = "spindrift"


class Wrong(click.ClickException):
    """A mistake of the operator's: one clear message, status 2."""

    exit_code = 2

    def show(self, file: object = None) -> None:  # noqa: ARG002 - click's signature
        """Print the message as it is."""
        click.echo(self.message, err=True)


class Failed(Wrong):
    """What was asked for is right and could not be done: status 1."""

    exit_code = 1


@dataclass
class Paths:
    """What to build from, and where to."""

    settings: Path = Path("spindrift.toml")
    out: Path = Path("build")


def _note(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        setattr(context.find_root().ensure_object(Paths), str(parameter.name), value)


settings_option = click.option(
    "--settings",
    type=click.Path(path_type=Path),
    expose_value=False,
    callback=_note,
    help="What to build; every key is documented in the default, spindrift.toml.",
)
out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    expose_value=False,
    callback=_note,
    help="The folder for what is built; the default is build.",
)


@click.group(invoke_without_command=True)
@settings_option
@out_option
@click.pass_context
def cli(context: click.Context) -> None:
    """GPU batch work on spare EC2 capacity. Without a command: render."""
    context.ensure_object(Paths)
    if context.invoked_subcommand is None:
        context.invoke(render)


@cli.command()
@settings_option
@out_option
@click.pass_obj
def render(paths: Paths) -> None:
    """Write all templates and their assets, and say what to type next."""
    out = paths.out
    try:
        settings = Settings.load(paths.settings)
        assets = package(ROOT, out / "assets")
    except (BadSettings, CannotPackage) as error:
        raise Wrong(str(error)) from error
    written = [out / "assets" / asset.key for asset in assets.all]
    for name, build in STACKS.items():
        template = out / f"{name}.json"
        template.write_text(rendered(build(settings, assets)), "utf-8")
        written.append(template)
    manifest = {
        "stacks": [{"name": name, "template": f"{name}.json"} for name in STACKS],
        "assets": [{"key": asset.key, "sha256": asset.sha256} for asset in assets.all],
        "settings": settings.model_dump(mode="json"),
    }
    written.append(out / MANIFEST)
    written[-1].write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", "utf-8")
    for path in written:
        click.echo(f"{path}  {path.stat().st_size:,} bytes")
    elsewhere = "" if out == Path("build") else f" --out {out}"
    click.echo("\nNext, with a bucket of yours for the assets, in the region of the stack:\n")
    click.echo(f"  python build.py{elsewhere} publish --bucket BUCKET")


def _bucket(_: click.Context, __: click.Parameter, name: str) -> str:
    try:
        return must_name_a_bucket(name)
    except ValueError as error:
        raise Wrong(f"--bucket: {error}") from error


@cli.command("publish")
@click.option("--bucket", required=True, callback=_bucket, help="An S3 bucket of yours, in the region of the stack.")
@out_option
@click.pass_obj
def publish_command(paths: Paths, bucket: str) -> None:
    """Upload the assets that the bucket lacks."""
    out = paths.out
    try:
        manifest = json.loads((out / MANIFEST).read_text("utf-8"))
        files = [out / "assets" / asset["key"] for asset in manifest["assets"]]
        uploaded = publish(files, bucket)
    except FileNotFoundError as error:
        raise Wrong(f"{error.filename} is missing: run `python build.py` first") from error
    except CannotPublish as error:
        raise Failed(str(error)) from error
    for name in uploaded:
        click.echo(f"s3://{bucket}/{name}")
    click.echo(f"{len(uploaded)} uploaded, {len(files) - len(uploaded)} already there\n\nNext:\n")
    for stack in manifest["stacks"]:
        click.echo(
            f"  aws cloudformation deploy --stack-name {STACK_NAME} --template-file {out / stack['template']} \\\n"
            f"    --capabilities CAPABILITY_IAM --s3-bucket {bucket} \\\n"
            f"    --parameter-overrides AssetsBucket={bucket} WorkerImage=IMAGE"
        )


@cli.command()
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Divides the times that AWS decides.")
@click.option("--seed", type=int, help="The same seed is the same Spot market.")
@click.option("--port", type=click.IntRange(0, 65535), help="Where the API listens, on 127.0.0.1.")
@click.option("--state", type=click.Path(file_okay=False), help="Keep state and logs here when it ends.")
@click.pass_context
def local(context: click.Context, speed: float | None, seed: int | None, port: int | None, state: str | None) -> None:
    """Keep a local cloud up until Ctrl-C.

    To see an hour of Spot in three minutes, always the same one:

        python build.py local --speed 20 --seed 7
    """
    # Here and not above: the emulator takes a second to import, and only this command needs it.
    from localcloud import command  # noqa: PLC0415

    given = {"--speed": speed, "--seed": seed, "--port": port, "--state": state}
    arguments = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    context.exit(command.main(arguments))


if __name__ == "__main__":
    cli()
