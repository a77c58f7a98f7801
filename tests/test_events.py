"""Observers are told, and can break nothing."""

from __future__ import annotations

import logging

import attrs
import pytest

from aiobaseten import events
from aiobaseten.errors import ServerError
from aiobaseten.events import Committed, Emitter, Event, PartUploaded, Retrying, retry_reporter


def test_observer_gets_each_event() -> None:
    told: list[Event] = []
    emit = Emitter(told.append)
    first = PartUploaded(push_id="p", part_number=1, size_bytes=5)
    second = Committed(push_id="p", model_id="m", deployment_id="d")
    emit(first)
    emit(second)
    assert told == [first, second]


def test_no_observer() -> None:
    Emitter(None)(Event())


def test_observer_that_raises_is_logged_once_and_still_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []

    def observe(event: Event) -> None:
        told.append(event)
        raise RuntimeError("the observer's own fault")

    emit = Emitter(observe)
    with caplog.at_level(logging.DEBUG):
        emit(PartUploaded(push_id="p", part_number=1, size_bytes=5))
        emit(Event(push_id="p"))
    assert len(told) == 2
    (record,) = caplog.records
    assert record.name == "aiobaseten"
    assert record.levelno == logging.ERROR
    assert "PartUploaded" in record.getMessage()
    assert "the observer's own fault" in caplog.text


def test_observer_may_end_the_program() -> None:
    def observe(_: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Emitter(observe)(Event())


def test_retries_become_events() -> None:
    told: list[Event] = []
    report = retry_reporter(Emitter(told.append), "p1", "create_model")
    report(ServerError("down", status=503), 2, 1.5)
    assert told == [Retrying(push_id="p1", operation="create_model", attempt=2, delay_s=1.5, error="down (status 503)")]


def test_every_event_is_a_frozen_value_that_belongs_to_a_push() -> None:
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]
    assert len(kinds) > 10
    for kind in kinds:
        assert attrs.has(kind)
        assert kind.__doc__
        fields = attrs.fields_dict(kind)
        assert fields["push_id"].default == ""
        assert all(field.kw_only for field in fields.values())
    event = Event(push_id="p")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.push_id = "q"  # type: ignore[misc]
