from __future__ import annotations

import numpy as np
import pytest
import torch

from burgersgd.losses import LOSSES

OUTPUTS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 3.0], [-4.0, 1.5, 1.0]], dtype=torch.float64)
CLASSES = torch.tensor([0, 2, 1])


def test_cross_entropy_is_minus_the_log_probability_of_the_class() -> None:
    loss = LOSSES["cross_entropy"]
    z = OUTPUTS.numpy()
    probability = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    expected = -np.log(probability[np.arange(3), CLASSES.numpy()]).mean()
    targets = loss.encode(CLASSES, 3, torch.float64)
    assert float(loss.mean(OUTPUTS, targets)) == pytest.approx(expected, rel=1e-12)
    assert loss.classify(OUTPUTS).tolist() == [0, 2, 1]


def test_squared_error_sums_over_outputs_and_averages_over_the_batch() -> None:
    loss = LOSSES["squared_error"]
    targets = loss.encode(CLASSES, 3, torch.float64)
    assert targets.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    expected = ((OUTPUTS.numpy() - np.eye(3)[CLASSES.numpy()]) ** 2).sum(1).mean()
    assert float(loss.mean(OUTPUTS, targets)) == pytest.approx(expected, rel=1e-12)
    regression = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    assert loss.encode(regression, 1, torch.float64) is regression


def test_logistic_is_log_one_plus_exp_of_minus_t_y() -> None:
    loss = LOSSES["logistic"]
    outputs = torch.tensor([[0.3], [-2.0], [800.0]], dtype=torch.float64)
    targets = loss.encode(torch.tensor([1, 1, 0]), 2, torch.float64)
    assert targets.tolist() == [1, 1, -1]
    expected = np.logaddexp(0, -targets.numpy() * outputs[:, 0].numpy()).mean()
    assert float(loss.mean(outputs, targets)) == pytest.approx(expected, rel=1e-12)
    assert loss.classify(outputs).tolist() == [1, 0, 1]
    assert loss.n_outputs(2) == 1
