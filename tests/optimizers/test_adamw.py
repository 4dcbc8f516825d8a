"""AdamW against torch.optim.AdamW."""

from __future__ import annotations

import torch
from torch import nn

from burgersgd.optimizers.adam import AdamW
from tests import reference
from tests.optimizers.driver import drive, of_runs, wavy

HYPER = {
    "lr": [0.05, 0.2, 0.11],
    "beta1": [0.7, 0.95, 0.3],
    "beta2": [0.8, 0.6, 0.99],
    "eps": [1e-3, 0.05, 0.4],
    "weight_decay": [0.05, 0.3, 0.6],
}
SCHEDULE = {"warmup": [0.2, 0.3, 0.1], "final": [0.3, 0.6, 0.1]}


def test_every_run_of_a_fleet_is_torch_adamw() -> None:
    steps = 40
    x = torch.from_numpy(reference.start(3, 4))
    gradient = of_runs([wavy(i) for i in range(3)])
    states = list(drive(AdamW(), HYPER, x, gradient, steps, schedule="cosine", schedule_hyper=SCHEDULE))
    for i in range(3):
        hyper = {name: values[i] for name, values in HYPER.items()}
        params = nn.Parameter(x[i].clone())
        betas = (hyper["beta1"], hyper["beta2"])
        optimizer = torch.optim.AdamW([params], betas=betas, eps=hyper["eps"], weight_decay=hyper["weight_decay"])
        lr = reference.warm_cosine(hyper["lr"], SCHEDULE["warmup"][i], SCHEDULE["final"][i], steps)
        for k in range(steps):
            params.grad = torch.from_numpy(wavy(i)(k, params.detach().numpy()))
            optimizer.param_groups[0]["lr"] = lr(k / steps)
            optimizer.step()
            torch.testing.assert_close(states[k].x[i], params.detach(), rtol=0, atol=1e-12)
