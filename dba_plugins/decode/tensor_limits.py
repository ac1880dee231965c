"""What compiled kernels read of a cached tensor, asked alike of every backend that has some."""

from __future__ import annotations

from collections.abc import Iterator

from dba_core.contracts import CachedTensor, DecodeRequest, Reason

ELSE = "Choose decode_backend=streaming, or auto."


def tensor_reasons(
    request: DecodeRequest, *, formats: tuple[str, ...], most: int, least_geometric: int
) -> Iterator[Reason]:
    """Reasons against widths, formats and heads. formats: that the kernels read. most: of a width;
    least_geometric: of k_geo and v, k_sem may be absent.
    """
    tensors: dict[str, CachedTensor] = {"k_sem": request.k_sem, "k_geo": request.k_geo, "v": request.v}
    for name, tensor in tensors.items():
        least = 0 if name == "k_sem" else least_geometric
        if not least <= tensor.head_dim <= most:
            yield Reason(
                subject=f"width of {name}",
                got=str(tensor.head_dim),
                supported=f"{least} to {most}",
                action=ELSE,
            )
        if tensor.format not in formats:
            yield Reason(
                subject=f"format of {name}",
                got=tensor.format,
                supported=", ".join(formats),
                action="Choose one of these in the KV policy, or decode_backend=streaming.",
            )
        if request.shape.n_heads % tensor.n_heads:
            yield Reason(
                subject=f"heads of {name}",
                got=f"{tensor.n_heads} for {request.shape.n_heads} query heads",
                supported="a divisor of the number of query heads",
                action="Choose n_kv_heads that divides n_heads.",
            )
