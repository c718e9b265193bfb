import types

import ml_dtypes
import numpy as np
import pytest

from vlm_jax.interop.rules import (
    CONV1D,
    CONV3D,
    IDENTITY,
    LINEAR,
    ConversionError,
    Rule,
    convert,
    flatten,
    invert,
    strip_prefix,
    unflatten,
)

RULES = [
    Rule.dropped("{unit*}.num_batches_tracked", like="batch_stats/{unit*}/mean", value=np.int64(0)),
    Rule("fc.{kind}", "params/head/{kind}"),
    Rule("{unit*}.bn{n}.weight", "params/{unit*}/norm_{n}/scale"),
    Rule("{unit*}.running_mean", "batch_stats/{unit*}/mean"),
    Rule("{unit*}.conv{n}.weight", "params/{unit*}/conv_{n}/kernel", CONV3D),
    Rule("embedding.weight", "params/embedding/embedding"),
]


def numbered(*shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def network():
    return {
        "net.stage.0.conv1.weight": numbered(2, 3, 1, 4, 5),
        "net.stage.0.bn1.weight": numbered(2, dtype=np.float16),
        "net.bn.running_mean": numbered(2),
        "net.bn.num_batches_tracked": np.int64(12),
        "fc.bias": numbered(4).astype(ml_dtypes.bfloat16),
        "embedding.weight": numbered(6, 2, dtype=np.float64),
    }


def shapes_of(tree):
    return unflatten({path: types.SimpleNamespace(shape=leaf.shape) for path, leaf in flatten(tree).items()})


@pytest.mark.parametrize(
    ("transform", "shape", "target_shape"),
    [
        (IDENTITY, (2, 3), (2, 3)),
        (LINEAR, (2, 3), (3, 2)),
        (CONV1D, (2, 3, 4), (4, 3, 2)),
        (CONV3D, (2, 3, 4, 5, 6), (4, 5, 6, 3, 2)),
    ],
)
def test_transform_moves_axes_and_back(transform, shape, target_shape):
    array = numbered(*shape)
    there = transform.forward(array)
    assert there.shape == target_shape
    np.testing.assert_array_equal(transform.inverse(there), array)


def test_conv3d_places_each_weight():
    array = numbered(2, 3, 4, 5, 6)  # [O, I, T, H, W]
    assert CONV3D.forward(array)[3, 4, 5, 2, 1] == array[1, 2, 3, 4, 5]


def test_convert_renames_transposes_and_keeps_dtypes():
    variables = convert(network(), RULES)
    leaves = flatten(variables)
    assert {path: (leaf.shape, leaf.dtype.name) for path, leaf in leaves.items()} == {
        "params/net/stage/0/conv_1/kernel": ((1, 4, 5, 3, 2), "float32"),
        "params/net/stage/0/norm_1/scale": ((2,), "float16"),
        "batch_stats/net/bn/mean": ((2,), "float32"),
        "params/head/bias": ((4,), "bfloat16"),
        "params/embedding/embedding": ((6, 2), "float64"),
    }
    assert variables["params"]["net"]["stage"]["0"]["conv_1"]["kernel"][0, 3, 4, 2, 1] == 2 * 3 * 4 * 5 - 1
    assert flatten(convert(network(), RULES, expected=shapes_of(variables))).keys() == leaves.keys()


def test_invert_undoes_convert_and_writes_dropped_values():
    source = network()
    back = invert(convert(source, RULES), RULES)
    assert back.keys() == source.keys()
    assert back["net.bn.num_batches_tracked"] == 0
    assert back["net.bn.num_batches_tracked"].dtype == np.int64
    for name in source.keys() - {"net.bn.num_batches_tracked"}:
        assert back[name].dtype == source[name].dtype
        np.testing.assert_array_equal(back[name], source[name])


def test_dropped_without_like_is_not_written_back():
    rules = [Rule.dropped("{name}_cache"), Rule("w", "params/w")]
    variables = convert({"w": np.ones(1), "old_cache": np.ones(2)}, rules)
    assert flatten(variables).keys() == {"params/w"}
    assert invert(variables, rules).keys() == {"w"}


def test_value_of_a_dropped_name_does_not_replace_an_array():
    dropped = Rule.dropped("{unit*}.count", like="batch_stats/{unit*}/mean", value=np.int64(0))
    rules = [Rule("a.count", "batch_stats/a/count"), Rule("{unit*}.mean", "batch_stats/{unit*}/mean"), dropped]
    back = invert({"batch_stats": {"a": {"count": np.array(5), "mean": np.ones(2)}, "b": {"mean": np.ones(2)}}}, rules)
    assert {name: array.tolist() for name, array in back.items() if "count" in name} == {"a.count": 5, "b.count": 0}


def test_first_matching_rule_wins():
    rules = [Rule("a.weight", "params/special"), Rule("{unit*}.weight", "params/{unit*}/kernel", LINEAR)]
    variables = convert({"a.weight": numbered(2, 3), "b.weight": numbered(2, 3)}, rules)
    assert variables["params"]["special"].shape == (2, 3)
    assert variables["params"]["b"]["kernel"].shape == (3, 2)


def test_plain_field_stays_within_a_segment_and_star_needs_one():
    rule = Rule("a{x}.{y*}.w", "p{x}/{y*}/w")
    assert flatten(convert({"a1.b.c.w": np.ones(1)}, [rule])).keys() == {"p1/b/c/w"}
    for name in ("a.b.w", "a1.2.w.b", "a1.w", "a1..w", "a1.b.wx"):
        with pytest.raises(ConversionError, match="1 source names that no rule uses"):
            convert({name: np.ones(1)}, [rule])
    for name in ("a..b.w", "a/b.w", ".w", "w"):
        with pytest.raises(ConversionError, match="1 source names that no rule uses"):
            convert({name: np.ones(1)}, [Rule("{y*}.w", "{y*}/w")])


def test_literal_characters_of_a_template_are_not_patterns():
    with pytest.raises(ConversionError, match="2 source names that no rule uses"):
        convert({"axb": np.ones(1), "c1xd": np.ones(1)}, [Rule("a.b", "params/a"), Rule("c{n}.d", "params/{n}")])


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("{a}.w", "params/w", "different fields"),
        ("w", "params/{a}", "different fields"),
        ("{a*}.w", "{a}/w", "different fields"),
        ("{a}.{a}", "{a}/w", "used twice"),
        ("{a-b}.w", "w", "expected segments"),
        ("{a.w", "w", "expected segments"),
        ("a/w", "w", "expected segments"),
        ("a", "params.w", "expected segments"),
        ("", "w", "expected segments"),
        ("x{a*}.w", "{a*}/w", "segment of its own"),
    ],
)
def test_malformed_rule_is_refused_when_made(source, target, message):
    with pytest.raises(ValueError, match=message):
        Rule(source, target)


