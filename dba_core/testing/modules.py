"""Summarizers, gates and null tokens as modules: inputs by name in, outputs by name out, and the checks that
they share. `module_checks(SUITE, cases)` adds those of all three, `alone_checks` those of the two that may
not look at the future.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn

from dba_core.contracts import Request
from dba_core.registry.contain import Failure, contain
from dba_core.testing.check import Suite
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


@attrs.frozen(kw_only=True, eq=False)
class Built:
    """The module of one case, in `dtype`, on the subject's device."""

    subject: Subject
    case: ModuleCase
    module: nn.Module
    dtype: str

    def __str__(self) -> str:
        return str(self.case)

    def draw(self, *, dtype: str = "") -> dict[str, Tensor]:
        """Inputs from N(0,1) in the module's dtype, or another, the same numbers every time."""
        return {
            name: self.subject.random(*size, seed=11 + number, dtype=dtype or self.dtype)
            for number, (name, size) in enumerate(self.case.inputs.items())
        }

    def ask(self, inputs: Tensors) -> dict[str, Tensor]:
        """Raises BreachError where the module raises, or returns something else than the contract says."""
        done = contain(lambda: self.case.call(self.module, inputs))
        if isinstance(done, Failure):
            hint = "Look at sizes 0 and 1, odd widths, and at what the module returns."
            raise BreachError(self, "outputs as the contract of this kind states", told(done), hint)
        return done

    @torch.no_grad()
    def move_parameters(self) -> None:
        """Every parameter goes away from its start, which may hide what the parameter does."""
        for number, parameter in enumerate(self.module.parameters()):
            parameter.copy_(0.5 * self.subject.random(*parameter.shape, seed=101 + number))

    def well_shaped(self, outputs: Tensors) -> Iterator[Violation]:
        """Violations for outputs that have not the sizes of the case and the dtype of the module."""
        for name, shape in self.case.outputs.items():
            yield from well_shaped(
                self, outputs[name], shape, dtype=self.dtype, device=self.subject.device, what=name
            )


Cases = Callable[[Subject], Iterator[ModuleCase]]


def built(subject: Subject, case: ModuleCase, *, dtype: str = "float64") -> Iterator[Built]:
    """The module of this case; nothing where the plugin declines or builds None.

    Raises BreachError for something that is no nn.Module: it could not be saved or moved.
    """
    for module in subject.built(case.request):
        if not isinstance(module, nn.Module):
            hint = "Subclass torch.nn.Module, so that the model can move, save and train it."
            raise BreachError(case, "an nn.Module", type(module).__name__, hint)
        module.to(device=subject.device, dtype=torch_dtype(dtype))
        yield Built(subject=subject, case=case, module=module, dtype=dtype)


def modules_of(cases: Cases) -> Callable[[Subject], Iterator[Built]]:
    """The modules of all cases, in float64."""

    def modules(subject: Subject) -> Iterator[Built]:
        for case in cases(subject):
            yield from built(subject, case)

    return modules


def odd_requests(base: Request) -> Iterator[Request]:
    """`base` for every dtype and device that there is, and for one that is no dtype of a model."""
    for dtype in ("float64", "float16", "bfloat16", "int8"):
        yield attrs.evolve(base, dtype=dtype)
    for device in ("cpu", "cuda", "mps", "meta"):
        yield attrs.evolve(base, device=device)


def module_checks(suite: Suite, cases: Cases) -> None:
    """Determinism, inputs left alone, gradients, gradcheck, state_dict."""
    modules = modules_of(cases)
    for check, proves, hint in (
        (
            deterministic,
            "the same input gives the same bits, in training mode too",
            "No random numbers, no state between calls; training mode changes nothing.",
        ),
        (changes_no_input, "inputs are as before", ""),
        (
            gradcheck,
            "analytic gradients equal numeric ones in float64",
            "Look at a custom backward, at detach(), and at casts to a narrower dtype.",
        ),
        (
            state_dict_round_trip,
            "state_dict into a new module gives the same numbers",
            "Keep everything that was learned in parameters or persistent buffers.",
        ),
    ):
        suite.check(proves, hint=hint, over=modules)(check)

    @suite.check(
        "every parameter can be trained: it has a gradient away from its start",
        hint="Look for detach(), no_grad() and parameters that the forward pass does not use.",
    )
    def parameters_have_gradients(subject: Subject) -> Iterator[Violation]:
        reached: dict[str, bool] = {}  # a block of one token, say, may leave a parameter without influence
        for each in modules(subject):
            for name, found in _has_gradient(each).items():
                reached[name] = reached.get(name, False) or found
        missing = [name for name, found in reached.items() if not found]
        if missing:
            yield Violation("all sizes", "a gradient for every parameter", f"none for {', '.join(missing)}")


