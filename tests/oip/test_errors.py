"""The error tree: complete, and read alike by both transports."""

import grpc
import pytest

from oip import errors
from oip.errors import ErrorCode, InferenceError, error_for_status


def tree(root):
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


TREE = list(tree(InferenceError))


def test_every_error_of_the_module_is_in_the_tree_and_in_its_drawing():
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert names == {error.__name__ for error in TREE}
    for name in names:
        assert name in errors.__doc__


@pytest.mark.parametrize("error", TREE)
def test_each_error_has_a_code_with_a_status_for_both_transports(error):
    assert isinstance(error.code, ErrorCode)
    assert 400 <= error.code.http_status < 600
    assert hasattr(grpc.StatusCode, error.code.grpc_status)


def test_codes_are_used_and_unambiguous():
    assert {error.code for error in TREE} == set(ErrorCode)
    assert len({code.http_status for code in ErrorCode}) == len(ErrorCode)


@pytest.mark.parametrize("error", [error for error in TREE if error is not InferenceError])
def test_a_status_leads_back_to_its_error(error):
    assert error_for_status(error.code.http_status) is error


@pytest.mark.parametrize("status", range(100, 700))
def test_every_status_means_some_error_of_its_class(status):
    found = error_for_status(status)
    if status in {code.http_status for code in ErrorCode}:
        assert found.code.http_status == status
    else:
        assert found is (errors.InvalidArgument if 400 <= status < 500 else errors.Internal)


# The rows of the design: what a caller sees, HTTP and gRPC.
@pytest.mark.parametrize(
    ("error", "http", "grpc_status"),
    [
        (errors.InvalidArgument, 400, "INVALID_ARGUMENT"),
        (errors.NotFound, 404, "NOT_FOUND"),
        (errors.MethodNotAllowed, 405, "UNIMPLEMENTED"),
        (errors.TooSlow, 408, "DEADLINE_EXCEEDED"),
        (errors.TooLarge, 413, "RESOURCE_EXHAUSTED"),
        (errors.UnsupportedMediaType, 415, "INVALID_ARGUMENT"),
        (errors.TooManyRequests, 429, "RESOURCE_EXHAUSTED"),
        (errors.Internal, 500, "INTERNAL"),
        (errors.Unsupported, 501, "UNIMPLEMENTED"),
        (errors.BadAnswer, 502, "INTERNAL"),
        (errors.Unavailable, 503, "UNAVAILABLE"),
        (errors.DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_the_table_of_the_design(error, http, grpc_status):
    assert error.code.value == (http, grpc_status)


def test_an_error_carries_what_it_was_given():
    error = errors.Unavailable("wait", instance=3, retry_after_seconds=7)
    assert (str(error), error.message, error.instance, error.retry_after_seconds) == ("wait", "wait", 3, 7)
    assert (errors.Internal("x").instance, errors.Internal("x").retry_after_seconds) == (None, None)