def test_dropped_rule_is_checked_when_made():
    with pytest.raises(ValueError, match="different fields"):
        Rule.dropped("{a}.n", like="{b}/mean", value=np.int64(0))
    with pytest.raises(ValueError, match="together"):
        Rule.dropped("{a}.n", like="{a}/mean")
    with pytest.raises(ValueError, match="no target"):
        Rule("a", "b", value=np.int64(0))


def test_all_problems_are_listed_by_kind():
    rules = [Rule("{x}_weight", "params/{x}"), Rule("{x}_alias", "params/{x}"), Rule("matrix", "params/m", LINEAR)]
    source = {
        "a_weight": np.ones(2),
        "a_alias": np.ones(2),
        "b_weight": np.ones((2, 3)),
        "c_weight": np.ones(1),
        "stray": np.ones(1),
        "matrix": np.ones(5),
    }
    expected = shapes_of({"params": {"a": np.ones(2), "b": np.ones((3, 2)), "m": np.ones(5), "missing": np.ones(1)}})
    with pytest.raises(ConversionError) as caught:
        convert(source, rules, expected)
    first, *rest = str(caught.value).split("\n")
    for count in (
        "1 source names that no rule uses",
        "1 targets given twice",
        "1 target paths not filled",
        "1 paths that the expected tree has not",
        "1 shape mismatches",
        "1 arrays that their rule's transform does not take",
    ):
        assert count in first
    for line in (
        "  stray",
        "  params/a: by a_weight and a_alias",
        "  params/missing",
        "  params/c (from c_weight)",
        "  params/b: got (2, 3), expected (3, 2)",
    ):
        assert line in rest
    assert any(line.startswith("  matrix: shape (5,)") for line in rest)


def test_long_lists_are_sorted_and_cut():
    source = {f"w{i:02d}": np.ones(1) for i in reversed(range(13))}
    with pytest.raises(ConversionError) as caught:
        convert(source, [])
    lines = str(caught.value).split("\n")
    assert lines[0] == "cannot convert: 13 source names that no rule uses"
    assert lines[2:] == [*(f"  w{i:02d}" for i in range(10)), "  ... and 3 more"]


def test_exactly_ten_names_are_all_shown():
    with pytest.raises(ConversionError) as caught:
        convert({f"w{i}": np.ones(1) for i in range(10)}, [])
    assert "more" not in str(caught.value)


def test_invert_lists_uncovered_and_colliding_leaves():
    rules = [Rule("w", "params/a"), Rule("w", "params/b"), Rule("m", "params/m", LINEAR)]
    variables = {"params": {"a": np.ones(1), "b": np.ones(1), "m": np.ones(3), "x": {"y": np.ones(1)}}}
    with pytest.raises(ConversionError) as caught:
        invert(variables, rules)
    lines = str(caught.value).split("\n")
    assert lines[0].startswith("cannot invert: ")
    assert "  params/x/y" in lines
    assert "  w: by params/a and params/b" in lines
    assert any(line.startswith("  params/m: shape (3,)") for line in lines)


def test_strip_prefix():
    assert strip_prefix({"module.a": 1, "module.b.module.c": 2}, "module.") == {"a": 1, "b.module.c": 2}
    assert strip_prefix({"a": 1, "b": 2}, "module.") == {"a": 1, "b": 2}
    assert strip_prefix({}, "module.") == {}
    with pytest.raises(ConversionError, match=r"(?s)'module\.': 1 names without.*\n  b$"):
        strip_prefix({"module.a": 1, "b": 2}, "module.")


def test_flatten_and_unflatten_are_inverse():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flatten(tree) == {"a/b/c": 1, "a/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
    assert flatten({"a": {}}) == {}


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b/c", "a/b"), ("a", "a/b/c")])
def test_unflatten_refuses_a_leaf_that_is_a_branch(paths):
    with pytest.raises(ConversionError, match="both a leaf and a branch"):
        unflatten(dict.fromkeys(paths, 0))


@pytest.mark.parametrize("key", ["a/b", "", 3])
def test_flatten_refuses_keys_that_are_not_segments(key):
    with pytest.raises(ConversionError, match="key"):
        flatten({"params": {key: 1}})
