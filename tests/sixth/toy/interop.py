"""Names of the toy's arrays in torch files."""

from vlm_jax.interop.released import Released
from vlm_jax.interop.rules import LINEAR, ConversionError, Rule, convert, invert

RELEASED = {"toy": Released("toy.pth", "nobody/toy")}
RULES = (
    Rule("linear.weight", "params/kernel", LINEAR),
    Rule("linear.bias", "params/bias"),
    Rule("seen", "stats/seen"),
)


def state_dict(source):
    if "linear.weight" not in source:
        raise ConversionError("not a toy checkpoint: it has no 'linear.weight'")
    return dict(source)


def model_options(source):
    outputs, inputs = source["linear.weight"].shape
    return {"model": {"inputs": inputs, "outputs": outputs}}


def to_variables(source, expected=None):
    return convert(source, RULES, expected)


def to_state_dict(variables):
    return invert(variables, RULES)
