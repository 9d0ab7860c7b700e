"""How configured names meet a forward's arguments and results."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchscript_predictor.signature import Argument, InputPlan, SignatureError, plan_inputs, plan_outputs


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
        (arguments("x", type="Optional[Tensor]"), inputs("x"), "type 'Optional[Tensor]' was detected"),
        (arguments("x", type="int"), inputs("x"), "type 'int' was detected"),
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
