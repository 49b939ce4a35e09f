"""Every failure has one class, and every class one behaviour."""

import aiohttp
import pytest
from pydantic import BaseModel, ValidationError

from retinue_operator import errors
from retinue_operator.errors import BEHAVIOUR, Behaviour, ErrorClass, classify, from_answer, retry_after


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ErrorClass.INVALID_OBJECT),
        (401, ErrorClass.API_DOWN),
        (403, ErrorClass.FORBIDDEN),
        (404, ErrorClass.GONE),
        (409, ErrorClass.CONFLICT),
        (410, ErrorClass.GONE),
        (418, ErrorClass.UNEXPECTED),
        (422, ErrorClass.INVALID_OBJECT),
        (429, ErrorClass.THROTTLED),
        (500, ErrorClass.API_DOWN),
        (503, ErrorClass.API_DOWN),
        (504, ErrorClass.API_DOWN),
    ],
)
def test_http_answers_are_classified_by_status(status: int, expected: ErrorClass) -> None:
    error = from_answer(status, {"message": "because"}, {})
    assert classify(error) == expected
    assert str(error) == "because"


def test_throttling_keeps_the_time_that_the_server_asks_for() -> None:
    assert retry_after(from_answer(429, {}, {"Retry-After": "7"})) == 7
    assert retry_after(from_answer(429, {"details": {"retryAfterSeconds": 3}}, {})) == 3
    assert retry_after(from_answer(429, {}, {})) == 1
    assert retry_after(from_answer(409, {}, {})) is None


@pytest.mark.parametrize(
    ("told", "seconds"), [("Wed, 21 Oct 2026 07:28:00 GMT", 1), ("soon", 1), ("-5", 1), ("nan", 1), ("1e9", 300)]
)
def test_a_wait_that_is_no_sensible_number_of_seconds_is_bounded(told: str, seconds: float) -> None:
    assert retry_after(from_answer(429, {}, {"Retry-After": told})) == seconds


def test_a_field_of_the_wrong_type_is_invalid_although_the_server_answers_500() -> None:
    body = {"message": "failed to create typed patch object (a/b; /v1, Kind=Pod): .spec.containers: expected list"}
    assert classify(from_answer(500, body, {})) == ErrorClass.INVALID_OBJECT


def test_a_namespace_that_goes_away_is_gone_and_not_forbidden() -> None:
    body = {"message": "being terminated", "details": {"causes": [{"reason": "NamespaceTerminating"}]}}
    assert classify(from_answer(403, body, {})) == ErrorClass.GONE


def test_a_namespace_without_its_service_account_is_waited_for() -> None:
    body = {"message": 'pods "a" is forbidden: error looking up service account ns/default: not found'}
    assert classify(from_answer(403, body, {})) == ErrorClass.WAITING


@pytest.mark.parametrize("error", [aiohttp.ClientConnectionError(), TimeoutError(), ConnectionResetError()])
def test_an_api_server_that_does_not_answer_is_down(error: Exception) -> None:
    assert classify(error) == ErrorClass.API_DOWN


def test_a_defect_is_unexpected_also_where_we_made_an_object_that_our_own_model_refuses() -> None:
    class Status(BaseModel):
        number: int

    with pytest.raises(ValidationError) as refused:
        Status.model_validate({"number": "x"})
    assert classify(refused.value) == ErrorClass.UNEXPECTED
    assert classify(KeyError("x")) == ErrorClass.UNEXPECTED


def test_every_class_has_a_behaviour_and_only_what_cannot_pass_by_itself_is_terminal() -> None:
    assert set(BEHAVIOUR) == set(ErrorClass)
    assert [known for known, what in BEHAVIOUR.items() if what is Behaviour.TERMINAL] == [ErrorClass.INVALID_OBJECT]


def test_messages_fit_on_one_line_and_are_never_empty() -> None:
    assert errors.one_line(ValueError("two\n  lines")) == "two lines"
    assert errors.one_line(TimeoutError()) == "TimeoutError"
