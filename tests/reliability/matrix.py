"""The matrix: every call of a push, with every fault that can happen to it, once, three times and for ever.

Each cell has its outcome written down here, by hand, from what the library promises; `matrix_run` has them happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import attrs

import aiobaseten as ab
from aiobaseten.local import faults
from aiobaseten.local.calls import Call

TRIES = ab.RetryOptions().max_attempts
BACKOFF_S = 0.5 + 1 + 2 + 4 + 8
"""The longest that five waits between six tries take."""
RECONCILE_S = ab.TimeoutOptions().reconcile_s
WAIT_S = 60.0

ONCE, THRICE, FOR_EVER = 1, 3, None


@attrs.frozen(kw_only=True)
class Outcome:
    """What becomes of a push.

    :param error: None where it succeeds, its object byte-equal and one deployment made
    :param says: a regular expression for the error's first cause
    :param strikes: how often the fault happens: the tries that it takes; None: at least once, until a time limit
    :param at_least_s: how long is waited in all, by the clock that the client goes by
    :param at_most_s: as `at_least_s`
    :param verified: whether the store has confirmed the object's checksum
    :param deployments: how many more the model has in the end
    :param left: multipart uploads that stay at the store
    :param notes: whether the error says that the clean-up failed
    :param how: it came to that, in words
    """

    how: str
    error: type[ab.BasetenError] | None = None
    says: str = ""
    strikes: int | None = 1
    at_least_s: float = 0.0
    at_most_s: float = BACKOFF_S
    verified: bool = True
    deployments: int = 1
    left: int = 0
    notes: bool = False

    def __str__(self) -> str:
        left = f"; {self.left} upload{'s' * (self.left != 1)} left" if self.left else ""
        noted = ", with a note" if self.notes else ""
        return f"{self.error.__name__ if self.error else 'deployed'}{self.how and ' '}{self.how}{noted}{left}"


@attrs.frozen(kw_only=True)
class Cell:
    call: Call
    fault: str
    times: int | None
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.call}, {self.fault}, {times_in_words(self.times)}"


def times_in_words(times: int | None) -> str:
    return {ONCE: "once", THRICE: "three times", FOR_EVER: "for ever"}[times]


class Rule:
    """What a fault means for a call, however often it happens."""

    def outcome(self, times: int | None) -> Outcome:
        raise NotImplementedError


@attrs.frozen
class Unharmed(Rule):
    """The call succeeds all the same, at the first try."""

    def outcome(self, times: int | None) -> Outcome:
        return Outcome(how="at the first try")


@attrs.frozen
class Repeated(Rule):
    """The call is tried again.

    :param tries: how often in all
    :param left: whether each try that fails leaves a multipart upload that nobody can name
    """

    error: type[ab.BasetenError]
    says: str
    retry_after_s: float = 0.0
    tries: int = TRIES
    left: bool = False

    def outcome(self, times: int | None) -> Outcome:
        strikes = self.tries if times is None else times
        return Outcome(
            how=f"after {strikes} tries" if times is None else f"at try {strikes + 1}",
            error=self.error if times is None else None,
            says=self.says if times is None else "",
            strikes=strikes,
            at_least_s=(strikes - 1 if times is None else strikes) * self.retry_after_s,
            at_most_s=BACKOFF_S + 2 * strikes * self.retry_after_s,
            deployments=0 if times is None else 1,
            left=strikes if self.left else 0,
        )


@attrs.frozen
class Final(Rule):
    """The push ends at once with this error.

    :param waited_s: the longest that was waited before
    """

    error: type[ab.BasetenError]
    says: str
    deployments: int = 0
    waited_s: float = 0.0

    def outcome(self, times: int | None) -> Outcome:
        return Outcome(how="at once", error=self.error, says=self.says, at_most_s=self.waited_s, deployments=self.deployments)


@attrs.frozen
class Renewed(Rule):
    """Credentials are renewed. Fresh ones that are refused before they were good for anything are refused for good.

    :param often: whether other calls succeed between one renewal and the next
    """

    often: bool = False

    def outcome(self, times: int | None) -> Outcome:
        if times == ONCE or (self.often and times is not None):
            how = "with renewed credentials" if times == ONCE else f"with credentials renewed {times} times"
            return Outcome(how=how, strikes=times, at_most_s=0.0)
        strikes = TRIES if self.often else 2
        return Outcome(
            how=f"after {strikes} tries",
            error=ab.CredentialsExpired,
            says="ExpiredToken",
            strikes=strikes,
            at_most_s=0.0,
            deployments=0,
        )


@attrs.frozen
class Believed(Rule):
    """The object cannot be looked at. It is taken for complete: the commit, which needs it, has the last word."""

    def outcome(self, times: int | None) -> Outcome:
        return Outcome(how="unverified", verified=False)


@attrs.frozen
class Found(Rule):
    """The commit was made, its answer is lost: its deployment is found by the push's id."""

    def outcome(self, times: int | None) -> Outcome:
        return Outcome(how="and found by the push's id", at_most_s=RECONCILE_S)


