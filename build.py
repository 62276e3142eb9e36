#!/usr/bin/env python3
"""Spindrift's one door. Without a command it renders the templates and their assets into build/.

Exit status: 0 done; 1 it could not be done; 2 the settings, the command line or the set-up is wrong.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

try:
    import click
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    from ops.account import Account, NoSuchStack, told
    from ops.ami import Baker, CannotBake
    from ops.batch import Jobs, NothingToDo
    from ops.dlq import DeadLetters, Done
    from ops.doctor import Doctor
    from ops.down import CouldNotTakeDown, Down
    from ops.findings import COULD_NOT_LOOK, OK, PROBLEM
    from ops.package import CannotPackage, package
    from ops.publish import CannotPublish, publish
    from ops.text import count
    from replay.command import replay
    from templates.image import ECS_GPU_IMAGE
    from templates.instance_types import must_have_gpu
    from templates.settings import BadSettings, Settings, must_name_a_bucket
    from templates.stacks import STACKS, rendered
except ModuleNotFoundError as error:
    print(f"build.py: {error.name} is not installed for {sys.executable}; `make setup` installs it", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parent
MANIFEST = "manifest.json"
STACK_NAME = "spindrift"
WHEN = {
    "cluster": ("", "Next"),
    "image": ("-image", "Only for an image of your own (docs/operations.md)"),
    "batch": ("-batch", "Only for the same work on AWS Batch (docs/operations.md)"),
}
"""By stack: what its name has behind ours, and when it is deployed."""
WATCH_SECONDS = 5
DOCKERFILE = "ecs-tasks/gpu-worker/Dockerfile"


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


def _bucket(_: click.Context, __: click.Parameter, name: str | None) -> str | None:
    try:
        return name and must_name_a_bucket(name)
    except ValueError as error:
        raise Wrong(f"--bucket: {error}") from error


@cli.command()
@settings_option
@out_option
@click.pass_context
def check(context: click.Context) -> None:
    """Show the templates and the Dockerfile to every judge there is.

    Before you deploy, to know what AWS would refuse, or take and silently not do:

        python build.py check

    Each finding is a line, judge: where: what. Exit status: 0 nothing found; 1 something is; 2 a judge is not set up.
    """
    # Here and not above: cfn-lint and moto take a second to import, and only this command needs them.
    from judges import NotHere, NotSetUp  # noqa: PLC0415
    from judges.panel import JUDGES, Product  # noqa: PLC0415

    paths = context.find_root().ensure_object(Paths)
    try:
        settings = Settings.load(paths.settings)
        assets = package(ROOT, paths.out / "assets")
    except (BadSettings, CannotPackage) as error:
        raise Wrong(str(error)) from error
    product = Product(
        {name: json.loads(rendered(build(settings, assets))) for name, build in STACKS.items()},
        {DOCKERFILE: (ROOT / DOCKERFILE).read_text("utf-8")},
    )
    found = 0
    for name, judge in JUDGES.items():
        started = time.monotonic()
        try:
            findings = judge(product)
        except NotSetUp as error:
            raise Wrong(f"{name}: {error}") from error
        except NotHere as error:
            click.echo(f"{name}: not asked: {error}")
            continue
        for finding in findings:
            click.echo(str(finding))
        found += len(findings)
        click.echo(f"{name}: {len(findings) or 'nothing'} found in {time.monotonic() - started:.1f} s")
    context.exit(1 if found else 0)


@cli.command("publish")
@click.option("--bucket", required=True, callback=_bucket, help="An S3 bucket of yours, in the region of the stack.")
@out_option
@click.pass_obj
def publish_command(paths: Paths, bucket: str) -> None:
    """Upload the assets that the bucket lacks.

    Built, and not deployed yet:

        python build.py publish --bucket BUCKET
    """
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
    click.echo(f"{len(uploaded)} uploaded, {len(files) - len(uploaded)} already there")
    for stack in manifest["stacks"]:
        suffix, why = WHEN.get(stack["name"], (f"-{stack['name']}", f"For {stack['name']}"))
        template = out / stack["template"]
        click.echo(
            f"\n{why}:\n\n"
            f"  aws cloudformation deploy --stack-name {STACK_NAME}{suffix} --template-file {template} \\\n"
            f"    --capabilities CAPABILITY_IAM --s3-bucket {bucket} \\\n"
            f"    --parameter-overrides AssetsBucket={bucket} WorkerImage=IMAGE"
        )


@cli.command()
@settings_option
@click.option("--image", help="The worker's image, as the stack's WorkerImage will have it.")
@click.option("--bucket", callback=_bucket, help="The bucket for the assets.")
@click.option("--template", type=click.Choice(list(STACKS)), default="cluster", show_default=True, help="Of the stack.")
@click.option("--ami", default=ECS_GPU_IMAGE, help="The stack's AmiId, if it is to be another than ECS's newest image.")
@click.option("--fix", is_flag=True, help="Make the service-linked roles that are missing. Nothing else is changed.")
@click.pass_context
def doctor(context: click.Context, image: str | None, bucket: str | None, template: str, ami: str, fix: bool) -> None:
    """Say whether the settings will work in this account and region.

    Before the first deployment, or when nothing starts:

        python build.py doctor --bucket BUCKET --image IMAGE

    With --template image or --template batch, of the stack of build/image.json or build/batch.json. Exit status: 0 all
    is well; 1 there are problems, or something could not be looked at.
    """
    try:
        settings = Settings.load(context.find_root().ensure_object(Paths).settings)
    except BadSettings as error:
        raise Wrong(str(error)) from error
    count = dict.fromkeys((OK, PROBLEM, COULD_NOT_LOOK), 0)
    examined = Doctor(Account(), settings, template=template, image=image, bucket=bucket, ami=ami, fix=fix)
    for finding in examined.examine():
        count[finding.state] += 1
        click.echo(f"{finding.state:<16}{finding.what}")
        if finding.do:
            click.echo(f"{'':<16}-> {finding.do}")
    click.echo(f"\n{count[OK]} well, {count[PROBLEM]} problems, {count[COULD_NOT_LOOK]} could not be looked at")
    context.exit(0 if count[OK] == sum(count.values()) else 1)


@cli.command()
@click.option("--stack", "name", required=True, help="The name it was deployed with.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--delete-data", is_flag=True, help="Delete buckets, jobs, messages, files and images too. For ever.")
@click.option("--end-jobs", is_flag=True, help="Even if AWS Batch is not done with its jobs: terminate them.")
@click.option("--wait-minutes", type=click.IntRange(1), default=30, show_default=True, help="How long to wait for AWS.")
@click.pass_context
def down(context: click.Context, name: str, yes: bool, delete_data: bool, end_jobs: bool, wait_minutes: int) -> None:
    """Delete a stack, and prove that nothing of it runs any more.

    The work is done, and not a cent more is to be spent:

        python build.py down --stack NAME

    Uploads, results, job records, queues with messages in them and baked images stay, and are named with the command
    that removes each. It refuses while AWS Batch is not done with its jobs. After a failure, or when time is up, run it
    again. Exit status: 0 it is proved that nothing else is left; 1 something is, or could not be looked for.
    """
    try:
        ending = Down(Account(), name, say=click.echo, wait_minutes=wait_minutes, end_jobs=end_jobs)
        for line in ending.plan(delete_data):
            click.echo(line)
        if not yes:
            _must_mean_it(name)
        context.exit(0 if ending.run(delete_data) else 1)
    except (NoSuchStack, NoCredentialsError, NoRegionError) as error:
        raise Wrong(str(error)) from error
    except CouldNotTakeDown as error:
        raise Failed(str(error)) from error
    except (ClientError, BotoCoreError) as error:
        raise Failed(told(error)) from error


def _must_mean_it(name: str) -> None:
    if not sys.stdin.isatty():
        raise Wrong("nobody is there to confirm it: add --yes")
    if click.prompt(f"\nType {name} to go on", default="", show_default=False) != name:
        raise Wrong("that is not its name: nothing was done")


stack_option = click.option("--stack", "name", required=True, help="The name it was deployed with.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
jobs_argument = click.argument("jobs", nargs=-1)
all_option = click.option("--all", "everything", is_flag=True, help="All that is in the queue.")


@contextmanager
def _asking() -> Iterator[None]:
    """What an account may answer, as the operator is told of it."""
    try:
        yield
    except (NoSuchStack, NoCredentialsError, NoRegionError) as error:
        raise Wrong(str(error)) from error
    except (ClientError, BotoCoreError) as error:
        raise Failed(told(error)) from error


@cli.command("status")
@stack_option
@click.option("--watch", is_flag=True, help="Look again every five seconds, until Ctrl-C.")
@json_option
def status_command(name: str, watch: bool, as_json: bool) -> None:
    """Show what waits, what works, what it costs, and why nothing starts.

    When jobs wait and you wonder:

        python build.py status --stack NAME

    Exit status: 0 shown; 1 AWS did not answer; 2 there is no such stack, or the command line is wrong.
    """
    # Here and not above: it needs the market Lambda's own code, and only this command and `pools` do.
    from ops.status import Status  # noqa: PLC0415

    with _asking():
        status = Status(Account(), name)
        while True:
            report = status.report(datetime.now(UTC))
            if watch and not as_json:
                click.clear()
            click.echo(report.json() if as_json else "\n".join(report.text()))
            if not watch:
                return
            try:
                time.sleep(WATCH_SECONDS)
            except KeyboardInterrupt:
                return


@cli.group()
def dlq() -> None:
    """Look at jobs that failed for good, requeue them or purge them.

    When the alarm of the dead-letter queue rings:

        python build.py dlq list --stack NAME

    JOB is what `list` shows: a job's id, or a message's own where it tells of no job or of several. Exit status: 0
    done; 1 something is left, or AWS did not answer; 2 there is no such stack, or the command line is wrong.
    """


@dlq.command("list")
@stack_option
@json_option
def dlq_list(name: str, as_json: bool) -> None:
    """Show what is in the dead-letter queue: the first thousand."""
    with _asking():
        listing = DeadLetters(Account(), name).listing()
    if as_json:
        click.echo(json.dumps({"more": listing.more, "jobs": [asdict(one) for one in listing.entries]}, default=str))
        return
    for line in listing.text():
        click.echo(line)


@dlq.command("show")
@stack_option
@click.argument("job")
def dlq_show(name: str, job: str) -> None:
    """Show one message and the records of its jobs, as JSON."""
    with _asking():
        found = DeadLetters(Account(), name).show(job)
    if found is None:
        raise Failed(f"{job} is not in the dead-letter queue, or somebody looks at it just now")
    click.echo(json.dumps(found, indent=2, sort_keys=True))


@dlq.command("requeue")
@stack_option
@jobs_argument
@all_option
@json_option
@click.pass_context
def dlq_requeue(context: click.Context, name: str, jobs: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Give jobs another chance, without their failures.

    When the cause is mended:

        python build.py dlq requeue --stack NAME --all
    """
    names = _which(jobs, everything)
    with _asking():
        done = DeadLetters(Account(), name).requeue(names)
    _tell(context, "requeued", done, as_json)


