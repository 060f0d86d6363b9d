"""Folding against the batch norm itself."""

import torch
from torch import nn

from qtool.conversion.fold_batch_norm import fold_batch_norm


def batch_norm(channels, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels, **more).eval()
    norm.running_mean = torch.randn(channels, generator=generator)
    norm.running_var = torch.rand(channels, generator=generator) + 0.1
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.randn(channels, generator=generator))
            norm.bias.copy_(torch.randn(channels, generator=generator))
    return norm


def folded_output(folded, codes, x):
    weight = codes * (folded.sign * folded.scale).reshape(-1, 1, 1, 1)
    return nn.functional.conv2d(x, weight, folded.bias)


def test_a_folded_convolution_gives_what_convolution_and_batch_norm_give():
    norm = batch_norm(6).double()
    codes = torch.randint(-7, 8, (6, 3, 3, 3)).double()
    scale, bias = torch.rand(6).double() + 0.1, torch.randn(6).double()
    x = torch.randn(2, 3, 8, 8).double()
    expected = norm(nn.functional.conv2d(x, codes * scale.reshape(-1, 1, 1, 1), bias))

    torch.testing.assert_close(
        folded_output(fold_batch_norm(scale, bias, norm), codes, x),
        expected,
        rtol=1e-12,
        atol=1e-12,
    )


def test_scales_stay_positive_and_the_sign_goes_to_the_codes():
    norm = batch_norm(6)
    folded = fold_batch_norm(torch.ones(6), None, norm)

    assert (folded.scale > 0).all()
    assert torch.equal(folded.sign < 0, norm.weight < 0)


def test_a_batch_norm_without_gamma_and_beta_folds_too():
    norm = batch_norm(4, affine=False)
    folded = fold_batch_norm(torch.ones(4), None, norm)

    gain = 1 / (norm.running_var.double() + norm.eps).sqrt()
    torch.testing.assert_close(folded.scale, gain, rtol=1e-15, atol=0)
    torch.testing.assert_close(folded.bias, -norm.running_mean.double() * gain, rtol=1e-15, atol=0)
