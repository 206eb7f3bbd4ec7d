"""What ReFL keeps for its backward pass: one step, whatever their number."""

from __future__ import annotations

from itertools import pairwise

import torch

from finpercep.rl.coordinates import euler
from finpercep.rl.generators import SRTiny
from finpercep.rl.refl import ReFL, ReFLConfig
from finpercep.rl.rollout import initial_noise, sample_generators
from tests.rl.toy import Red, batch


def kept(work, generator):
    """Bytes that autograd keeps while `work` runs, each storage once, without the weights."""
    storages = {}

    def count(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that none is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        result = work()
    del result
    weights = {parameter.untyped_storage().data_ptr() for parameter in generator.parameters()}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


def plain(generator, given, count):
    """Gradients through all steps, as a plain implementation keeps them."""
    condition, levels = generator.condition(given), generator.steps(count).s
    x = initial_noise(generator, given, sample_generators(given.ids, "x"), levels[0])
    for s, after in pairwise(levels):
        x = euler(x, s, after, generator.velocity(x, torch.full((len(x),), s), condition))
    return Red()(generator.decode(x, condition)).score.sum()


def refl(generator, given, count):
    algorithm = ReFL(generator, ReFLConfig(steps=count, late=1, pretrain=False, weighting="identity"))
    return algorithm.loss(algorithm.collect(given, Red(), 0))["loss"]


def measured(count, side=32):
    generator = SRTiny((16, 24), 1)
    given = batch()
    given = type(given)(torch.rand(2, 3, side // 4, side // 4), given.ids)
    return kept(lambda: plain(generator, given, count), generator), kept(
        lambda: refl(generator, given, count), generator
    )


def test_memory_does_not_grow_with_the_steps():
    (few, one), (many, same) = measured(2), measured(8)
    assert many > 3 * few
    assert same < 1.01 * one
    assert same < many / 5
