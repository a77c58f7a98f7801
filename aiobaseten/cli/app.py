"""The commands: arguments in, calls of the library, outcomes out."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import anyio
import attrs
import cyclopts
from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from aiobaseten.bulk import manifest_schema
from aiobaseten.cli.connection import Connection, Transfer
from aiobaseten.cli.display import display_for
from aiobaseten.cli.fleet import Fleet, FleetOptions, Many, arguments_given, view_for
from aiobaseten.cli.outcome import Exit, Outcome, exit_for, exit_for_all, print_lines
from aiobaseten.client import Client
from aiobaseten.errors import BasetenError, InvalidPush
from aiobaseten.models import DeploymentArchivePayload
from aiobaseten.options import TransferOptions
from aiobaseten.push import CheckResult, Push

app = App(
    name="aiobaseten",
    help="Push models to Baseten: fast, in parallel, each exactly once.",
    version=version("aiobaseten"),
    help_format="plaintext",
)

JsonFlag = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON object per line on stdout; talk goes to stderr.")
]
Sources = Annotated[list[str], Parameter(help="Model directories, or archives that hold a config.yaml.")]
SourcesOrNone = Annotated[
    list[str] | None,
    Parameter(help="Model directories, or archives that hold a config.yaml; none with --manifest.", show_default=False),
]
Symlinks = Annotated[
    Literal["store", "follow"],
    Parameter(help="Links in a directory: keep those that stay inside it, or archive what they point to."),
]


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Target:
    """Where pushes go, and with which settings."""

    name: Annotated[str | None, Parameter(help="Name of the model; by default model_name in config.yaml. For one source.")] = None
    model_id: Annotated[str | None, Parameter(help="Id of an existing model, in place of a name. For one source.")] = None
    team_id: Annotated[str | None, Parameter(help="Id of the team that owns the model.")] = None
    environment: Annotated[str | None, Parameter(help="Environment to deploy to, such as production.")] = None
    deployment_name: Annotated[str | None, Parameter(help="Name of the deployment, unique within the model.")] = None
    label: Annotated[list[str] | None, Parameter(negative="", help="A label of the deployment, KEY=VALUE. May be repeated.")] = None
    development: Annotated[bool, Parameter(negative="", help="Deploy to the model's development slot.")] = False
    deploy_timeout_minutes: Annotated[int | None, Parameter(help="10 to 1440.")] = None
    existing: Annotated[Literal["deploy", "error"], Parameter(help="What to do about a named model that exists.")] = "deploy"
    disable_archive_download: Annotated[bool, Parameter(negative="", help="Archives of the new model cannot be downloaded.")] = (
        False
    )

    def pushes(self, sources: Sequence[str], symlinks: Literal["store", "follow"]) -> list[Push]:
        """A push for each source.

        :raises InvalidPush: for arguments that do not fit together
        """
        if len(sources) > 1 and (self.name is not None or self.model_id is not None):
            raise InvalidPush("--name and --model-id are for a single source")
        deployment = DeploymentArchivePayload(
            environment_name=self.environment,
            deployment_name=self.deployment_name,
            labels=self._labels(),
            is_development=self.development,
            deploy_timeout_minutes=self.deploy_timeout_minutes,
        )
        return [
            Push(
                source,
                name=self.name,
                model_id=self.model_id,
                team_id=self.team_id,
                deployment=deployment,
                existing=self.existing,
                disable_archive_download=self.disable_archive_download,
                symlinks=symlinks,
            )
            for source in sources
        ]

    def _labels(self) -> dict[str, str] | None:
        labels: dict[str, str] = {}
        for label in self.label or ():
            key, equals, value = label.partition("=")
            if not key or not equals:
                raise InvalidPush(f"--label must be KEY=VALUE, not {label!r}")
            labels[key] = value
        return labels or None


@app.command
async def push(
    sources: SourcesOrNone = None,
    /,
    *,
    many: Many = Many(),  # noqa: B008 - frozen
    dry_run: Annotated[bool, Parameter(negative="", help="Check all of it, here and at the service, and make nothing.")] = False,
    target: Target = Target(),
    symlinks: Symlinks = "store",
    wait: Annotated[bool, Parameter(negative="", help="Wait until each deployment is active.")] = False,
    timeout_s: Annotated[float, Parameter(name="--timeout", help="With --wait: give up after so many seconds.")] = 1800.0,
    push_timeout_s: Annotated[
        float | None,
        Parameter(name="--push-timeout", help="Seconds that each push may take; by default any."),
    ] = None,
    concurrency: Annotated[
        int | None, Parameter(help="Pushes at once; by default 4, or 64 with --manifest.", validator=Number(gte=1))
    ] = None,
    json_lines: JsonFlag = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
    transfer: Transfer = Transfer(),  # noqa: B008 - frozen
) -> int:
    """Upload models and make deployments of them.

    The first Ctrl-C takes no more pushes and sees commits through that were sent; the second ends at once.
    """
    many.check(sources)
    if many.manifest is not None and (target != Target() or symlinks != "store"):
        raise InvalidPush("with --manifest, its models' own settings hold: leave the options of single pushes out")
    manifest = await many.load()
    at_once = concurrency or (4 if manifest is None else 64)
    pushes = target.pushes(sources or (), symlinks)
    talk = _talk()
    view = None if dry_run else view_for(manifest, talk)
    async with connection.client(transfer.options(), push_s=push_timeout_s, observer=view) as client:
        if manifest is not None:
            manifest = await manifest.with_teams(lambda name: _team_id(client, name))
            pushes = [entry.push for entry in manifest.entries]
        if view is None:
            return await _each(pushes, client.check, at_once, json_lines)
        options = FleetOptions(
            manifest=manifest,
            journal=await many.journal_path(),
            journal_credentials=many.journal_credentials,
            concurrency=at_once,
            wait_timeout_s=timeout_s if wait else None,
            json_lines=json_lines,
            report=many.report,
        )
        return await Fleet(pushes, options, talk, view).run(client)


async def _team_id(client: Client, name: str) -> str | None:
    return next((team.id for team in await client.list_teams(name=name) if team.name == name), None)


@app.command
async def check(
    sources: Sources,
    /,
    *,
    target: Target = Target(),
    symlinks: Symlinks = "store",
    concurrency: Annotated[int, Parameter(help="Checks at once.", validator=Number(gte=1))] = 4,
    json_lines: JsonFlag = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
) -> int:
    """Check models, here and at the service, without uploading or making anything."""
    pushes = target.pushes(sources, symlinks)
    async with connection.client(TransferOptions()) as client:
        return await _each(pushes, client.check, concurrency, json_lines)


@app.command
async def wait(
    model_id: str,
    deployment_id: str,
    /,
    *,
    timeout_s: Annotated[float, Parameter(name="--timeout", help="Give up after so many seconds.")] = 1800.0,
    json_lines: JsonFlag = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
) -> int:
    """Wait until a deployment is active. One that is not found is looked for for 30 s: new ones may be invisible so long."""
    display = display_for(_talk())
    async with connection.client(TransferOptions(), observer=display) as client:
        deployment = await client.wait_until_active(model_id, deployment_id, timeout_s=timeout_s)
    if json_lines:
        _print_json({"model_id": model_id, "deployment_id": deployment.id, "status": deployment.status})
    else:
        print_lines(sys.stdout, f"deployment {deployment.id} of model {model_id} is {deployment.status}")
    return Exit.DONE


@app.command
async def local(
    *,
    data_dir: Annotated[Path | None, Parameter(help="Keep uploaded archives here; by default they are removed at the end.")] = None,
    json_lines: JsonFlag = False,
) -> int:
    """Run a local stack, control plane and S3, until interrupted."""
    from aiobaseten.local import LocalStack  # noqa: PLC0415 - other commands do not need the server side

    async with LocalStack(data_dir) as stack:
        settings = {
            "BASETEN_API_KEY": stack.api_key,
            "AIOBASETEN_BASE_URL": stack.base_url,
            "AIOBASETEN_S3_ENDPOINT_URL": stack.s3_endpoint_url,
        }
        if json_lines:
            _print_json(settings)
        else:
            print_lines(sys.stdout, *(f"export {name}={value}" for name, value in settings.items()))
        _talk().print("The local stack is running; Ctrl-C stops it.", highlight=False)
        await anyio.sleep_forever()
    return Exit.DONE


@app.command
def schema() -> int:
    """Print the JSON Schema of manifests, for an editor to check them by."""
    print_lines(sys.stdout, json.dumps(manifest_schema(), indent=2))
    return Exit.DONE


@app.command
async def demo(
    *,
    examples: Annotated[Path, Parameter(help="Directory of example models.")] = Path("examples"),
) -> int:
    """Push the example models, and one with real weights, to a local stack, and read everything back."""
    from aiobaseten.cli.demo import run_demo  # noqa: PLC0415 - other commands do not need the server side

    return await run_demo(examples)


@app.command
async def bench(
    path: Annotated[
        str | None, Parameter(help="A model directory or archive whose bytes to send; by default random bytes.", show_default=False)
    ] = None,
    /,
    *,
    to: Annotated[Literal["local", "baseten"], Parameter(help="A local stack that it starts, or Baseten's own store.")] = "local",
    size: Annotated[str | None, Parameter(help="How many random bytes each setting sends; by default 256MiB.")] = None,
    connections: Annotated[str, Parameter(help="Parts in flight at once; 'auto' is what a push does by itself.")] = "auto,1,4,8,16",
    part_size: Annotated[str, Parameter(help="Sizes of parts, in whole MiB.")] = "8MiB,16MiB",
    max_seconds: Annotated[float, Parameter(help="For all settings together.")] = 60.0,
    max_bytes: Annotated[str, Parameter(help="For all settings together.")] = "4GiB",
    json_document: Annotated[
        bool, Parameter(name="--json", negative="", help="Print one JSON document on stdout; talk goes to stderr.")
    ] = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
) -> int:
    """Measure upload throughput, setting by setting. Every upload is aborted: nothing is kept, no deployment is made.

    The options that say how to reach the service are for --to baseten.
    """
    from aiobaseten.cli.bench import Bench  # noqa: PLC0415 - other commands do not need the server side
    from aiobaseten.cli.bench_plan import plan_of  # noqa: PLC0415

    plan = plan_of(
        to=to, path=path, size=size, connections=connections, part_size=part_size, max_s=max_seconds, max_bytes=max_bytes
    )
    sweep = Bench(plan, connection, _talk())
    try:
        return await sweep.run()
    finally:
        if sweep.report is not None and json_document:
            _print_json(sweep.report.as_json())
        elif sweep.report is not None and sweep.report.steps:
            Console(width=None if sys.stdout.isatty() else 120).print(sweep.report.table())


async def _each(pushes: Sequence[Push], check: Callable[[Push], Awaitable[CheckResult]], concurrency: int, json_lines: bool) -> int:
    """Check pushes, so many at once, and print each outcome as it comes."""
    outcomes: list[Outcome] = []
    places = anyio.CapacityLimiter(concurrency)

    async def one(push: Push) -> Outcome:
        started = time.monotonic()
        result: CheckResult | None = None
        error: BasetenError | None = None
        try:
            result = await check(push)
        except BasetenError as caught:
            error = caught
        return Outcome(source=str(push.source), seconds=time.monotonic() - started, result=result, error=error)

    async def in_its_place(push: Push) -> None:
        async with places:
            outcome = await one(push)
        outcomes.append(outcome)
        if json_lines:
            _print_json(outcome.as_json())
        else:
            print_lines(sys.stderr if outcome.error else sys.stdout, *outcome.lines())

    async with anyio.create_task_group() as tasks:
        for push in pushes:
            tasks.start_soon(in_its_place, push)
    return exit_for_all(outcome.error for outcome in outcomes if outcome.error is not None)


def _print_json(record: Mapping[str, object]) -> None:
    print_lines(sys.stdout, json.dumps(record))


def _talk() -> Console:
    """Where talk goes that is not a result."""
    return Console(stderr=True)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        print_lines(sys.stderr, f"aiobaseten: {error}")
        return Exit.BAD_INPUT

    arguments_given.set(arguments)

    async def call() -> int:
        result = command(*bound.args, **bound.kwargs)
        code = await result if inspect.isawaitable(result) else result
        return Exit.DONE if code is None else int(code)

    try:
        return anyio.run(call)
    except BasetenError as error:
        print_lines(sys.stderr, f"aiobaseten: {error}", *getattr(error, "__notes__", []))
        return exit_for(error)
    except KeyboardInterrupt:
        print_lines(sys.stderr, "aiobaseten: interrupted")
        return Exit.INTERRUPTED
