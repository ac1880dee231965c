"""Summarizers, gates and null tokens as modules: inputs by name in, outputs by name out.

Called by the suites of these kinds and by the checks that they share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import GateRequest, NullTokenRequest, SummarizerRequest
from dba_core.registry.contain import Failure, contain
from dba_core.testing.report import Violation
from dba_core.testing.subject import BreachError, Subject, describe, torch_dtype

ModuleRequest = SummarizerRequest | GateRequest | NullTokenRequest
Tensors = Mapping[str, Tensor]


@attrs.frozen(kw_only=True)
class ModuleCase:
    """A request with the sizes of its inputs. call: module and inputs to outputs by name."""

    request: ModuleRequest
    sizes: Mapping[str, tuple[int, ...]]
    call: Callable[[nn.Module, Tensors], dict[str, Tensor]]

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {list(size)}" for name, size in self.sizes.items())
        return describe(self.request) + (f", {sizes}" if sizes else "")

    def inputs(self, subject: Subject, *, dtype: str = "float64", seed: int = 11) -> dict[str, Tensor]:
        """N(0,1), the same numbers every time."""
        return {
            name: subject.random(*size, seed=seed + number, dtype=dtype)
            for number, (name, size) in enumerate(self.sizes.items())
        }

    def outputs(self, module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
        """Raises BreachError where the module raises, or returns something else than the contract says."""
        done = contain(lambda: self.call(module, inputs))
        if isinstance(done, Failure):
            raise BreachError(
                Violation(
                    case=str(self),
                    expected="outputs as the contract of this kind states",
                    got=f"it raised {done}",
                    hint="Look at sizes 0 and 1, odd widths, and at what the module returns.",
                )
            )
        return done


def modules(subject: Subject, case: ModuleCase, *, dtype: str = "float64") -> Iterator[nn.Module]:
    """The module of this case in `dtype`, on the device; nothing where the plugin declines or builds None.

    Raises BreachError for something that is no nn.Module: it could not be saved or moved.
    """
    for built in subject.built(case.request):
        if not isinstance(built, nn.Module):
            raise BreachError(
                Violation(
                    case=str(case),
                    expected="an nn.Module",
                    got=type(built).__name__,
                    hint="Subclass torch.nn.Module, so that the model can move, save and train it.",
                )
            )
        yield built.to(device=subject.device, dtype=torch_dtype(dtype))


@torch.no_grad()
def trained(module: nn.Module, subject: Subject) -> nn.Module:
    """The module with every parameter away from its start, which may hide what the parameter does."""
    for number, parameter in enumerate(module.parameters()):
        parameter.copy_(0.5 * subject.random(*parameter.shape, seed=101 + number))
    return module
