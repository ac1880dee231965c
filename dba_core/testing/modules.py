"""Summarizers, gates and null tokens as modules: inputs by name in, outputs by name out, and the checks that
they share. `module_checks(SUITE, cases)` adds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import Request
from dba_core.registry.contain import Failure, contain
from dba_core.testing.check import Suite
from dba_core.testing.compare import changed, copies, same_bits
from dba_core.testing.subject import BreachError, Subject, Violation, describe, torch_dtype

Tensors = Mapping[str, Tensor]


@attrs.frozen(kw_only=True)
class ModuleCase:
    """A request with the sizes of its inputs. call: module and inputs to outputs by name."""

    request: Request
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


Cases = Callable[[Subject], Iterator[ModuleCase]]


def module_checks(suite: Suite, cases: Cases) -> None:
    """Determinism, inputs left alone, gradients, gradcheck, state_dict."""
    each = _over(cases)
    suite.check("the same input gives the same bits, in training mode too")(each(deterministic))
    suite.check("inputs are as before")(each(changes_no_input))

    def parameters_have_gradients(subject: Subject) -> Iterator[Violation]:
        reached: dict[str, bool] = {}  # a block of one token, say, may leave a parameter without influence
        for case in cases(subject):
            for module in modules(subject, case):
                for name, found in _has_gradient(subject, case, module).items():
                    reached[name] = reached.get(name, False) or found
        missing = [name for name, found in reached.items() if not found]
        if missing:
            yield Violation(
                case="all sizes",
                expected="a gradient for every parameter",
                got=f"none for {', '.join(missing)}",
                hint="Look for detach(), no_grad() and parameters that the forward pass does not use.",
            )

    suite.check("every parameter can be trained: it has a gradient away from its start")(
        parameters_have_gradients
    )
    suite.check("analytic gradients equal numeric ones in float64")(each(gradcheck))
    suite.check("state_dict into a new module gives the same numbers")(each(state_dict_round_trip))


ModuleCheck = Callable[[Subject, ModuleCase, nn.Module], Iterator[Violation]]


def _over(cases: Cases) -> Callable[[ModuleCheck], Callable[[Subject], Iterator[Violation]]]:
    """Turns a check of one module into one over all cases, keeping its name."""

    def wrap(check: ModuleCheck) -> Callable[[Subject], Iterator[Violation]]:
        def run(subject: Subject) -> Iterator[Violation]:
            for case in cases(subject):
                for module in modules(subject, case):
                    yield from check(subject, case, module)

        run.__name__ = check.__name__
        return run

    return wrap


def deterministic(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
    """Several calls of one module, in both modes."""
    inputs = case.inputs(subject)
    trained(module, subject)
    first = case.outputs(module.train(), inputs)
    for again in (module, module, module.eval()):
        for name, out in case.outputs(again, inputs).items():
            if not same_bits(first[name].detach(), out.detach()):
                yield Violation(
                    case=f"{case}, {name}",
                    expected="the same bits every time",
                    got="outputs that differ",
                    hint="No random numbers, no state between calls; training mode changes nothing.",
                )


def changes_no_input(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
    """Inputs, parameters and buffers hold the same bits after a call."""
    inputs = case.inputs(subject)
    state = {f"state {name}": tensor for name, tensor in module.state_dict().items()}
    given = {**inputs, **state}
    before = copies(given)
    with torch.no_grad():
        case.outputs(module, inputs)
    yield from changed(before, given, case=str(case))


def _has_gradient(subject: Subject, case: ModuleCase, module: nn.Module) -> dict[str, bool]:
    """For each parameter: whether a sum of squares of all outputs depends on it."""
    trained(module, subject)
    outputs = case.outputs(module, case.inputs(subject)).values()
    total = torch.stack([out.square().sum() for out in outputs]).sum()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad is not None and bool(parameter.grad.any())
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.numel()
    }


def gradcheck(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
    """torch.autograd.gradcheck over inputs and parameters."""
    trained(module, subject)
    named = {name: x.requires_grad_(True) for name, x in case.inputs(subject).items()}
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not named and not parameters:
        return

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        outputs = case.outputs(module, named).values()
        return tuple(out for out in outputs if out.requires_grad and out.numel())

    done = contain(lambda: torch.autograd.gradcheck(run, (*named.values(), *parameters), fast_mode=True))
    if isinstance(done, Failure):
        yield Violation(
            case=str(case),
            expected="gradcheck passes",
            got=str(done),
            hint="Look at a custom backward, at detach(), and at casts to a narrower dtype.",
        )


def state_dict_round_trip(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
    """A trained module's state, loaded strictly into a new one."""
    inputs = case.inputs(subject)
    trained(module, subject)
    wanted = case.outputs(module, inputs)
    for other in modules(attrs.evolve(subject), case):
        loaded = contain(lambda new=other: new.load_state_dict(module.state_dict()))  # type: ignore[misc]
        got = str(loaded) if isinstance(loaded, Failure) else ""
        if not got:
            outputs = case.outputs(other, inputs)
            wrong = [name for name in wanted if not same_bits(wanted[name].detach(), outputs[name].detach())]
            got = f"another {' and '.join(wrong)}" if wrong else ""
        if got:
            yield Violation(
                case=str(case),
                expected="the outputs of the saved module",
                got=got,
                hint="Keep everything that was learned in parameters or persistent buffers.",
            )
