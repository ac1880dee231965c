"""The dense answer of the decode contract in float64: one softmax over all keys of a row, nothing in blocks.

    score_j = q_sem . k_sem_j + q_geo . k_geo_j,    out = softmax(score) V,    lse = log sum_j e^score_j

It reads what is stored through the cache's own decoder; the newest tokens are the inputs rounded to fp16 for
block formats. It can be wrong on purpose, to tell in a report which mistake a backend makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from dba_core.contracts import DecodeBackend, DecodeOutput, NullKV
from dba_core.registry.contain import contain
from dba_core.testing.compare import far, near
from dba_core.testing.decode_cases import DecodeCase, Filled
from dba_core.testing.subject import BreachError, Subject, Violation, told


class Answer(NamedTuple):
    """out [B,H,Dv], lse [B,H], float64."""

    out: Tensor
    lse: Tensor


def oracle(
    filled: Filled,
    *,
    null_count: int = 1,
    interleaved_heads: bool = False,
    residual: bool = True,
    quantized: bool = True,
) -> Answer:
    """The right answer; other arguments than the defaults give another one.

    null_count: how often the null token counts. interleaved_heads: head h reads KV head h % G. residual:
    False reads the newest tokens as stored. quantized: False reads all as they were before the cache stored
    them.
    """
    cache, heads, answers = filled.cache, filled.q_geo.shape[1], []
    for row, length in enumerate(cache.lengths):
        keys = []
        window = max(0, length - cache.residual_len)
        for store, x in zip((cache.k_sem, cache.k_geo, cache.v), filled.tokens, strict=True):
            given = x[row, :, :length]
            values = store.stored(0, length)[row].double() if quantized else given.double()  # [G, length, D]
            if residual and quantized and store.quantized and cache.residual_len:
                values = torch.cat((values[:, :window], given[:, window:].half().double()), dim=1)
            keys.append(_per_head(values, heads, interleaved_heads))
        if filled.null is not None:
            keys = [
                torch.cat((null.expand(-1, null_count, -1), rest), dim=1)
                for null, rest in zip(_null_heads(filled.null, heads, interleaved_heads), keys, strict=True)
            ]
        answers.append(_softmax(filled, row, *keys))
    return Answer(torch.stack([row.out for row in answers]), torch.stack([row.lse for row in answers]))


def _softmax(filled: Filled, row: int, k_sem: Tensor, k_geo: Tensor, v: Tensor) -> Answer:
    """k_sem [H,S,Ds], k_geo [H,S,Dg], v [H,S,Dv] of one row."""
    scores = torch.einsum("hd,hnd->hn", filled.q_sem[row].double(), k_sem)
    scores = scores + torch.einsum("hd,hnd->hn", filled.q_geo[row].double(), k_geo)
    out = torch.einsum("hn,hnd->hd", torch.softmax(scores, dim=-1), v)
    return Answer(out, torch.logsumexp(scores, dim=-1))


def _per_head(x: Tensor, heads: int, interleaved: bool) -> Tensor:
    """[G, ...] -> [H, ...]: the KV head of every query head."""
    share = heads // len(x)
    return x.repeat(share, *(1 for _ in x.shape[1:])) if interleaved else x.repeat_interleave(share, dim=0)


def _null_heads(null: NullKV, heads: int, interleaved: bool) -> list[Tensor]:
    """k_sem, k_geo and v as [H,1,D]."""
    return [_per_head(t.double(), heads, interleaved)[:, None] for t in (null.k_sem, null.k_geo, null.v)]


@attrs.frozen(kw_only=True, eq=False)
class Asked:
    """A backend built for one case. has_lse: it is asked for the log-sum-exp too, where it supports that."""

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
        if isinstance(done, DecodeOutput) and (done.lse is not None or not self.has_lse):
            return done
        expected = "a DecodeOutput" + (" with lse, as asked for" if self.has_lse else "")
        hint = "Let supports() decline what decode() cannot do, with a Reason."
        raise BreachError(self.case, expected, told(done), hint)

    def answers(self, got: DecodeOutput, wanted: Answer) -> Iterator[Violation]:
        """Violations for output and log-sum-exp that differ from `wanted` by more than the dtype allows."""
        case = self.case
        yield from near(case, got.out, wanted.out, dtype=case.dtype, what="out", hint=case.hint)
        if got.lse is not None:
            yield from near(case, got.lse, wanted.lse, dtype=case.dtype, what="lse", hint=case.hint)


def asked(subject: Subject, case: DecodeCase) -> Iterator[tuple[Asked, Filled]]:
    """The backend for this case and its input, once; nothing where it declines. Prefers to be asked for the
    lse.
    """
    with_lse = case.request(device=subject.device, needs_lse=True)
    has_lse = subject.answer(with_lse).ok
    request = with_lse if has_lse else case.request(device=subject.device, needs_lse=False)
    for backend in subject.built(request):
        yield Asked(case=case, backend=backend, has_lse=has_lse), case.filled(subject)


def compared(subject: Subject, case: DecodeCase) -> Iterator[Violation]:
    """The backend's answer to the case against the oracle's, the hint naming the mistake where the output
    equals a known wrong one.
    """
    for each, filled in asked(subject, case):
        got, wanted = each.decode(filled), oracle(filled)
        violations = list(each.answers(got, wanted))
        mistake = _mistake(each, filled, got, wanted) if violations else ""
        for violation in violations:
            yield attrs.evolve(violation, hint=mistake or violation.hint)


def _mistake(each: Asked, filled: Filled, got: DecodeOutput, wanted: Answer) -> str:
    """Which wrong oracle the first wrong row equals."""
    dtype, lengths = each.case.dtype, filled.cache.lengths
    wrong = [row for row in range(len(lengths)) if far(got.out[row], wanted.out[row], dtype=dtype)]
    if got.out.shape != wanted.out.shape or not wrong:
        return ""
    row = wrong[0]
    for what, answer in _wrong_answers(each, filled):
        if far(got.out[row], answer.out[row], dtype=dtype) is None:
            return f"Row {row} of {lengths[row]} tokens equals the result {what}."
    return ""


def _wrong_answers(each: Asked, filled: Filled) -> Iterator[tuple[str, Answer]]:
    """Known mistakes with their answers."""
    right, groups = oracle(filled), each.case.shape.n_kv_heads
    if filled.null is not None:
        yield "without the null token", oracle(filled, null_count=0)
        for n in range(2, 9):
            yield f"with the null token counted {n} times", oracle(filled, null_count=n)
    # The rows of a batch of equal lengths mixed up.
    for shift in range(1, filled.cache.batch) if len(set(filled.cache.lengths)) == 1 else ():
        yield "that belongs to another row of the batch", right._replace(out=right.out.roll(shift, 0))
        q_sem, q_geo = filled.q_sem.roll(shift, 0), filled.q_geo.roll(shift, 0)
        other = oracle(attrs.evolve(filled, q_sem=q_sem, q_geo=q_geo))
        yield "with the query of another row of the batch", other
        yield "over the tokens of another row of the batch", other._replace(out=other.out.roll(-shift, 0))
    if each.case.shape.n_heads > groups:
        text = "with query head h reading KV head h % G; right is h // (H/G)"
        yield text, oracle(filled, interleaved_heads=True)
        turned = torch.unflatten(right.out, 1, (groups, -1)).flip(2).flatten(1, 2)
        yield "with the query heads of a group in another order", right._replace(out=turned)
    if filled.cache.residual_len:
        text = "that reads the residual window as stored; right is from recent_ring"
        yield text, oracle(filled, residual=False)
