"""The checks that summarizers, gates and null tokens share. `module_checks(SUITE, cases)` adds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import torch
from torch import Tensor, nn

from dba_core.registry.contain import Failure, contain
from dba_core.testing.check import Suite
from dba_core.testing.compare import changed, copies, same_bits
from dba_core.testing.module_case import ModuleCase, modules, trained
from dba_core.testing.report import Violation
from dba_core.testing.subject import Subject

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
