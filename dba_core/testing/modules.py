"""Summarizers, gates and null tokens as modules: inputs by name in, outputs by name out, and the checks that
they share. `module_checks(SUITE, cases)` adds those of all three, `alone_checks` those of the two that may
not look at the future.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import Request
from dba_core.registry.contain import Failure, contain
from dba_core.testing.check import CheckFunction, Suite
from dba_core.testing.compare import changed, copies, near, same_bits, well_shaped
from dba_core.testing.subject import BreachError, Subject, Violation, describe, told, torch_dtype

Tensors = Mapping[str, Tensor]
Sizes = Mapping[str, tuple[int, ...]]


@attrs.frozen(kw_only=True)
class ModuleCase:
    """A request, the sizes of inputs and outputs. call: module and inputs by name to outputs by name."""

    request: Request
    inputs: Sizes
    outputs: Sizes
    call: Callable[[nn.Module, Tensors], dict[str, Tensor]]

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {list(size)}" for name, size in self.inputs.items())
        return describe(self.request) + (f", {sizes}" if sizes else "")

    def draw(self, subject: Subject, *, dtype: str = "float64") -> dict[str, Tensor]:
        """Inputs from N(0,1), the same numbers every time."""
        return {
            name: subject.random(*size, seed=11 + number, dtype=dtype)
            for number, (name, size) in enumerate(self.inputs.items())
        }

    def ask(self, module: nn.Module, inputs: Tensors) -> dict[str, Tensor]:
        """Raises BreachError where the module raises, or returns something else than the contract says."""
        done = contain(lambda: self.call(module, inputs))
        if isinstance(done, Failure):
            hint = "Look at sizes 0 and 1, odd widths, and at what the module returns."
            raise BreachError(self, "outputs as the contract of this kind states", told(done), hint)
        return done

    def well_shaped(self, subject: Subject, outputs: Tensors) -> Iterator[Violation]:
        """Violations for outputs that have not the sizes of the case and the dtype of its request."""
        for name, shape in self.outputs.items():
            yield from well_shaped(
                self, outputs[name], shape, dtype=self.request.dtype, device=subject.device, what=name
            )


Cases = Callable[[Subject], Iterator[ModuleCase]]
ModuleCheck = Callable[[Subject, ModuleCase, nn.Module], Iterator[Violation]]


def modules(subject: Subject, case: ModuleCase, *, dtype: str = "float64") -> Iterator[nn.Module]:
    """The module of this case in `dtype`, on the device; nothing where the plugin declines or builds None.

    Raises BreachError for something that is no nn.Module: it could not be saved or moved.
    """
    for built in subject.built(case.request):
        if not isinstance(built, nn.Module):
            hint = "Subclass torch.nn.Module, so that the model can move, save and train it."
            raise BreachError(case, "an nn.Module", type(built).__name__, hint)
        yield built.to(device=subject.device, dtype=torch_dtype(dtype))


def over(cases: Cases) -> Callable[[ModuleCheck], CheckFunction]:
    """Turns a check of one module in float64 into one over all cases, keeping its name."""

    def wrap(check: ModuleCheck) -> CheckFunction:
        @functools.wraps(check)
        def run(subject: Subject) -> Iterator[Violation]:
            for case in cases(subject):
                for module in modules(subject, case):
                    yield from check(subject, case, module)

        return run

    return wrap


def odd_requests(base: Request) -> Iterator[Request]:
    """`base` for every dtype and device that there is, and for one that is no dtype of a model."""
    for dtype in ("float64", "float16", "bfloat16", "int8"):
        yield attrs.evolve(base, dtype=dtype)
    for device in ("cpu", "cuda", "mps", "meta"):
        yield attrs.evolve(base, device=device)


@torch.no_grad()
def trained(module: nn.Module, subject: Subject) -> nn.Module:
    """The module with every parameter away from its start, which may hide what the parameter does."""
    for number, parameter in enumerate(module.parameters()):
        parameter.copy_(0.5 * subject.random(*parameter.shape, seed=101 + number))
    return module


def module_checks(suite: Suite, cases: Cases) -> None:
    """Determinism, inputs left alone, gradients, gradcheck, state_dict."""
    each = over(cases)
    suite.check(
        "the same input gives the same bits, in training mode too",
        hint="No random numbers, no state between calls; training mode changes nothing.",
    )(each(deterministic))
    suite.check("inputs are as before")(each(changes_no_input))

    @suite.check(
        "every parameter can be trained: it has a gradient away from its start",
        hint="Look for detach(), no_grad() and parameters that the forward pass does not use.",
    )
    def parameters_have_gradients(subject: Subject) -> Iterator[Violation]:
        reached: dict[str, bool] = {}  # a block of one token, say, may leave a parameter without influence
        for case in cases(subject):
            for module in modules(subject, case):
                for name, found in _has_gradient(subject, case, module).items():
                    reached[name] = reached.get(name, False) or found
        missing = [name for name, found in reached.items() if not found]
        if missing:
            yield Violation("all sizes", "a gradient for every parameter", f"none for {', '.join(missing)}")

    suite.check(
        "analytic gradients equal numeric ones in float64",
        hint="Look at a custom backward, at detach(), and at casts to a narrower dtype.",
    )(each(gradcheck))
    suite.check(
        "state_dict into a new module gives the same numbers",
        hint="Keep everything that was learned in parameters or persistent buffers.",
    )(each(state_dict_round_trip))


def deterministic(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
    """Several calls of one module, in both modes."""
    inputs = case.draw(subject)
    trained(module, subject)
    first = case.ask(module.train(), inputs)
    for again in (module, module, module.eval()):
        for name, out in case.ask(again, inputs).items():
            if not same_bits(first[name].detach(), out.detach()):
                yield Violation(f"{case}, {name}", "the same bits every time", "outputs that differ")


def changes_no_input(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
    """Inputs, parameters and buffers hold the same bits after a call."""
    inputs = case.draw(subject)
    given = {**inputs, **{f"state {name}": tensor for name, tensor in module.state_dict().items()}}
    before = copies(given)
    with torch.no_grad():
        case.ask(module, inputs)
    yield from changed(case, before, given)


def _has_gradient(subject: Subject, case: ModuleCase, module: nn.Module) -> dict[str, bool]:
    """For each parameter: whether a sum of squares of all outputs depends on it."""
    trained(module, subject)
    outputs = case.ask(module, case.draw(subject)).values()
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
    named = {name: x.requires_grad_(True) for name, x in case.draw(subject).items()}
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not named and not parameters:
        return

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        outputs = case.ask(module, named).values()
        return tuple(out for out in outputs if out.requires_grad and out.numel())

    done = contain(lambda: torch.autograd.gradcheck(run, (*named.values(), *parameters), fast_mode=True))
    if isinstance(done, Failure):
        yield Violation(case, "gradcheck passes", str(done))


def state_dict_round_trip(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
    """A trained module's state, loaded strictly into a new one."""
    inputs = case.draw(subject)
    trained(module, subject)
    wanted = case.ask(module, inputs)
    for other in modules(subject, case):
        loaded = contain(lambda new=other: new.load_state_dict(module.state_dict()))  # type: ignore[misc]
        if isinstance(loaded, Failure):
            yield Violation(case, "a state that can be loaded", str(loaded))
            continue
        outputs = case.ask(other, inputs)
        wrong = [name for name in wanted if not same_bits(wanted[name].detach(), outputs[name].detach())]
        if wrong:
            yield Violation(case, "the outputs of the saved module", f"another {' and '.join(wrong)}")


