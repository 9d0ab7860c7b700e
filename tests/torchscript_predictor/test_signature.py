"""How configured names meet a forward's arguments and results."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchscript_predictor.signature import (
    Argument,
    InputPlan,
    SignatureError,
    leaves,
    match_outputs,
    plan_inputs,
    plan_outputs,
)


def arguments(*names: str, type: str = "Tensor") -> list[Argument]:
    return [Argument(name, type) for name in names]


def inputs(*names: str, datatype: str = "FP32") -> list[tuple[str, str]]:
    return [(name, datatype) for name in names]


@pytest.mark.parametrize(
    ("forward", "configured", "order"),
    [
        (arguments("a", "b"), inputs("b", "a"), ("a", "b")),  # by name
        (arguments("a", "b"), inputs("INPUT__1", "INPUT__0"), ("INPUT__0", "INPUT__1")),  # by index
        (arguments("a", "b"), inputs("x__y__0", "z__1"), ("x__y__0", "z__1")),
        (arguments("b__0", "a__1"), inputs("a__1", "b__0"), ("b__0", "a__1")),  # name and index agree
        (arguments("x__1", "x__0"), inputs("x__0", "x__1"), ("x__1", "x__0")),  # a name beats its index
        (arguments("x"), inputs("x"), ("x",)),
        ([Argument("x", "List[str]")], inputs("INPUT__0", datatype="BYTES"), ("INPUT__0",)),
    ],
)
def test_inputs_in_the_order_of_arguments(forward, configured, order):
    assert plan_inputs("m", forward, configured) == InputPlan(order)


@pytest.mark.parametrize("configured", [inputs("first", "second"), inputs("INPUT__0", "b"), inputs("a", "INPUT__1")])
def test_one_odd_name_drops_the_whole_list_to_the_configured_order(configured):
    plan = plan_inputs("m", arguments("a", "b"), configured)
    assert plan.names == tuple(name for name, _ in configured)
    [warning] = plan.warnings
    assert "taken in the order of the configuration" in warning


def test_one_dictionary_takes_the_names_as_keys():
    forward = [Argument("tensors", "Dict[str, Tensor]")]
    assert plan_inputs("m", forward, inputs("B", "A__7")) == InputPlan(("B", "A__7"), as_dict=True)


@pytest.mark.parametrize(
    ("forward", "configured", "message"),
    [
        (arguments("x"), inputs("a__0", "b__1"), "configuration expects 2 inputs, model provides 1"),
        (arguments("x", "y"), inputs("a__0"), "configuration expects 1 inputs, model provides 2"),
        (arguments("x", "y"), inputs("a__0", "a__2"), "numbered __0 to __1"),
        (arguments("x", "y"), inputs("a__1", "b__1"), "numbered __0 to __1"),
        (arguments("x", type="int"), inputs("x"), "input 'x' is FP32, but argument 'x' of forward takes int"),
        (
            arguments("x", type="float"),
            inputs("x", datatype="INT64"),
            "whole numbers with int, FP16 to FP64 with float",
        ),
        (arguments("x", type="bool"), inputs("x"), "TYPE_BOOL with bool"),
        (arguments("x", type="str"), inputs("x"), "TYPE_STRING inputs go with List[str] and str"),
        (arguments("x", type="Tuple[int, int]"), inputs("x"), "type 'Tuple[int, int]' was detected"),
        (arguments("x", type="List[Tensor]"), inputs("x"), "type 'List[Tensor]' was detected"),
        (arguments("x", type="Dict[int, Tensor]"), inputs("x"), "type 'Dict[int, Tensor]' was detected"),
        (
            [*arguments("x"), Argument("d", "Dict[str, Tensor]")],
            inputs("x", "d"),
            "only a single input of type Dict[str, Tensor] is supported",
        ),
        (arguments("d", type="Dict[str, Tensor]"), inputs("d", datatype="BYTES"), "input 'd' is TYPE_STRING"),
        (arguments("x", type="List[str]"), inputs("x"), "input 'x' is FP32, but argument 'x'"),
        (arguments("x"), inputs("x", datatype="BYTES"), "input 'x' is BYTES, but argument 'x'"),
    ],
)
def test_a_signature_that_does_not_fit_says_why(forward, configured, message):
    with pytest.raises(SignatureError) as caught:
        plan_inputs("model_7", forward, configured)
    assert message in str(caught.value)
    assert "model_7" in str(caught.value)


def with_default(name, type="Tensor", default=None):
    return Argument(name, type, default)


MASKED = [*arguments("x"), with_default("mask", "Optional[Tensor]"), with_default("scale", "float", 2.0)]


@pytest.mark.parametrize(
    ("configured", "names"),
    [
        (inputs("x"), ("x", None, None)),  # what has a default needs no input
        (inputs("scale", "x"), ("x", None, "scale")),
        (inputs("INPUT__2", "INPUT__0"), ("INPUT__0", None, "INPUT__2")),  # the index counts all arguments
        (inputs("x", "mask", "scale"), ("x", "mask", "scale")),
    ],
)
def test_arguments_with_a_default_may_be_left_out(configured, names):
    assert plan_inputs("m", MASKED, configured, optional=["mask", "scale"]) == InputPlan(names)


def test_an_optional_argument_needs_no_default_to_be_left_out():
    assert plan_inputs("m", [*arguments("x"), Argument("y", "Optional[Tensor]")], inputs("x")).names == ("x", None)


def test_arguments_of_an_odd_type_are_left_at_their_default():
    odd = with_default("sizes", "List[int]", [1])
    assert plan_inputs("m", [*arguments("x"), odd], inputs("x")).names == ("x", None)


@pytest.mark.parametrize(
    ("forward", "configured", "optional", "message"),
    [
        (
            MASKED,
            inputs("x"),
            ["x"],
            "'optional' is set to true for input 'x' while argument 'x' of forward has no def",
        ),
        (MASKED, inputs("mask"), [], "argument 'x' of forward has no input and no default"),
        (MASKED, inputs("INPUT__1"), [], "argument 'x' of forward has no input and no default"),
        (MASKED, inputs("INPUT__3"), [], "numbered __0 to __2"),
        (MASKED, inputs("a", "b", "c", "d"), [], "configuration expects 4 inputs, model provides 3"),
        (
            [*arguments("x"), with_default("sizes", "List[int]", [1])],
            inputs("INPUT__0", "INPUT__1"),
            [],
            "configuration expects 2 inputs, model provides 2",
        ),
    ],
)
def test_defaults_have_limits(forward, configured, optional, message):
    with pytest.raises(SignatureError) as caught:
        plan_inputs("model_7", forward, configured, optional)
    assert message in str(caught.value)
    assert "model_7" in str(caught.value)


def test_an_alias_is_as_good_as_the_name():
    forward = [Argument("x", "Tensor", aliases=("ARGS[0]",)), Argument("y", "Tensor", aliases=("KWARGS[y]",))]
    assert plan_inputs("m", forward, inputs("KWARGS[y]", "ARGS[0]")).names == ("ARGS[0]", "KWARGS[y]")


class Boxes(NamedTuple):
    boxes: int
    scores: int


@pytest.mark.parametrize(
    ("result", "names", "indices"),
    [
        ({"a": 1, "b": 2}, ["b", "a"], (1, 0)),  # by key
        ({"a": 1, "b": 2}, ["b"], (1,)),
        ({"a": 1, "b": 2}, ["OUTPUT__1", "OUTPUT__0"], (1, 0)),
        ({"a__1": 1, "a__0": 2}, ["a__1", "a__0"], (0, 1)),  # a key beats its index
        (Boxes(1, 2), ["scores", "boxes"], (1, 0)),  # by field
        (Boxes(1, 2), ["x", "y"], (0, 1)),  # a NamedTuple is a tuple, as in Triton
        ((1, 2), ["x", "y"], (0, 1)),
        ((1, 2), ["OUTPUT__1", "OUTPUT__0"], (1, 0)),
        ((1, 2), ["RESULT[1]", "RESULT[0]"], (1, 0)),  # as AOTInductor's users write
        ([(1, 2), (3, 4)], ["RESULT[1][0]"], (2,)),
        (({"u": 1}, 2), ["OUTPUT__1", "OUTPUT__0"], (1, 0)),
        (({"u": 1}, (2, 3)), ["RESULT[1][1]", "u"], (2, 0)),
        ([{"a": 1}, {"a": 2}], ["RESULT[1][a]", "RESULT[0][a]"], (1, 0)),  # the key alone would be ambiguous
        (1, ["anything"], (0,)),
        (1, ["RESULT"], (0,)),
        (["a", "b"], ["words"], (0,)),  # a list of strings is one result
        ([1.0, 2.0], ["numbers"], (0,)),
    ],
)
def test_results_are_found_in_what_holds_them(result, names, indices):
    assert match_outputs("m", names, leaves(result)) == indices


def test_a_dictionary_s_results_are_not_taken_by_order():
    with pytest.raises(
        SignatureError, match="model 'm' gives no result 'x'; its results are a, b: name the outputs so"
    ):
        match_outputs("m", ["x", "y"], leaves({"a": 1, "b": 2}))


@given(
    st.recursive(
        st.integers(),
        lambda inner: st.tuples(inner, inner) | st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
    )
)
def test_every_leaf_is_found_by_its_path(result):
    found = leaves(result)
    assert len({leaf.path for leaf in found}) == len(found)
    assert match_outputs("m", [leaf.path for leaf in found], found) == tuple(range(len(found)))


@given(st.permutations(range(6)))
def test_indices_put_any_order_right(order):
    names = [f"IN__{index}" for index in order]
    plan = plan_inputs("m", arguments(*"abcdef"), inputs(*names))
    assert plan.names == tuple(f"IN__{index}" for index in range(6))


@pytest.mark.parametrize(
    ("names", "indices"),
    [
        (["OUTPUT__0", "OUTPUT__1"], (0, 1)),
        (["OUTPUT__1", "OUTPUT__0"], (1, 0)),
        (["OUTPUT__3"], (3,)),
        (["scores", "boxes"], (0, 1)),
        (["OUTPUT__1", "boxes"], (0, 1)),
        (["OUTPUT__-1", "OUTPUT__"], (0, 1)),
    ],
)
def test_outputs(names, indices):
    assert plan_outputs(names) == indices
