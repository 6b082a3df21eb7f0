from types import SimpleNamespace

from bitkd.callbacks import step_end


def test_ranks_hear_a_yes_at_the_same_step_and_wait_for_none(monkeypatch):
    """Rank 1 says yes at step 7. Each rank runs alone through its steps: no vote may wait before the next one begins."""
    begun, log = {0: [], 1: []}, []

    class Work:
        def __init__(self, rank, answer):
            self.rank, self.answer, self.number = rank, answer, len(begun[rank])
            begun[rank].append(int(answer))

        def wait(self):
            log.append((self.rank, self.number))
            self.answer.fill_(max(answers[self.number] for answers in begun.values()))

    ranks = [step_end.Vote(), step_end.Vote()]
    heard = []
    monkeypatch.setattr(step_end, "_on_the_host", lambda world: None)
    for step in range(1, 16):
        trainer = SimpleNamespace(world_size=2, global_step=step)
        for rank, vote in enumerate(ranks):
            monkeypatch.setattr(step_end.dist, "all_reduce", lambda answer, *_, rank=rank, **__: Work(rank, answer))
            waits = len(log)
            if vote.ask(trainer, rank == 1 and step >= 7, validated=False):
                heard.append((rank, step))
            assert len(log) - waits == (1 if step in (10, 15) else 0)
    assert heard == [(0, 15), (1, 15)]  # begun at step 10
    assert begun == {0: [0, 0], 1: [0, 1]}


def test_a_single_process_hears_itself_at_once():
    trainer = SimpleNamespace(world_size=1, global_step=3)
    assert step_end.Vote().ask(trainer, True, validated=False)
