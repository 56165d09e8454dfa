"""Compile every Triton kernel for an H100, which needs no GPU, and print what each takes; `test_kernels` reads it."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from earlybert.train.cuda import coefficients, embed, fused, fused_adamw, fused_lamb, kernels, linears, sums

TARGET = GPUTarget("cuda", 90, 32)
HALF = {
    "grad",
    "y",
    "bias",
    "residual",
    "weight",
    "shift",
    "out",
    "total",
    "dy",
    "dresidual",
    "first",
    "second",
    "third",
}
WHOLE = {"width", "rows", "each", "size", "which", "threshold", "head_size", "head_count"}
REAL = {"scale", "eps", "beta1", "beta2", "rest1", "rest2", "log1", "log2", "limit"}
LONG = {"table", "grads", "seeds", "ids", "kinds", "places", "starts"}
SHORT = {"order", "counts"}
SIXTEEN = {"width", "size", "head_size"}
"""Multiples of 16, as widths of models are: Triton knows that of an argument and loads 16 bytes at a time."""


def compiled(kernel: Any, warps: int, pointers: dict[str, str] | None = None, **constants: Any) -> dict[str, int]:
    """Registers, bytes of local memory (spilled registers), shared memory and the widest access of one kernel."""
    function = getattr(kernel, "fn", kernel) if type(kernel).__name__ == "Autotuner" else kernel
    signature, attributes = {}, {}
    for place, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in WHOLE:
            signature[name] = "i32"
        elif name in REAL:
            signature[name] = "fp32"
        else:
            known = "*i64" if name in LONG else "*i32" if name in SHORT else "*bf16" if name in HALF else "*fp32"
            signature[name] = (pointers or {}).get(name, known)
        if signature[name][0] == "*" or name in SIXTEEN:
            attributes[(place,)] = [["tt.divisibility", 16]]
    done: Any = triton.compile(
        ASTSource(function, signature, constants, attributes), target=TARGET, options={"num_warps": warps}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(done.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    registers, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "LOCAL"))  # type: ignore[index]
    loads = re.findall(r"ld\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", done.asm["ptx"])
    widest = max(int(vector or 1) * int(bits) for vector, bits in loads)
    return {"registers": registers, "local": local, "shared": done.metadata.shared, "widest_load_bits": widest}


def main() -> None:
    """One line of JSON."""
    found = {}
    for drop in (True, False):
        found[f"_add_norm {drop}"] = compiled(kernels._add_norm, 4, BLOCK=1024, BIAS=True, DROP=drop)
        found[f"_add_norm_backward {drop}"] = compiled(kernels._add_norm_backward, 4, BLOCK=1024, DROP=drop)
    for scale in (True, False):
        found[f"_bias_gelu {scale}"] = compiled(kernels._bias_gelu, 4, BLOCK=1024, SCALE=scale)
        for tiling in kernels.TILINGS if scale else kernels.TILINGS[:1]:
            found[f"_bias_gelu_backward {scale} {tiling}"] = compiled(
                kernels._bias_gelu_backward, tiling.num_warps, SCALE=scale, **tiling.kwargs
            )
    found["_join"] = compiled(linears._join, 4, ROWS=kernels.TILE, COLUMNS=linears.COLUMNS)
    for half in (True, False):
        found[f"_finish {half}"] = compiled(sums._finish, 4, ROWS=32, COLUMNS=64, BF16=half, ADD=half)
        for full in (True, False):
            reading = {"BLOCK": fused.BLOCK, "HALF": half, "FULL": full}
            writing = {"COPY": half, "HALF_COPY": half}
            name = f"HALF={half} FULL={full}"
            found[f"_squares {name}"] = compiled(fused._squares, 8, **reading)
            found[f"_accumulate {name}"] = compiled(fused._accumulate, 8, **reading)
            found[f"_adamw {name}"] = compiled(fused_adamw._adamw, 8, **reading, **writing)
            found[f"_moments {name}"] = compiled(fused_lamb._moments, 8, **reading)
            found[f"_apply {name}"] = compiled(fused_lamb._apply, 8, BLOCK=fused.BLOCK, FULL=full, **writing)
    found["_trust"] = compiled(fused_lamb._trust, 4, SUMS=fused_lamb.SUMS)
    found["_scale"] = compiled(coefficients._scale, 8, BLOCK=coefficients.BLOCK, BF16=True)
    found["_unscale"] = compiled(coefficients._unscale, 4, ROWS=32, COLUMNS=64, BF16=True)
    whole = {"weight": "*fp32", "shift": "*fp32"}
    found["_embed"] = compiled(embed._embed, 4, whole, BLOCK=1024, DROP=True)
    found["_embed_backward"] = compiled(embed._embed_backward, 4, whole, BLOCK=1024, DROP=True, KINDS=2)
    for clear in (True, False):
        found[f"_add_rows CLEAR={clear}"] = compiled(
            embed._add_rows, 4, {"table": "*fp32"}, ROWS=16, COLUMNS=embed.COLUMNS, CLEAR=clear
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
