"""A small autoencoder: vectors through a narrow place and back, as near as can be (Hinton & Salakhutdinov 2006)."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

HIDDEN = 512
EPOCHS, BATCH, RATE = 30, 512, 1e-3


def autoencoder(
    sample: np.ndarray, width: int, seed: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]:
    """Train one on unit vectors (n, dim): the layers of its encoder and of its decoder, each (weight (inputs, outputs), bias), what is negative 0 between them."""
    dim = sample.shape[1]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, width))
        decoder = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dim))
        vectors = torch.tensor(sample)
        steps = EPOCHS * -(-len(vectors) // BATCH)
        learner = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], RATE)
        rate = torch.optim.lr_scheduler.OneCycleLR(learner, RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for batch in vectors[torch.randperm(len(vectors))].split(BATCH):
                learner.zero_grad()
                loss = (1 - nn.functional.cosine_similarity(decoder(encoder(batch)), batch)).mean()
                loss.backward()
                learner.step()
                rate.step()
    return _layers(encoder), _layers(decoder)


def _layers(network: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    linear = [each for each in network if isinstance(each, nn.Linear)]
    return [(each.weight.detach().numpy().T.copy(), each.bias.detach().numpy().copy()) for each in linear]
