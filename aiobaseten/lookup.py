"""Which model a name stands for: asked anew for a single push, once for each name in a run of many."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import attrs

from aiobaseten.api.endpoints import Endpoints
from aiobaseten.errors import InvalidPush, NotFoundError, Problem
from aiobaseten.events import Emitter, retry_reporter
from aiobaseten.models import Model, Team
from aiobaseten.retry import OnRetry
from aiobaseten.seat import Seat, acquire


@attrs.define(eq=False)
class NamedModel:
    """What a name stands for while its push is under way: a model, or None as long as there is none.

    The push that makes it says so in `model`.
    """

    model: Model | None


class ModelLookup:
    """Asks the service each time."""

    def __init__(self, api: Endpoints, emit: Emitter) -> None:
        self._api = api
        self._emit = emit

    @asynccontextmanager
    async def model(self, push_id: str, name: str, team_id: str | None, seat: Seat) -> AsyncGenerator[NamedModel]:
        """Around a push to a name: the model of that name in the team, or in the default team; the only one there is, where no team
        is named.

        :param seat: given away while another push makes the model
        :raises InvalidPush: if several teams have such a model, and none of them is the default team
        """
        del seat  # No other push is waited for.
        yield NamedModel(await self.find(push_id, name, team_id))

    def learn(self, model: Model, team_id: str | None) -> None:
        """A push with this `team_id`, or with none, has made or found this model."""

    async def find(self, push_id: str, name: str, team_id: str | None) -> Model | None:
        """As `model`, for a call that makes nothing."""
        found = await self._api.list_models(name=name, team_id=team_id, on_retry=self._on_retry(push_id, "list_models"))
        models = [model for model in found if model.name == name]
        if len(models) <= 1:
            return models[0] if models else None
        default_teams = {team.name for team in await self._teams(push_id) if team.default}
        in_default_team = [model for model in models if model.team_name in default_teams]
        if len(in_default_team) == 1:
            return in_default_team[0]
        owners = ", ".join(sorted(model.team_name for model in models))
        raise InvalidPush(problems=[Problem("$.team_id", f"is needed: the teams {owners} each have a model named {name!r}")])

    async def _teams(self, push_id: str) -> tuple[Team, ...]:
        return await self._api.list_teams(on_retry=self._on_retry(push_id, "list_teams"))

    def _on_retry(self, push_id: str, operation: str) -> OnRetry:
        return retry_reporter(self._emit, push_id, operation)


class SharedLookup(ModelLookup):
    """Asks the service once for each name and team, for all pushes of a run.

    Where there is no model of a name, one push makes it, and the others to that name wait: then they get new deployments of it.
    """

    def __init__(self, api: Endpoints, emit: Emitter) -> None:
        super().__init__(api, emit)
        self._models: dict[tuple[str, str | None], Model] = {}
        self._turns: dict[tuple[str, str | None], anyio.Lock] = {}
        self._all_teams: tuple[Team, ...] | None = None
        self._asking_for_teams = anyio.Lock()

    def learn(self, model: Model, team_id: str | None) -> None:
        self._models[model.name, team_id] = model

    @asynccontextmanager
    async def model(self, push_id: str, name: str, team_id: str | None, seat: Seat) -> AsyncGenerator[NamedModel]:
        key = name, team_id
        if key not in self._models:
            async with self._turn(key, seat):
                if key not in self._models and (found := await self.find(push_id, name, team_id)) is not None:
                    self._models[key] = found
                if key not in self._models:
                    named = NamedModel(None)
                    yield named
                    if named.model is not None:
                        self._models[key] = named.model
                    return
        try:
            yield NamedModel(self._models[key])
        except NotFoundError:
            self._models.pop(key, None)  # It may have been deleted: the next push asks again.
            raise

    @asynccontextmanager
    async def _turn(self, key: tuple[str, str | None], seat: Seat) -> AsyncGenerator[None]:
        turn = self._turns.setdefault(key, anyio.Lock())
        try:
            await acquire(turn, seat)
            try:
                yield
            finally:
                turn.release()
        finally:
            if not turn.locked():
                self._turns.pop(key, None)

    async def _teams(self, push_id: str) -> tuple[Team, ...]:
        async with self._asking_for_teams:
            if self._all_teams is None:
                self._all_teams = await super()._teams(push_id)
        return self._all_teams
