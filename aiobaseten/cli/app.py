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
from rich.console import Console

from aiobaseten.cli.connection import Connection, Transfer
from aiobaseten.cli.display import display_for
from aiobaseten.cli.outcome import Exit, Outcome, exit_for, exit_for_all
from aiobaseten.errors import BasetenError, InvalidPush
from aiobaseten.models import DeploymentArchivePayload
from aiobaseten.push import CheckResult, Push, PushResult

app = App(
    name="aiobaseten",
    help="Push models to Baseten: fast, in parallel, each exactly once.",
    version=version("aiobaseten"),
    help_format="plaintext",
)

JsonFlag = Annotated[
    bool, Parameter(name="--json", negative="", help="Print one JSON object per line on stdout; talk goes to stderr.")
]
Sources = Annotated[list[Path], Parameter(help="Model directories, or archives that hold a config.yaml.")]
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
    team_id: Annotated[str | None, Parameter(help="Id of the team that owns the model; by default the default team.")] = None
    environment: Annotated[str | None, Parameter(help="Environment to deploy to, such as production.")] = None
    deployment_name: Annotated[str | None, Parameter(help="Name of the deployment, unique within the model.")] = None
    label: Annotated[list[str] | None, Parameter(negative="", help="A label of the deployment, KEY=VALUE. May be repeated.")] = None
    development: Annotated[bool, Parameter(negative="", help="Deploy to the model's development slot.")] = False
    deploy_timeout_minutes: Annotated[int | None, Parameter(help="10 to 1440.")] = None
    existing: Annotated[Literal["deploy", "error"], Parameter(help="What to do about a named model that exists.")] = "deploy"
    disable_archive_download: Annotated[bool, Parameter(negative="", help="Archives of the new model cannot be downloaded.")] = (
        False
    )

    def pushes(self, sources: Sequence[Path], symlinks: Literal["store", "follow"]) -> list[Push]:
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
    sources: Sources,
    /,
    *,
    target: Target = Target(),
    symlinks: Symlinks = "store",
    wait: Annotated[bool, Parameter(negative="", help="Wait until each deployment is active.")] = False,
    timeout_s: Annotated[float, Parameter(name="--timeout", help="With --wait: give up after so many seconds.")] = 1800.0,
    concurrency: Annotated[int, Parameter(help="Pushes at once.")] = 4,
    json_lines: JsonFlag = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
    transfer: Transfer = Transfer(),  # noqa: B008 - frozen
) -> int:
    """Upload models and make deployments of them."""
    pushes = target.pushes(sources, symlinks)
    display = display_for(_talk())
    with display.showing():
        async with connection.client(transfer, observer=display) as client:

            async def carry_out(one: Push) -> tuple[PushResult, str | None]:
                result = await client.push(one)
                if not wait:
                    return result, None
                deployment = await client.wait_until_active(result.model.id, result.deployment.id, timeout_s=timeout_s)
                return result, deployment.status

            return await _each(pushes, carry_out, concurrency, json_lines)


@app.command
async def check(
    sources: Sources,
    /,
    *,
    target: Target = Target(),
    symlinks: Symlinks = "store",
    concurrency: Annotated[int, Parameter(help="Checks at once.")] = 4,
    json_lines: JsonFlag = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
) -> int:
    """Check models, here and at the service, without uploading or making anything."""
    pushes = target.pushes(sources, symlinks)
    async with connection.client(Transfer()) as client:

        async def carry_out(one: Push) -> tuple[CheckResult, None]:
            return await client.check(one), None

        return await _each(pushes, carry_out, concurrency, json_lines)


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
    """Wait until a deployment is active."""
    display = display_for(_talk())
    async with connection.client(Transfer(), observer=display) as client:
        deployment = await client.wait_until_active(model_id, deployment_id, timeout_s=timeout_s)
    if json_lines:
        _print_json({"model_id": model_id, "deployment_id": deployment.id, "status": deployment.status})
    else:
        sys.stdout.write(f"deployment {deployment.id} of model {model_id} is {deployment.status}\n")
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
            sys.stdout.writelines(f"export {name}={value}\n" for name, value in settings.items())
            sys.stdout.flush()
        _talk().print("The local stack is running; Ctrl-C stops it.", highlight=False)
        await anyio.sleep_forever()
    return Exit.DONE


@app.command
async def demo(
    *,
    examples: Annotated[Path, Parameter(help="Directory of example models.")] = Path("examples"),
) -> int:
    """Push the example models, and one with real weights, to a local stack, and read everything back."""
    from aiobaseten.cli.demo import run_demo  # noqa: PLC0415 - other commands do not need the server side

    return await run_demo(examples)


async def _each(
    pushes: Sequence[Push],
    carry_out: Callable[[Push], Awaitable[tuple[PushResult | CheckResult, str | None]]],
    concurrency: int,
    json_lines: bool,
) -> int:
    """Carry pushes out, so many at once; print each outcome as it comes."""
    outcomes: list[Outcome] = []
    places = anyio.CapacityLimiter(max(1, concurrency))

    async def one(push: Push) -> None:
        started = time.monotonic()
        try:
            result, status = await carry_out(push)
        except BasetenError as error:
            outcome = Outcome(source=str(push.source), seconds=time.monotonic() - started, error=error)
        else:
            outcome = Outcome(source=str(push.source), seconds=time.monotonic() - started, result=result, status=status)
        outcomes.append(outcome)
        if json_lines:
            _print_json(outcome.as_json())
        else:
            stream = sys.stderr if outcome.error else sys.stdout
            stream.writelines(f"{line}\n" for line in outcome.lines())
            stream.flush()

    async def in_its_place(push: Push) -> None:
        async with places:
            await one(push)

    async with anyio.create_task_group() as tasks:
        for push in pushes:
            tasks.start_soon(in_its_place, push)
    return exit_for_all(outcome.error for outcome in outcomes if outcome.error is not None)


def _print_json(record: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def _talk() -> Console:
    """Where talk goes that is not a result."""
    return Console(stderr=True)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        sys.stderr.write(f"aiobaseten: {error}\n")
        return Exit.BAD_INPUT

    async def call() -> int:
        result = command(*bound.args, **bound.kwargs)
        return int(await result) if inspect.isawaitable(result) else Exit.DONE

    try:
        return anyio.run(call)
    except BasetenError as error:
        sys.stderr.writelines(f"{line}\n" for line in [f"aiobaseten: {error}", *getattr(error, "__notes__", [])])
        return exit_for(error)
    except KeyboardInterrupt:
        sys.stderr.write("aiobaseten: interrupted\n")
        return Exit.INTERRUPTED