@dlq.command("purge")
@stack_option
@jobs_argument
@all_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def dlq_purge(
    context: click.Context, name: str, jobs: tuple[str, ...], everything: bool, yes: bool, as_json: bool
) -> None:
    """Delete messages for ever. The records of their jobs stay, and say FAILED."""
    names = _which(jobs, everything)
    with _asking():
        letters = DeadLetters(Account(), name)
        if not yes:
            click.echo(f"to be deleted: {'all' if names is None else ', '.join(names)}")
            _must_mean_it(name)
        done = letters.purge(names)
    _tell(context, "purged", done, as_json)


def _which(jobs: tuple[str, ...], everything: bool) -> tuple[str, ...] | None:
    if bool(jobs) == everything:
        raise Wrong("name jobs, or say --all")
    return None if everything else jobs


def _tell(context: click.Context, verb: str, done: Done, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({verb: done.done, "already": done.already, "left": done.left}))
    else:
        for word, names in ((verb, done.done), ("already", done.already), ("left", done.left)):
            for one in names:
                click.echo(f"{word}: {one}")
        click.echo(f"{len(done.done)} {verb}, {len(done.left)} left")
    context.exit(1 if done.left else 0)


@cli.command("ami")
@stack_option
@click.option("--follow", is_flag=True, help="Tell how far it is, until the image is there.")
def ami_command(name: str, follow: bool) -> None:
    """Bake an image of your own.

    When the stack of build/image.json is deployed, and whenever the agent, the worker's image or ECS's own is newer:

        python build.py ami --stack NAME --follow

    A build that runs already is followed, and no other is started. It goes on when you press Ctrl-C. Exit status: 0 the
    image is there, or (without --follow) its build has been started; 1 it failed, or AWS did not answer; 2 there is no
    such stack, or the command line is wrong.
    """
    with _asking():
        baker = Baker(Account(), name, say=click.echo)
        try:
            arn = baker.start()
            if follow:
                baker.follow(arn)
        except CannotBake as error:
            raise Failed(str(error)) from error