@attrs.frozen
class Uncertain(Rule):
    """Nobody can tell whether the commit was made: it is looked for as long as it may be invisible, and never sent again."""

    says: str

    def outcome(self, times: int | None) -> Outcome:
        return Outcome(
            how=f"after {RECONCILE_S:g} s, not sent again",
            error=ab.CommitUncertain,
            says=self.says,
            at_most_s=RECONCILE_S + BACKOFF_S,
            deployments=0,
        )


@attrs.frozen
class LookedForAgain(Rule):
    """A look for a lost commit fails: the next one may succeed, within the time that is looked in all."""

    says: str

    def outcome(self, times: int | None) -> Outcome:
        if times is None:
            return Outcome(
                how=f"after {RECONCILE_S:g} s, not sent again",
                error=ab.CommitUncertain,
                says=self.says,
                strikes=None,
                at_most_s=RECONCILE_S + 2 * BACKOFF_S,
            )
        return Outcome(how=f"and found at look {times + 1}", strikes=times, at_most_s=RECONCILE_S)


@attrs.frozen
class WaitedForAgain(Rule):
    """A look at a deployment that is waited for fails: the next one may succeed, until the caller's time is up."""

    says: str

    def outcome(self, times: int | None) -> Outcome:
        if times is None:
            return Outcome(
                how="when the caller's time is up",
                error=ab.DeadlineExceeded,
                says=self.says,
                strikes=None,
                at_most_s=WAIT_S + BACKOFF_S,
            )
        return Outcome(how=f"and seen at look {times + 1}", strikes=times, at_most_s=WAIT_S)


@attrs.frozen
class CleanedUp(Rule):
    """The upload has failed already and stays failed with its own cause.

    :param works: whether the store has removed the upload although the abort failed
    :param passes: whether the abort is tried again
    """

    works: bool = False
    passes: bool = True

    def outcome(self, times: int | None) -> Outcome:
        fails = not self.passes or times is None
        tries = 1 if not self.passes else TRIES if times is None else times + 1
        return Outcome(
            how="as before" if tries == 1 else f"as before, aborted at try {tries}" if not fails else "as before, not aborted",
            error=ab.UploadDenied,
            says="AccessDenied",
            strikes=tries if fails else times,
            deployments=0,
            left=1 if fails and not self.works else 0,
            notes=fails,
        )


@attrs.frozen
class CleanedUpAtOnce(Rule):
    """As `CleanedUp`, and the abort succeeds."""

    def outcome(self, times: int | None) -> Outcome:
        return Outcome(how="as before", error=ab.UploadDenied, says="AccessDenied", deployments=0)