def alone_checks(suite: Suite, cases: Cases, *, unit: str, axis: int, together: str, hint: str) -> None:
    """Every `unit` (token, block) of a row has an output of its own, which depends on that unit alone. axis:
    of the units in the inputs; in outputs [B,G,N,...] it is 2. together: the name of the check that all
    units at once give what they give one by one.
    """

    def perturbed(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
        trained(module, subject)
        first = case.ask(module, case.draw(subject))
        for row, n in ((0, 0), (0, 1), (0, 2), (1, 1)):
            inputs = case.draw(subject)
            for x in inputs.values():
                x.movedim(axis, 1)[row, n] += 1.0
            for name, out in case.ask(module, inputs).items():
                same = (out == first[name]).all(dim=-1).all(dim=1)  # [B, N]
                same[row, n] = True
                if not same.all():
                    where = [list(map(int, each)) for each in (~same).nonzero()]
                    yield Violation(
                        f"{case}, {unit} {n} of row {row} changed",
                        f"{name} of every other {unit} as before",
                        f"other values at (row, {unit}) {where[:8]}",
                    )

    def gradients(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
        trained(module, subject)
        inputs = {name: x.requires_grad_(True) for name, x in case.draw(subject).items()}
        outputs = case.ask(module, inputs)
        total = torch.stack([out[:, :, 1].sum() for out in outputs.values()]).sum()
        if not total.requires_grad:
            return
        found = torch.autograd.grad(total, list(inputs.values()), materialize_grads=True)
        for name, gradient in zip(inputs, found, strict=True):
            others = gradient.movedim(axis, 0).flatten(1).abs().sum(dim=1)  # [N]
            others[1] = 0.0
            if others.any():
                expected = f"no gradient to {name} of another {unit}"
                got = f"some to {unit}s {others.nonzero().flatten().tolist()[:8]}"
                yield Violation(f"{case}, output of {unit} 1", expected, got)

    def one_by_one(subject: Subject, case: ModuleCase, module: nn.Module) -> Iterator[Violation]:
        trained(module, subject)
        inputs = case.draw(subject)
        n_units = next(iter(inputs.values())).shape[axis]
        parts = [
            case.ask(module, {name: x.narrow(axis, n, 1) for name, x in inputs.items()})
            for n in range(n_units)
        ]
        for name, wanted in case.ask(module, inputs).items():
            got = torch.cat([part[name] for part in parts], dim=2)
            yield from near(case, got, wanted, dtype="float64", what=f"{name} {unit} by {unit}")

    for check, name, proves in (
        (perturbed, f"each_{unit}_alone", f"another {unit}, later or earlier, changes no bit"),
        (gradients, f"gradient_stays_in_{unit}", f"the gradient is zero at every other {unit}"),
        (one_by_one, together, f"{unit}s one by one give what all give together"),
    ):
        suite.check(f"the output of a {unit} depends on it alone: {proves}", name=name, hint=hint)(
            over(cases)(check)
        )
