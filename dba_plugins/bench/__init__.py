"""Measurements that anyone can repeat: `dba bench`. Nothing here is imported by the library itself.

    timing, machine, bandwidth, report, charts  what all have in common
    decode, decode_case, baselines              one decoded token, every backend and the alternatives
    decode_gpu, gpu_baselines, gpu_timing       the same on a GPU, beside fp16 attention
    attention                                   prefill into a quantized cache; long training sequences
    train, plain_gpt, recall                    training steps; what the long-sequence path learns
    generate, llama                             whole models beside Hugging Face transformers
    quality                                     held-out loss per KV policy
    plugin_cost                                 summarizers, gates and null tokens
    kernels, sass                               machine code of GPU kernels, without a GPU
    startup                                     imports and compiled kernels, cold and warm

A new measurement is a module that returns a `report.Report`, and one file in `dba_cli/commands/bench/` that
is listed in its group.
"""