_NO_CONNECTION = {
    "refused": Repeated(ab.TransportError, "Connection refused"),
    "name unresolved": Repeated(ab.TransportError, "cannot be resolved"),
}
_NOT_SEEN = {
    "stall before acting": Repeated(ab.TransportError, "did not answer in time"),
    "reset before the body": Repeated(ab.TransportError, "broke off"),
    "reset in the body": Repeated(ab.TransportError, "broke off"),
    "reset after the body": Repeated(ab.TransportError, "broke off"),
}
_ACTED = {
    "reply lost": Repeated(ab.TransportError, "broke off"),
    "stall": Repeated(ab.TransportError, "did not answer in time"),
    "reply cut in its head": Repeated(ab.TransportError, "broke off"),
    "reply cut in its body": Repeated(ab.TransportError, "broke off"),
}

READS: Mapping[str, Rule] = {
    **_NO_CONNECTION,
    **_NOT_SEEN,
    **_ACTED,
    "trickle": Unharmed(),
    "429": Repeated(ab.RateLimited, "TooManyRequests", retry_after_s=1.0),
    "500": Repeated(ab.ServerError, "InternalError"),
    "500 after acting": Repeated(ab.ServerError, "InternalError"),
    "502": Repeated(ab.ServerError, "Bad Gateway"),
    "502 after acting": Repeated(ab.ServerError, "Bad Gateway"),
    "503 SlowDown": Repeated(ab.ServerError, "SlowDown"),
    "503 before the body": Repeated(ab.ServerError, "SlowDown"),
    "error in a 200": Final(ab.ApiError, "is not what was asked for"),
    "AccessDenied": Final(ab.AuthenticationError, "AccessDenied"),
    "garbage": Repeated(ab.ApiError, "not JSON"),
    "redirect": Final(ab.ApiError, "elsewhere.example"),
}

COMMITS: Mapping[str, Rule] = {
    **_NO_CONNECTION,
    "reset before the body": Uncertain("broke off"),
    "reset in the body": Uncertain("broke off"),
    "reset after the body": Uncertain("broke off"),
    "reply lost": Found(),
    "stall": Found(),
    "stall before acting": Uncertain("did not answer in time"),
    "trickle": Unharmed(),
    "reply cut in its head": Found(),
    "reply cut in its body": Found(),
    "429": Repeated(ab.RateLimited, "TooManyRequests", retry_after_s=1.0),
    "500": Uncertain("InternalError"),
    "500 after acting": Found(),
    "502": Uncertain("Bad Gateway"),
    "502 after acting": Found(),
    "503 SlowDown": Uncertain("SlowDown"),
    "503 before the body": Uncertain("SlowDown"),
    "error in a 200": Uncertain("is not what was asked for"),
    "error in a 200 after acting": Found(),
    "AccessDenied": Final(ab.AuthenticationError, "AccessDenied"),
    "garbage": Uncertain("not JSON"),
    "garbage after acting": Found(),
    "redirect": Final(ab.ApiError, "elsewhere.example"),
}

_STORE: Mapping[str, Rule] = {
    **_NO_CONNECTION,
    **_NOT_SEEN,
    **_ACTED,
    "trickle": Unharmed(),
    "429": Repeated(ab.UploadError, "TooManyRequests", retry_after_s=1.0),
    "500": Repeated(ab.UploadError, "InternalError"),
    "500 after acting": Repeated(ab.UploadError, "InternalError"),
    "502": Repeated(ab.UploadError, "502"),
    "502 after acting": Repeated(ab.UploadError, "502"),
    "503 SlowDown": Repeated(ab.UploadError, "SlowDown"),
    "503 before the body": Repeated(ab.UploadError, "SlowDown"),
    "error in a 200": Repeated(ab.UploadError, "InternalError"),
    "error in a 200 after acting": Repeated(ab.UploadError, "InternalError"),
    "ExpiredToken": Renewed(),
    "AccessDenied": Final(ab.UploadDenied, "AccessDenied"),
    "RequestTimeTooSkewed": Final(ab.UploadError, "the clock of this machine is off"),
    "garbage": Repeated(ab.UploadError, "not XML as S3 writes it"),
    "garbage after acting": Repeated(ab.UploadError, "not XML as S3 writes it"),
    "redirect": Final(ab.UploadError, "elsewhere.example"),
    "another region": Final(ab.UploadError, "eu-west-1"),
}

