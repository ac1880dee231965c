"""Decouple a pretrained Llama-family model without training.

dba convert MODEL --out DIR
run(ConvertRequest(model=Path("m"), out=Path("runs/m")), SilentReporter())
"""

from __future__ import annotations

from dba_core.command import Command, summary_of
from dba_core.hookspecs import hookimpl
from dba_core.report import Report, Reporter
from dba_plugins.convert.request import ConvertRequest


def run(request: ConvertRequest, reporter: Reporter) -> Report:
    """Make a decoupled model of MODEL without training, and report what that costs.

    MODEL is the folder of a Hugging Face Llama-family model, a .gguf file, a checkpoint of the origin system
    (.pt; one that is decoupled already needs --keep), or what another installed checkpoint source reads.

    \b
    Examples:
      dba convert ./SmolLM2-135M --out runs/smol
      dba convert ./SmolLM2-135M --out runs/small --budget-bytes 7500
      dba convert ./SmolLM2-135M --out runs/good --max-delta-nll 0.02
      dba convert model.gguf --out runs/mine --pairs 12 --calibrate book.txt --eval other.txt
      dba convert ./Llama-3.2-1B --out runs/llama --latent 128 --heal-steps 50
      dba convert origin.pt --out runs/origin --keep --tokenizer tiktoken:gpt2
    """
    from dba_plugins.convert.conversion import convert

    return convert(request, reporter)


@hookimpl
def dba_command() -> Command[ConvertRequest]:
    return Command(
        name="convert",
        contract=1,
        summary=summary_of(__doc__),
        request_class=ConvertRequest,
        run=run,
    )