@cli.command("bench")
@settings_option
@out_option
@stack_option
@click.option(
    "--sample",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A file of yours as it would be uploaded, or a folder of them.",
)
@click.option("--types", help="Instance types, with commas between.  [default: all of the settings]")
@click.option("--jobs", type=click.IntRange(3), default=12, show_default=True, help="To be measured on each type.")
@click.option("--queue", default="default", show_default=True, help="Whose workers do it, by its name in the settings.")
@click.option("--minutes", type=click.IntRange(5, 600), default=30, show_default=True, help="The most that it takes.")
@click.option("--write", is_flag=True, help="Write the weights into the settings.")
@json_option
@click.pass_context
def bench_command(
    context: click.Context,
    name: str,
    sample: Path,
    types: str | None,
    jobs: int,
    queue: str,
    minutes: int,
    write: bool,
    as_json: bool,
) -> None:
    """Measure what each instance type does for its money, with your own processor and files.

    When the stack works, to have the fleet buy throughput and not GPUs:

        python build.py bench --stack NAME --sample FILE --write

    One Spot instance of each type does the sample again and again; then they go, with all that was uploaded. Exit
    status: 0 every type was measured (and the weights are written); 1 some were not, or AWS did not answer; 2 there is
    no such stack, or the settings or the command line are wrong.
    """
    # Here and not above: it needs the Lambdas' own code, and only this command and two others do.
    from ops import bars  # noqa: PLC0415
    from ops.bench import Asked, Bench, NoSample, NoSuchQueue, files_of, types_of  # noqa: PLC0415

    paths = context.find_root().ensure_object(Paths)
    try:
        settings = Settings.load(paths.settings)
        chosen = [must_have_gpu(one.strip()) for one in types.split(",")] if types else types_of(settings)
    except BadSettings as error:
        raise Wrong(str(error)) from error
    except ValueError as error:
        raise Wrong(f"--types: {error}") from error
    say = partial(click.echo, err=as_json)
    with _asking():
        try:
            files, names = files_of(sample), [*dict.fromkeys(chosen)]
            asked = Asked(files=files, types=names, jobs=jobs, queue=queue, minutes=minutes)
            bench = Bench(Account(), name, settings, asked, say)
            report = bench.run()
        except NoSuchQueue as error:
            raise Wrong(str(error)) from error
        except NoSample as error:
            raise Failed(str(error)) from error
    plot = paths.out / "bench" / "types.svg"
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(bars.svg(report), "utf-8")
    click.echo(report.json() if as_json else "\n" + "\n".join(report.text()))
    say(f"\n{plot}\n")
    weights = {one.type: one.weight for one in report.lines if one.weight}
    if not set(types_of(settings)) <= weights.keys():
        raise Failed("the settings want a weight for each of their types, or for none: there is nothing to write")
    _tune(paths.settings, settings, {kind: weights[kind] for kind in types_of(settings)}, write, say)
    context.exit(1 if report.missing or bench.interrupted else 0)


