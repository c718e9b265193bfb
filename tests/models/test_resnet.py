"""ResNet with frozen batch norm: constants that equal batch norm in evaluation, and are no parameters."""

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.models.resnet import ResNet

OPTIONS = {"blocks": (1, 1, 2, 1), "width": 0.125}
FRAMES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 64, 48, 3)), jnp.float32)


def test_published_size():
    shapes = jax.eval_shape(lambda: ResNet(frozen=True).init(jax.random.key(0), FRAMES))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes.items()}
    # Without the classifier, ResNet-50 has 23,508,032 weights, of which batch norms have half of 4 * 26,560.
    assert sizes == {"params": 23_508_032 - 53_120, "frozen": 4 * 26_560}


def test_frozen_batch_norm_is_batch_norm_in_evaluation():
    trained = ResNet(**OPTIONS)
    made = trained.init(jax.random.key(0), FRAMES)
    made = jax.tree.map(lambda x: x + 0.1 * jnp.abs(jax.random.normal(jax.random.key(1), x.shape)), made)
    wanted, _ = trained.apply(made, FRAMES)

    def split(params, statistics):
        constants = {}
        for name, tree in statistics.items():
            if name == "bn":
                constants[name] = {**tree, **params.pop(name)}
            else:
                constants[name] = split(params[name], tree)
        return constants

    params = jax.tree.map(jnp.asarray, made["params"])
    variables = {"frozen": split(params, made["batch_stats"]), "params": params}
    frozen = ResNet(**OPTIONS, frozen=True)
    (found, extents), changed = frozen.apply(variables, FRAMES, train=True, mutable=["batch_stats"])
    assert extents is None
    assert not changed
    assert found["layer4"].shape == (2, 2, 2, 2, 256)
    for name, maps in wanted.items():
        np.testing.assert_allclose(found[name], maps, rtol=1e-5, atol=1e-5)
