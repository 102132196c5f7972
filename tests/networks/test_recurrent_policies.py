"""Policies with a memory: replayed sequences are the steps that were taken one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from trpo_fast import RecurrentPolicy, RecurrentValueFunction, TRPOOptimizer
from trpo_fast.networks.recurrent import sequences_of

SPACE = spaces.Box(-np.inf, np.inf, (3,))
# Of five sequences, their rows mixed.
LENGTHS = (3, 1, 5, 5, 2)


def made(cell, **options):
    torch.manual_seed(0)
    options = {"cell": cell, "cell_size": 6, "hidden_sizes": (5,)} | options
    return RecurrentPolicy(SPACE, spaces.Discrete(3), **options).double()


def batch(module, seed=0, lengths=LENGTHS):
    """Observations of mixed rows, their sequences, and each row's sequence and step."""
    rng = np.random.default_rng(seed)
    rows = [(number, step) for number, length in enumerate(lengths) for step in range(length)]
    sequence, step = (np.array(part) for part in zip(*rng.permutation(rows).tolist(), strict=True))
    torch.manual_seed(seed)
    first = tuple(torch.randn_like(part) for part in module.initial_memory(len(lengths)))
    obs = torch.randn(len(rows), 3, dtype=torch.float64)
    return obs, sequences_of(sequence, step, first), sequence, step


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", ["policy", "values"])
def test_a_replay_is_the_steps_one_by_one(cell, kind):
    module = made(cell)
    if kind == "values":
        module = RecurrentValueFunction(SPACE, (5,), cell=cell, cell_size=6).double()
    obs, sequences, sequence, step = batch(module)
    outputs, last = module.trunk.replay(obs, sequences)
    for number, length in enumerate(LENGTHS):
        memory = tuple(part[number : number + 1] for part in sequences.first)
        for at in range(length):
            row = int(np.flatnonzero((sequence == number) & (step == at))[0])
            given = obs[row : row + 1]
            expected, after = module.trunk.step(given, memory)
            torch.testing.assert_close(outputs[row : row + 1], expected)
            found, _ = module.step(given, memory)
            whole = module(obs, sequences=sequences)
            if kind == "values":
                torch.testing.assert_close(whole[row : row + 1], found)
            else:
                torch.testing.assert_close(whole.logits[row : row + 1], found.logits)
            memory = after
        for part, end in zip(memory, last, strict=True):
            torch.testing.assert_close(end[number : number + 1], part)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_without_sequences_each_row_begins_an_episode(cell):
    policy = made(cell)
    obs = torch.randn(4, 3, dtype=torch.float64)
    first, _ = policy.step(obs, policy.initial_memory(4))
    torch.testing.assert_close(policy(obs).logits, first.logits)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_fisher_products_of_sequences_are_those_of_a_dense_oracle(cell):
    """By the closure form: the products that a step of whole sequences is made of."""
    from trpo_fast.backends.generic.problem import GenericProblem, ModelCall, Term
    from trpo_fast.update.options import Options
    from trpo_fast.update.parameters import FlatParameters

    policy = made(cell)
    obs, sequences, _, _ = batch(policy)
    tensors = [p for p in policy.parameters() if p.requires_grad]
    parameters = FlatParameters(tensors, [str(i) for i in range(len(tensors))])

    def call():
        distribution = policy(obs, sequences=sequences)
        return ModelCall(distribution.logits.sum() * 0, distribution, None)

    problem = GenericProblem(parameters, Options(), [Term(call, 1.0)])
    problem.surrogate_gradient()
    logits = policy(obs, sequences=sequences).logits
    jacobian = torch.stack(
        [
            parameters.flatten(
                torch.autograd.grad(z, tensors, retain_graph=True, allow_unused=True)
            )
            for z in logits.flatten()
        ]
    )
    p = logits.softmax(1).detach()
    metric = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p)) / len(p)
    torch.manual_seed(1)
    v = torch.randn(jacobian.shape[1], dtype=torch.float64)
    expected = jacobian.T @ (metric @ (jacobian @ v))
    torch.testing.assert_close(problem.fisher_product(v), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_padded_replay_is_that_without_padding(cell):
    """In float32, where torch has a kernel of its own for sequences of one length."""
    module = RecurrentValueFunction(SPACE, (5,), cell=cell, cell_size=6)
    obs, sequences, _, _ = batch(module)
    weights = torch.randn(len(obs), 6)
    found = []
    for outputs in (
        module.trunk.replay(obs.float(), sequences)[0],
        module.trunk._replay_padded(obs.float(), sequences),
    ):
        loss = (outputs * weights).sum()
        found.append((outputs, *torch.autograd.grad(loss, list(module.trunk.parameters()))))
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-6)


def test_sequences_are_padded_only_where_that_holds_few_rows_more(monkeypatch):
    module = RecurrentValueFunction(SPACE, (5,), cell="lstm", cell_size=6)
    padded = []
    monkeypatch.setattr(module.trunk, "_replay_padded", lambda *_: padded.append(True))
    for lengths in ((9, 9, 8), (40, *[1] * 40)):
        obs, sequences, _, _ = batch(module, 0, lengths)
        module.trunk.outputs(obs, sequences)
    assert padded == [True]  # the second would hold 41 x 40 cells for 80 rows


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_promise_holds_on_sequences(cell):
    for seed in range(200):
        policy = made(cell, hidden_sizes=(), cell_size=2)
        obs, sequences, _, _ = batch(policy, seed, (2, 1, 3))
        with torch.no_grad():
            for parameter in policy.parameters():  # not the nearly uniform policy of the start
                parameter.normal_()
            actions = policy(obs, sequences=sequences).sample()
            old = policy(obs, sequences=sequences)
        advantages = torch.randn(len(obs), dtype=torch.float64)
        optimizer = TRPOOptimizer(policy, max_kl=0.01)
        before = [p.clone() for p in policy.parameters()]

        def closure(
            policy=policy,
            obs=obs,
            sequences=sequences,
            actions=actions,
            old=old,
            advantages=advantages,
        ):
            new = policy(obs, sequences=sequences)
            ratio = (new.log_prob(actions) - old.log_prob(actions)).exp()
            return -(ratio * advantages).mean(), new

        optimizer.step(closure)
        result = optimizer.last_result
        if not result.accepted:
            assert all(map(torch.equal, before, policy.parameters()))
            continue
        with torch.no_grad():
            new = policy(obs, sequences=sequences)
            kl = torch.distributions.kl_divergence(old, new).mean()
            assert kl <= 0.01 * (1 + 1e-9)
            assert -((new.log_prob(actions) - old.log_prob(actions)).exp() * advantages).mean() < (
                -advantages.mean()
            )


def test_unknown_cells_are_refused():
    with pytest.raises(ValueError, match="cell 'rnn' is unknown; known: lstm, gru"):
        made("rnn")