def _tune(path: Path, settings: Settings, weights: dict[str, int], write: bool, say: Callable[[str], None]) -> None:
    # Here and not above: a parser of TOML that only this needs.
    from ops.retune import Tuned  # noqa: PLC0415

    try:
        tuned = Tuned.of(path, settings, weights)
    except BadSettings as error:
        raise Failed(f"{path} does not take these weights:\n{error}") from error
    if write:
        path.write_text(tuned.text, "utf-8")
    say(f"{path}, {'changed' if write else 'as --write would change it'}:\n")
    for change in tuned.changes:
        say(f"  {change}")


@cli.group("batch")
def batch_group() -> None:
    """Hand work to AWS Batch, and see what became of it.

    When the stack of build/batch.json is deployed and files are in its uploads bucket:

        python build.py batch submit --stack NAME --prefix holiday/
        python build.py batch status --stack NAME

    Exit status: 0 done; 1 there is nothing to submit, or AWS did not answer; 2 there is no such stack or queue, or the
    command line is wrong.
    """


@batch_group.command("submit")
@stack_option
@click.option("--prefix", required=True, help="Of the keys in the uploads bucket; '' is every object.")
@click.option("--queue", help="Its name in the settings. Not needed when there is one.")
def batch_submit(name: str, prefix: str, queue: str | None) -> None:
    """Submit a job for every object: an array of up to 10,000, or several."""
    with _asking():
        try:
            submitted = Jobs(Account(), name).submit(prefix, queue)
        except NothingToDo as error:
            raise Failed(str(error)) from error
        except KeyError as error:
            raise Wrong(str(error.args[0])) from error
    for one in submitted:
        click.echo(f"{one.job_id}  {count(one.objects, 'object')}")


