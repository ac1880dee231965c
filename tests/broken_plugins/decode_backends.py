"""Decode backends that are right but for one mistake each: a dense softmax per row, in steps."""

from __future__ import annotations

import attrs
import torch

from dba_core.contracts import DecodeOutput, NoOptions, Reason, Support


class Dense:
    """The right answer. Subclasses override one step."""

    name = "dense"
    fused_null = False
    writer = None
    null_count = 1
    residual = True

    @torch.no_grad()
    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        heads = q_geo.shape[1]
        outs, lses = [], []
        for row in range(cache.batch):
            length = self.length(cache, row)
            k_sem, k_geo, v = (
                self.heads(self.tokens(store, cache, row, length), heads)
                for store in (cache.k_sem, cache.k_geo, cache.v)
            )
            if null is not None:
                n_sem, n_geo, n_v = (
                    self.heads(t.float(), heads)[:, None].expand(-1, self.nulls(length), -1)
                    for t in (null.k_sem, null.k_geo, null.v)
                )
                k_sem, k_geo, v = (
                    torch.cat(pair, dim=1) for pair in ((n_sem, k_sem), (n_geo, k_geo), (n_v, v))
                )
            scores = torch.einsum("hd,hnd->hn", q_sem[row].float(), k_sem)
            scores = scores + torch.einsum("hd,hnd->hn", q_geo[row].float(), k_geo)
            outs.append(torch.einsum("hn,hnd->hd", scores.softmax(-1), v))
            lses.append(scores.logsumexp(-1))
        lse = torch.stack(lses) if needs_lse else None
        return DecodeOutput(out=torch.stack(outs).to(q_geo.dtype), lse=lse)

    def length(self, cache, row):
        return cache.lengths[row]

    def nulls(self, length):
        return self.null_count

    def heads(self, x, heads):
        """[G, ...] -> [H, ...]."""
        return x.repeat_interleave(heads // len(x), dim=0)

    def tokens(self, store, cache, row, length):
        """float32 [G, length, D]."""
        values = store.codec.decode(
            store.codes[row : row + 1, :, :length],
            None if store.scales is None else store.scales[row : row + 1, :, :length],
        )[0].float() if store.head_dim else store.stored(0, length)[row]  # fmt: skip
        ring = store.recent_ring
        if ring is None or not self.residual:
            return values
        recent = torch.arange(max(0, length - cache.residual_len), length)
        held = ring[row][:, recent % ring.shape[2]].float()
        return torch.cat((values[:, : length - len(recent)], held), dim=1)


class ReadsOneTooMany(Dense):
    def length(self, cache, row):
        return min(cache.lengths[row] + 1, cache.capacity)


class IgnoresRaggedLengths(Dense):
    def length(self, cache, row):
        return cache.length


class ForgetsNull(Dense):
    null_count = 0


class CountsNullPerPartition(Dense):
    """Right for one partition of 64 tokens."""

    def nulls(self, length):
        return max(1, -(-length // 64))


class InterleavesHeads(Dense):
    def heads(self, x, heads):
        return x.repeat(heads // len(x), *(1 for _ in x.shape[1:]))


class IgnoresResidual(Dense):
    residual = False


class WrongInNf4(Dense):
    """Claims every format and reads nf4 a little off."""

    def tokens(self, store, cache, row, length):
        values = super().tokens(store, cache, row, length)
        return values * 1.01 if store.format == "nf4" else values


class MutatesQueries(Dense):
    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        done = super().decode(q_sem, q_geo, cache, null=null, needs_lse=needs_lse)
        q_sem.mul_(2.0)
        return done


class IsRandom(Dense):
    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        done = super().decode(q_sem, q_geo, cache, null=null, needs_lse=needs_lse)
        return attrs.evolve(done, out=done.out * (1 + 1e-6 * torch.rand(())))


class LseOfBase2(Dense):
    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        done = super().decode(q_sem, q_geo, cache, null=null, needs_lse=needs_lse)
        return attrs.evolve(done, lse=None if done.lse is None else done.lse * 1.4427)


class LosesBatchDtype(Dense):
    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        done = super().decode(q_sem, q_geo, cache, null=null, needs_lse=needs_lse)
        return attrs.evolve(done, out=done.out.float())


class KeepsSinksAndWindow(Dense):
    """Evicts all but the 4 first and the 64 newest tokens."""

    def tokens(self, store, cache, row, length):
        values = super().tokens(store, cache, row, length)
        return values if length <= 68 else torch.cat((values[:, :4], values[:, length - 64 :]), dim=1)


class ReadsWholeBlocks(Dense):
    """Forgets what comes after the last whole block of 64 tokens."""

    def length(self, cache, row):
        return cache.lengths[row] // 64 * 64


class WrongPast1024(Dense):
    """A partial result of the second partition is weighted a little too much."""

    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        done = super().decode(q_sem, q_geo, cache, null=null, needs_lse=needs_lse)
        factor = torch.tensor([1.01 if length > 1024 else 1.0 for length in cache.lengths])
        return attrs.evolve(done, out=(done.out * factor[:, None, None]).to(q_geo.dtype))


class KeepsNewest3000(Dense):
    """Evicts all but the 3,000 newest tokens."""

    def tokens(self, store, cache, row, length):
        return super().tokens(store, cache, row, length)[:, max(0, length - 3000) :]


class IgnoresScaleOfValues(Dense):
    def tokens(self, store, cache, row, length):
        if store is not cache.v or store.scales is None:
            return super().tokens(store, cache, row, length)
        codes = store.codes[row : row + 1, :, :length]
        ones = torch.ones_like(store.scales[row : row + 1, :, :length])
        return store.codec.decode(codes, ones)[0].float()


class MixesUpRows(Dense):
    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        done = super().decode(q_sem, q_geo, cache, null=null, needs_lse=needs_lse)
        return attrs.evolve(done, out=done.out.roll(1, 0))


class ReadsAnotherRow(Dense):
    def tokens(self, store, cache, row, length):
        return super().tokens(store, cache, (row + 1) % cache.batch, length)


class MixesUpQueries(Dense):
    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        return super().decode(q_sem.roll(1, 0), q_geo.roll(1, 0), cache, null=null, needs_lse=needs_lse)


class SwapsHeadsOfAGroup(Dense):
    def decode(self, q_sem, q_geo, cache, *, null=None, needs_lse=False):
        done = super().decode(q_sem, q_geo, cache, null=null, needs_lse=needs_lse)
        groups = torch.unflatten(done.out, 1, (cache.k_geo.n_heads, -1))
        return attrs.evolve(done, out=groups.flip(2).flatten(1, 2))


class DensePlugin:
    """The plugin around one of them."""

    contract = 1
    summary = "dense, for tests"
    options_class = NoOptions

    def __init__(self, backend: type[Dense], *, name: str = "dense") -> None:
        self.backend = backend
        self.name = name

    def supports(self, request, options):
        heads = [t.n_heads for t in (request.k_sem, request.k_geo, request.v)]
        if any(request.shape.n_heads % n for n in heads):
            return Support.no(
                Reason(
                    subject="heads", got=str(heads), supported="divisors of n_heads", action="Choose these."
                )
            )
        return Support.yes()

    def build(self, request, options):
        return self.backend()


class EmptyReason(DensePlugin):
    def supports(self, request, options):
        if request.batch > 16:
            return Support.no(Reason(subject="batch", got="many", supported="16", action=""))
        return super().supports(request, options)


class ClaimsWhatItCannotBuild(DensePlugin):
    def build(self, request, options):
        if request.shape.n_heads != request.shape.n_kv_heads:
            raise NotImplementedError("no grouped heads yet")
        return super().build(request, options)


class RefusesAll(DensePlugin):
    def supports(self, request, options):
        return Support.no(Reason(subject="moon", got="new", supported="full", action="Wait."))


class RaisesToSayNo(DensePlugin):
    def supports(self, request, options):
        if request.has_null:
            raise ValueError("no null token")
        return super().supports(request, options)