DATA: Mapping[str, Rule] = {
    **_STORE,
    "error in a 200": Repeated(ab.UploadError, "no ETag"),
    "error in a 200 after acting": Repeated(ab.UploadError, "no ETag"),
    "BadDigest": Repeated(ab.IntegrityError, "BadDigest"),
    "flipped bit": Repeated(ab.IntegrityError, "Mismatch|BadDigest"),
}

PARTS: Mapping[str, Rule] = {
    **DATA,
    "ExpiredToken": Renewed(often=True),
}

CREATES: Mapping[str, Rule] = {
    **_STORE,
    **{fault: attrs.evolve(rule, left=True) for fault, rule in _ACTED.items()},
    "500 after acting": Repeated(ab.UploadError, "InternalError", left=True),
    "502 after acting": Repeated(ab.UploadError, "502", left=True),
    "error in a 200 after acting": Repeated(ab.UploadError, "InternalError", left=True),
    "garbage after acting": Repeated(ab.UploadError, "not XML as S3 writes it", left=True),
}

COMPLETES: Mapping[str, Rule] = {
    **_STORE,
    "ExpiredToken": Renewed(often=True),
    "BadDigest": Final(ab.IntegrityError, "BadDigest"),
}

HEADS: Mapping[str, Rule] = {
    **{
        # The Complete that was lost is one of the six tries.
        fault: attrs.evolve(rule, tries=TRIES - 1) if isinstance(rule, Repeated) else rule
        for fault, rule in (
            _STORE
            | {
                "429": Repeated(ab.UploadError, "429", retry_after_s=1.0),
                "500": Repeated(ab.UploadError, "500"),
                "500 after acting": Repeated(ab.UploadError, "500"),
                "503 SlowDown": Repeated(ab.UploadError, "503"),
            }
        ).items()
    },
    "ExpiredToken": Believed(),
    "AccessDenied": Believed(),
    "RequestTimeTooSkewed": Believed(),
    "redirect": Believed(),
    "another region": Believed(),
}

_ABORTED_ANYWAY = CleanedUp(works=True)
_NOT_ABORTED = CleanedUp(passes=False)

ABORTS: Mapping[str, Rule] = {
    "refused": CleanedUp(),
    "name unresolved": CleanedUp(),
    "reset before the body": CleanedUp(),
    "reply lost": _ABORTED_ANYWAY,
    "stall": _ABORTED_ANYWAY,
    "stall before acting": CleanedUp(),
    "trickle": CleanedUpAtOnce(),
    "reply cut in its head": _ABORTED_ANYWAY,
    "429": CleanedUp(),
    "500": CleanedUp(),
    "500 after acting": _ABORTED_ANYWAY,
    "502": CleanedUp(),
    "502 after acting": _ABORTED_ANYWAY,
    "503 SlowDown": CleanedUp(),
    "error in a 200": CleanedUp(),
    "error in a 200 after acting": _ABORTED_ANYWAY,
    "ExpiredToken": _NOT_ABORTED,
    "AccessDenied": _NOT_ABORTED,
    "RequestTimeTooSkewed": _NOT_ABORTED,
    "garbage": CleanedUp(),
    "garbage after acting": _ABORTED_ANYWAY,
    "redirect": _NOT_ABORTED,
    "another region": _NOT_ABORTED,
}