@batch_group.command("status")
@stack_option
@json_option
def batch_status(name: str, as_json: bool) -> None:
    """Show how far each submitted job is, and why objects failed."""
    with _asking():
        report = Jobs(Account(), name).report()
    click.echo(report.json() if as_json else "\n".join(report.text()))


@cli.command("pools")
@settings_option
@click.option("--stack", "name", help="Show what its market Lambda knows; without it, the pools of the settings.")
@click.option("--propose", is_flag=True, help="Print a diversified list of instance types for the settings.")
@click.option("--gpus", type=click.IntRange(1, 8), help="Of each instance in the proposal.  [default: 1]")
@click.option(
    "--min-memory-gib", "memory", type=click.FloatRange(min=0), help="For each GPU in the proposal.  [default: 16]"
)
@click.option("--zones", type=click.IntRange(1, 6), help="Of the region's, for the proposal.  [default: 3]")
@click.pass_context
def pools_command(
    context: click.Context,
    name: str | None,
    propose: bool,
    gpus: int | None,
    memory: float | None,
    zones: int | None,
) -> None:
    """Show what each Spot pool costs and is worth, or propose types.

    To see why the fleet does not launch in some pools:

        python build.py pools --stack NAME

    To choose instance types before the first deployment, as TOML for spindrift.toml:

        python build.py pools --propose --gpus 1 --min-memory-gib 16 --zones 3

    Spot prices are the average of the past hour, in US dollars an hour of one instance. Exit status: 0 shown; 1 AWS did
    not answer, or nothing fits; 2 there is no such stack, or the settings or the command line are wrong.
    """
    # Here and not above: it needs the Lambda's own code, and only this command does.
    from ops import pools  # noqa: PLC0415

    asked = {"--gpus": gpus, "--min-memory-gib": memory, "--zones": zones}
    if not propose and (given := [option for option, value in asked.items() if value is not None]):
        raise Wrong(f"{', '.join(given)}: only with --propose")
    if propose and name:
        raise Wrong("--stack: not with --propose, which asks the market")
    now, account = datetime.now(UTC), Account()
    try:
        if propose:
            wanted = pools.Wanted(gpus=gpus or 1, memory_gib=16 if memory is None else memory, zones=zones or 3)
            click.echo(pools.propose(account, wanted, now), nl=False)
            return
        settings = context.find_root().ensure_object(Paths).settings
        report = pools.of_stack(account, name) if name else pools.of_settings(account, Settings.load(settings), now)
    except (BadSettings, NoSuchStack, NoCredentialsError, NoRegionError) as error:
        raise Wrong(str(error)) from error
    except pools.NothingFits as error:
        raise Failed(str(error)) from error
    except (ClientError, BotoCoreError) as error:
        raise Failed(told(error)) from error
    for line in report.text():
        click.echo(line)


@cli.command()
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), help="Divides the times that AWS decides.")
@click.option("--seed", type=int, help="The same seed is the same Spot market.")
@click.option("--port", type=click.IntRange(0, 65535), help="Where the API listens, on 127.0.0.1.")
@click.option("--state", type=click.Path(file_okay=False), help="Keep state and logs here when it ends.")
@click.option("--containers", is_flag=True, help="Run tasks in podman or docker (see make image), not as processes.")
@click.option("--speeds", help='How fast GPUs are, for processors that play it: {"g5.xlarge": 2.5}, LOCALCLOUD_SPEED.')
@click.pass_context
def local(
    context: click.Context,
    speed: float | None,
    seed: int | None,
    port: int | None,
    state: str | None,
    containers: bool,
    speeds: str | None,
) -> None:
    """Keep a local cloud up until Ctrl-C.

    To see an hour of Spot in three minutes, always the same one:

        python build.py local --speed 20 --seed 7
    """
    # Here and not above: the emulator takes a second to import, and only this command needs it.
    from localcloud import command  # noqa: PLC0415

    given = {"--speed": speed, "--seed": seed, "--port": port, "--state": state, "--speeds": speeds}
    arguments = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    context.exit(command.main([*arguments, *(["--containers"] if containers else [])]))


cli.add_command(replay)

if __name__ == "__main__":
    cli()