def deterministic(subject: Subject, each: Built) -> Iterator[Violation]:
    """Several calls of one module, in both modes."""
    inputs = each.draw()
    each.move_parameters()
    each.module.train()
    first = each.ask(inputs)
    for training in (True, True, False):
        each.module.train(training)
        for name, out in each.ask(inputs).items():
            if not same_bits(first[name].detach(), out.detach()):
                yield Violation(f"{each}, {name}", "the same bits every time", "outputs that differ")


def changes_no_input(subject: Subject, each: Built) -> Iterator[Violation]:
    """Inputs, parameters and buffers hold the same bits after a call."""
    inputs = each.draw()
    given = {**inputs, **{f"state {name}": tensor for name, tensor in each.module.state_dict().items()}}
    before = copies(given)
    with torch.no_grad():
        each.ask(inputs)
    yield from changed(each, before, given)


def _has_gradient(each: Built) -> dict[str, bool]:
    """For each parameter: whether a sum of squares of all outputs depends on it."""
    each.move_parameters()
    total = torch.stack([out.square().sum() for out in each.ask(each.draw()).values()]).sum()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad is not None and bool(parameter.grad.any())
        for name, parameter in each.module.named_parameters()
        if parameter.requires_grad and parameter.numel()
    }


def gradcheck(subject: Subject, each: Built) -> Iterator[Violation]:
    """torch.autograd.gradcheck over inputs and parameters."""
    each.move_parameters()
    named = {name: x.requires_grad_(True) for name, x in each.draw().items()}
    parameters = [p for p in each.module.parameters() if p.requires_grad]
    if not named and not parameters:
        return

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for out in each.ask(named).values() if out.requires_grad and out.numel())

    done = contain(lambda: torch.autograd.gradcheck(run, (*named.values(), *parameters), fast_mode=True))
    if isinstance(done, Failure):
        yield Violation(each, "gradcheck passes", str(done))


def state_dict_round_trip(subject: Subject, each: Built) -> Iterator[Violation]:
    """A trained module's state, loaded strictly into a new one."""
    inputs = each.draw()
    each.move_parameters()
    wanted = each.ask(inputs)
    for other in built(subject, each.case):
        loaded = contain(lambda new=other.module: new.load_state_dict(each.module.state_dict()))  # type: ignore[misc]
        if isinstance(loaded, Failure):
            yield Violation(each, "a state that can be loaded", str(loaded))
            continue
        outputs = other.ask(inputs)
        wrong = [name for name in wanted if not same_bits(wanted[name].detach(), outputs[name].detach())]
        if wrong:
            yield Violation(each, "the outputs of the saved module", f"another {' and '.join(wrong)}")


def alone_checks(suite: Suite, cases: Cases, *, unit: str, axis: int, together: str, hint: str) -> None:
    """Every `unit` (token, block) of a row has an output of its own, which depends on that unit alone. axis:
    of the units in the inputs; in outputs [B,G,N,...] it is 2. together: the name of the check that all
    units at once give what they give one by one.
    """

    def perturbed(subject: Subject, each: Built) -> Iterator[Violation]:
        each.move_parameters()
        first = each.ask(each.draw())
        for row, n in ((0, 0), (0, 1), (0, 2), (1, 1)):
            inputs = each.draw()
            for x in inputs.values():
                x.movedim(axis, 1)[row, n] += 1.0
            for name, out in each.ask(inputs).items():
                same = (out == first[name]).all(dim=-1).all(dim=1)  # [B, N]
                same[row, n] = True
                if not same.all():
                    where = (~same).nonzero().tolist()
                    yield Violation(
                        f"{each}, {unit} {n} of row {row} changed",
                        f"{name} of every other {unit} as before",
                        f"other values at (row, {unit}) {where[:8]}",
                    )

    def gradients(subject: Subject, each: Built) -> Iterator[Violation]:
        each.move_parameters()
        inputs = {name: x.requires_grad_(True) for name, x in each.draw().items()}
        outputs = each.ask(inputs)
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
                yield Violation(f"{each}, output of {unit} 1", expected, got)

    def one_by_one(subject: Subject, each: Built) -> Iterator[Violation]:
        each.move_parameters()
        inputs = each.draw()
        n_units = next(iter(inputs.values())).shape[axis]
        parts = [each.ask({name: x.narrow(axis, n, 1) for name, x in inputs.items()}) for n in range(n_units)]
        for name, wanted in each.ask(inputs).items():
            got = torch.cat([part[name] for part in parts], dim=2)
            yield from near(each, got, wanted, dtype="float64", what=f"{name} {unit} by {unit}")

    for check, name, proves in (
        (perturbed, f"each_{unit}_alone", f"another {unit}, later or earlier, changes no bit"),
        (gradients, f"gradient_stays_in_{unit}", f"the gradient is zero at every other {unit}"),
        (one_by_one, together, f"{unit}s one by one give what all give together"),
    ):
        proves = f"the output of a {unit} depends on it alone: {proves}"
        suite.check(proves, name=name, hint=hint, over=modules_of(cases))(check)