LOOKS: Mapping[str, Rule] = {
    **{fault: LookedForAgain(rule.says) for fault, rule in READS.items() if isinstance(rule, Repeated)},
    "trickle": Found(),
    "error in a 200": LookedForAgain("is not what was asked for"),
    "AccessDenied": Final(ab.CommitUncertain, "AccessDenied", deployments=1),
    "redirect": Final(ab.CommitUncertain, "elsewhere.example", deployments=1),
}

WAITS: Mapping[str, Rule] = {
    **{fault: WaitedForAgain(rule.says) for fault, rule in READS.items() if isinstance(rule, Repeated)},
    "trickle": Unharmed(),
    "error in a 200": Final(ab.ApiError, "is not what was asked for", deployments=1),
    "AccessDenied": Final(ab.AuthenticationError, "AccessDenied", deployments=1),
    "redirect": Final(ab.ApiError, "elsewhere.example", deployments=1),
}

RULES: Mapping[Call, Mapping[str, Rule]] = {
    "list_models": READS,
    "list_teams": READS,
    "prepare_model_upload": READS,
    "PutObject": DATA,
    "CreateMultipartUpload": CREATES,
    "UploadPart": PARTS,
    "CompleteMultipartUpload": COMPLETES,
    "HeadObject": HEADS,
    "AbortMultipartUpload": ABORTS,
    "create_model": COMMITS,
    "create_deployment": COMMITS,
    "list_deployments": LOOKS,
    "get_model": LOOKS,
    "get_deployment": WAITS,
}


def cells() -> Iterator[Cell]:
    """The whole matrix.

    :raises KeyError: for a fault that can happen to a call and has no outcome
    """
    for call, rules in RULES.items():
        for fault, common in faults.COMMON.items():
            if call in common.calls:
                for times in (ONCE, THRICE, FOR_EVER):
                    yield Cell(call=call, fault=fault, times=times, outcome=rules[fault].outcome(times))


@attrs.frozen(kw_only=True)
class Scenario:
    """How a push comes to make a call.

    :param size: a small archive goes up in one PutObject, a large one in three parts
    :param model: whether there is a model of the name already, or one in each of two teams
    :param may_read: whether the upload credentials allow to look at the object
    :param led_by: the calls, and their part, that fail to make it happen, each with how it fails
    """

    size: Literal["small", "large"] = "small"
    model: Literal["new", "existing", "in two teams"] = "new"
    led_by: tuple[tuple[Call, int | None, faults.AnyFault], ...] = ()
    part_number: int | None = None
    waits: bool = False
    may_read: bool = False


# AWS may say of a Complete that has worked, and is asked for again, that there is no such upload.
_NO_SUCH_UPLOAD = faults.ErrorReply(status=404, code="NoSuchUpload")
_LOST_COMPLETE: tuple[tuple[Call, int | None, faults.AnyFault], ...] = (
    ("CompleteMultipartUpload", None, faults.ReplyLost()),
    *[("CompleteMultipartUpload", None, _NO_SUCH_UPLOAD)] * TRIES,
)

SCENARIOS: Mapping[Call, Scenario] = {
    "list_models": Scenario(),
    "list_teams": Scenario(model="in two teams"),
    "prepare_model_upload": Scenario(),
    "PutObject": Scenario(),
    "CreateMultipartUpload": Scenario(size="large"),
    "UploadPart": Scenario(size="large", part_number=2),
    "CompleteMultipartUpload": Scenario(size="large"),
    "HeadObject": Scenario(size="large", led_by=_LOST_COMPLETE, may_read=True),
    "AbortMultipartUpload": Scenario(size="large", led_by=(("UploadPart", 2, faults.access_denied()),)),
    "create_model": Scenario(),
    "create_deployment": Scenario(model="existing"),
    "list_deployments": Scenario(model="existing", led_by=(("create_deployment", None, faults.ReplyLost()),)),
    "get_model": Scenario(model="existing", led_by=(("create_deployment", None, faults.ReplyLost()),)),
    "get_deployment": Scenario(waits=True),
}
