"""Asking a decode backend: one case in, its output beside the oracle's, whatever it raises as a violation."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch

from dba_core.contracts import DecodeBackend, DecodeOutput
from dba_core.registry.contain import Failure, contain
from dba_core.testing.compare import far, near
from dba_core.testing.decode_cases import DecodeCase, Filled
from dba_core.testing.decode_oracle import Answer, oracle
from dba_core.testing.subject import BreachError, Subject, Violation

_GENERAL = "Compare with the reference backend, dba_plugins/decode/streaming.py."


@attrs.frozen(kw_only=True, eq=False)
class Asked:
    """A backend built for one case. has_lse: it is asked for the log-sum-exp too, where it supports that."""

    subject: Subject
    case: DecodeCase
    backend: DecodeBackend
    has_lse: bool

    def decode(self, filled: Filled) -> DecodeOutput:
        """Raises BreachError where the backend raises, or returns no DecodeOutput."""
        done: object = contain(
            lambda: self.backend.decode(
                filled.q_sem, filled.q_geo, filled.cache, null=filled.null, needs_lse=self.has_lse
            )
        )
        complete = isinstance(done, DecodeOutput) and (done.lse is not None or not self.has_lse)
        if isinstance(done, DecodeOutput) and complete:
            return done
        raise BreachError(
            Violation(
                case=str(self.case),
                expected="a DecodeOutput" + (" with lse, as asked for" if self.has_lse else ""),
                got=f"it raised {done}" if isinstance(done, Failure) else repr(done)[:200],
                hint="Let supports() decline what decode() cannot do, with a Reason.",
            )
        )

    def answers(self, got: DecodeOutput, wanted: Answer, *, hint: str = _GENERAL) -> Iterator[Violation]:
        """Violations for output and log-sum-exp that differ from `wanted` by more than the dtype allows."""
        case, dtype = str(self.case), self.case.dtype
        yield from near(got.out, wanted.out, dtype=dtype, what="out", case=case, hint=hint)
        if got.lse is not None:
            yield from near(got.lse, wanted.lse, dtype=dtype, what="lse", case=case, hint=hint)


def asked(subject: Subject, case: DecodeCase) -> Iterator[Asked]:
    """The backend for this case, once; nothing where it declines. Prefers to be asked for the lse."""
    with_lse = case.request(device=subject.device, needs_lse=True)
    has_lse = subject.answer(with_lse).ok
    request = with_lse if has_lse else case.request(device=subject.device, needs_lse=False)
    for backend in subject.built(request):
        yield Asked(subject=subject, case=case, backend=backend, has_lse=has_lse)


def diagnosed(each: Asked, filled: Filled, got: DecodeOutput) -> Iterator[Violation]:
    """`answers` against the oracle, the hint naming the mistake where the output equals a known wrong one."""
    wanted = oracle(filled)
    violations = list(each.answers(got, wanted))
    if violations:
        mistake = _mistake(each, filled, got, wanted)
        for violation in violations:
            yield attrs.evolve(violation, hint=mistake or violation.hint)


def _mistake(each: Asked, filled: Filled, got: DecodeOutput, wanted: Answer) -> str | None:
    """Which wrong oracle the first wrong row equals."""
    dtype, lengths = each.case.dtype, filled.cache.lengths
    wrong = [row for row in range(len(lengths)) if far(got.out[row], wanted.out[row], dtype=dtype)]
    if got.out.shape != wanted.out.shape or not wrong:
        return None
    row = wrong[0]
    for what, answer in _wrong_answers(each, filled):
        if far(got.out[row], answer.out[row], dtype=dtype) is None:
            return f"Row {row} of {lengths[row]} tokens equals the result {what}."
    return None


def _wrong_answers(each: Asked, filled: Filled) -> Iterator[tuple[str, Answer]]:
    """Known mistakes with their answers."""
    if filled.null is not None:
        yield "without the null token", oracle(filled, null_count=0)
        for n in range(2, 9):
            yield f"with the null token counted {n} times", oracle(filled, null_count=n)
    yield from _other_rows(filled)
    if each.case.sizes.heads > each.case.sizes.kv_heads:
        text = "with query head h reading KV head h % G; right is h // (H/G)"
        yield text, oracle(filled, interleaved_heads=True)
        right, groups = oracle(filled), each.case.sizes.kv_heads
        turned = torch.unflatten(right.out, 1, (groups, -1)).flip(2).flatten(1, 2)
        yield "with the query heads of a group in another order", right._replace(out=turned)
    if filled.cache.residual_len:
        text = "that reads the residual window as stored; right is from recent_ring"
        yield text, oracle(filled, residual=False)


def _other_rows(filled: Filled) -> Iterator[tuple[str, Answer]]:
    """Answers with the rows of a batch of equal lengths mixed up."""
    right = oracle(filled)
    if len(set(filled.cache.lengths)) > 1:
        return
    for shift in range(1, filled.cache.batch):
        yield "that belongs to another row of the batch", right._replace(out=right.out.roll(shift, 0))
        q_sem, q_geo = filled.q_sem.roll(shift, 0), filled.q_geo.roll(shift, 0)
        other = oracle(attrs.evolve(filled, q_sem=q_sem, q_geo=q_geo))
        yield "with the query of another row of the batch", other
        yield "over the tokens of another row of the batch", other._replace(out=other.out.roll(-shift, 0))
