"""The running softmax over a tile: scores become probabilities, scaled for the values that they weigh.

m' = max(m, max_t s_t),  p_t = e^(s_t - m'),  l' = l e^(m - m') + sum_t p_t,  w[block,t] = p_t scale[block,t]
"""

from __future__ import annotations

from dba_plugins.decode.cpu.emit import LOWEST
from dba_plugins.decode.cpu.layout import LANES
from dba_plugins.decode.cpu.tile import TILE, Tile


def emit_softmax(tile: Tile, heads: range) -> None:
    """Turn tile.scores into tile.weights; m and l of the state are those after it, `keep` is what acc is yet
    to be multiplied by.
    """
    e, b = tile.e, tile.e.b
    for h, head in enumerate(heads):
        scores = e.at(tile.scores, h * TILE)
        state = e.at(tile.state, head * tile.state_width)
        best = e.local(e.vf(LOWEST))
        with e.loop(e.i64(0), tile.count, LANES) as token:
            b.store(e.maximum(b.load(best), e.load_vector(e.at(scores, token))), best)
        before = b.load(state)
        m = e.maximum(before, e.lanes_max(b.load(best)))
        keep = e.exp_scalar(b.fsub(before, m))
        spread = e.splat(m)
        total = e.local(e.vf(0.0))
        n_segments = max(1, len(tile.v.layout.segments) if tile.v.layout.scaled else 1)
        weights = e.at(tile.weights, h * n_segments * TILE)
        with e.loop(e.i64(0), tile.count, LANES) as token:
            p = e.exp(b.fsub(e.load_vector(e.at(scores, token)), spread))
            b.store(b.fadd(b.load(total), p), total)
            for number in range(n_segments):
                weight = p
                if tile.v.layout.scaled:
                    weight = b.fmul(p, e.load_vector(e.at(tile.v_scales, token, number * TILE)))
                e.store_vector(weight, e.at(weights, token, number * TILE))
        mass = e.at(state, 1)
        b.store(m, state)
        b.store(b.fadd(b.fmul(b.load(mass), keep), e.lanes_sum(b.load(total))), mass)
        b.store(keep, e.at(tile.keep, h))
