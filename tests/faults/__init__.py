"""Faults on purpose: real Kafka, real Valkey, real nearcast processes, killed, stopped and cut off; and checkers that
believe only what can be seen from outside (the log's topics, the store, what the SMS provider holds).

| recipe | file | what is done | short form, in `make test` |
|---|---|---|---|
| R1 | test_steps.py | SIGKILL at every named step of a batch and of a message; long: all ordered pairs | 8 steps |
| R2 | test_kills.py | three engines under load, a random SIGKILL every few seconds | 5,000 events, 3 kills |
| R3 | test_zombie.py | SIGSTOP in a batch, partitions taken over, SIGCONT; long: the dispatcher, too | the engine |
| R4 | test_broker.py | Kafka killed and restarted within a commit and within an append, or stopped first | long only |
| R5 | test_store.py | Valkey killed under `appendfsync always`, and with the last second lost | long only |
| R6 | test_store.py | Valkey restored from an older copy | long only |
| R6 | test_rollback.py | Valkey put back with all connections open, as by a fail-over | long only |
| - | test_backlog.py | an engine that comes when all is in the log already | long only |
| R12 | test_cancellation.py | cancelled commands through a proxy that delays | both |
| R21 | test_checkers.py | a guard taken away: the checkers must find it | fencing, idempotency, replay |
| - | test_checks.py | each sentence of the checkers, of evidence spoilt by hand | all |

Long only in test_checkers.py: the epoch or the offsets alone (R3, R6), starting over from what is stored (R5, R6), and
the broker's acknowledgement (R4). Epoch and offsets back each other up: where others have committed since, either of
them is enough.

(R11, budgets under kills, is `test_budget.py`: eight engines on Valkey Streams, with checkers of its own.)

**How to read a recipe.** `rig.Rig` starts the processes and drives them; `traffic` makes what customers do, by seed;
`worker` is how a nearcast process comes to kill itself at a step; `evidence` gathers what can be seen from outside;
`checks.violations` compares it with `tests.oracle` and says what is wrong, one sentence each. `history.jsonl` in the
test's folder is the driver's log: what was sent, acknowledged, armed, killed, restarted, seen.

**Again.** A failure shows the seed, the command line that repeats it, and the end of the history. The seed decides
customers, events, their order and the faults; the operating system decides the timing, so repeat a few times.

    NEARCAST_TEST_SEED=7 .venv/bin/pytest tests/faults/test_kills.py -m "long or not long"

**Order.** Between topics the log promises none, so each customer acts on one topic at a time, and a phase (sign-up,
then traffic) begins when the one before is worked off.
"""
