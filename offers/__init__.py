"""The decision: which promotion, if any, a moment is worth; and whether a decided message still holds when it is sent.

    moment ── candidates() ──► screen() by the gates ──► (scores, from outside) ──► decide() ──► message_of()
                                                        just before sending: recheck()

Everything here is a pure function of values: no I/O, no clock, no logging. The time comes in as `at_ms` or `now_ms`.
"""
