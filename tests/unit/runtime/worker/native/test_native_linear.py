"""Packed linear layers against torch, for every instruction set that this machine has."""

from __future__ import annotations

import pytest
import torch

from dedicate_runtime.worker.native.library import Pool, load_kernels, usable_instruction_sets
from dedicate_runtime.worker.native.linear import NativeLinear, PackedWeights, WeightFormat

SHAPES = [(1, 1), (50, 65), (32, 64), (96, 576), (130, 200), (576, 1536)]
ROWS = [1, 2, 12, 13, 33, 200]


@pytest.fixture(scope="module", params=[one.name for one in usable_instruction_sets()])
def pool(request):
    return Pool(load_kernels(request.param), num_threads=3)


def make(pool, out_features, in_features, format_, *, has_bias=True):
    generator = torch.Generator().manual_seed(out_features + in_features)
    weight = torch.randn(out_features, in_features, generator=generator)
    bias = torch.randn(out_features, generator=generator) if has_bias else None
    return weight, bias, NativeLinear(PackedWeights(pool, weight, bias, format_))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
def test_floats_are_those_of_torch(pool, shape, num_rows):
    weight, bias, linear = make(pool, *shape, WeightFormat.FLOAT32)
    inputs = torch.randn(num_rows, shape[1], generator=torch.Generator().manual_seed(num_rows))
    torch.testing.assert_close(linear(inputs), torch.nn.functional.linear(inputs, weight, bias), atol=1e-3, rtol=1e-4)


def hadamard():
    """(64, 64), orthonormal and its own inverse."""
    matrix = torch.ones(1, 1)
    while len(matrix) < 64:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / 8


def draw_integers(num_rows, num_columns, generator):
    """Rows of integers of at most 127, one of them that large: their scale is 1."""
    integers = torch.randint(-127, 128, (num_rows, num_columns), generator=generator).float()
    integers[:, 0] = 127
    return integers


@pytest.mark.parametrize("shape", [(32, 64), (50, 192), (576, 1536)], ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
def test_integers_are_summed_exactly(pool, shape, num_rows):
    generator = torch.Generator().manual_seed(num_rows)
    weight = draw_integers(*shape, generator)
    inputs = draw_integers(num_rows, shape[1], generator)
    bias = torch.randn(shape[0], generator=generator)

    def rotate_back(integers):
        return (integers.view(-1, 64) @ hadamard()).view(integers.shape)

    linear = NativeLinear(PackedWeights(pool, rotate_back(weight), bias, WeightFormat.INT8))
    expected = (inputs.double() @ weight.double().T).float() + bias
    torch.testing.assert_close(linear(rotate_back(inputs)), expected, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_rows", ROWS)
def test_integers_are_close_to_floats(pool, shape, num_rows):
    weight, bias, linear = make(pool, *shape, WeightFormat.INT8)
    inputs = torch.randn(num_rows, shape[1], generator=torch.Generator().manual_seed(num_rows))
    expected = torch.nn.functional.linear(inputs, weight, bias)
    assert torch.dist(linear(inputs), expected) / expected.norm() < 0.02


def test_a_single_large_input_leaves_the_others_their_precision(pool):
    weight, bias, linear = make(pool, 64, 512, WeightFormat.INT8)
    inputs = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    inputs[:, 100] = 300.0
    expected = torch.nn.functional.linear(inputs, weight, bias)
    # One scale of 300 / 127 for all would make an error of 0.68 in each of 512 inputs; spread over 64 it is an eighth.
    error_of_an_input = (linear(inputs) - expected).square().mean().sqrt() / 512**0.5
    assert error_of_an_input < 0.2


@pytest.mark.parametrize("format_", WeightFormat)
def test_a_row_gives_the_same_bits_in_any_company(pool, format_):
    _, _, linear = make(pool, 200, 300, format_, has_bias=False)
    inputs = torch.randn(100, 300)
    together = linear(inputs)
    for first, last in ((0, 1), (5, 7), (40, 53), (60, 97), (99, 100)):
        assert torch.equal(linear(inputs[first:last]), together[first:last])


@pytest.mark.parametrize("format_", WeightFormat)
def test_values_that_are_not_numbers_stay_in_their_row(pool, format_):
    _, _, linear = make(pool, 64, 128, format_)
    inputs = torch.randn(5, 128)
    clean = linear(inputs)
    broken = inputs.clone()
    broken[1, 7] = torch.nan
    broken[3, 100] = torch.inf
    output = linear(broken)
    assert not torch.isfinite(output[1]).any()
    assert not torch.isfinite(output[3]).any()
    assert torch.equal(output[[0, 2, 4]], clean[[0, 2, 4]])


def test_rows_of_zeros_quantize_to_zeros(pool):
    _, bias, linear = make(pool, 40, 70, WeightFormat.INT8)
    torch.testing.assert_close(linear(torch.zeros(2, 70)), bias.expand(2, -1))


def test_leading_dimensions_are_kept(pool):
    _, _, linear = make(pool, 40, 70, WeightFormat.FLOAT32)
    assert linear(torch.randn(1, 6, 70)).shape == (1, 6, 40)


@pytest.mark.parametrize("num_threads", [1, 2, 9])
def test_the_number_of_threads_changes_nothing(num_threads):
    kernels = load_kernels()
    inputs = torch.randn(70, 300)
    alone = make(Pool(kernels, num_threads=1), 500, 300, WeightFormat.FLOAT32)[2](inputs)
    pool = Pool(kernels, num_threads=num_threads)
    linear = make(pool, 500, 300, WeightFormat.FLOAT32)[2]
    for _ in range(50):
        assert torch.equal(linear(inputs), alone)
