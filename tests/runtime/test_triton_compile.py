"""Every kernel compiles for Hopper, which takes no device: in a process of its own, where nothing is interpreted."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dedicate_runtime.worker.cuda import fused_kernels, kernels

HEADS = {"NUM_HEADS": 12, "NUM_KV_HEADS": 2}
DIMS = {"KEY_DIM": 80, "VALUE_DIM": 80, "BLOCK_KEY_DIM": 128, "BLOCK_VALUE_DIM": 128}
PLAIN = {"WINDOW": 0, "SOFTCAP": 0.0, "HAS_SINKS": False}
RICH = {"WINDOW": 512, "SOFTCAP": 30.0, "HAS_SINKS": True}
COMMON = {**HEADS, **DIMS, "BLOCK_SIZE": 16, "PRECISION": "tf32"}
INTEGERS = dict.fromkeys(("block_tables", "tiles", "row_spans"), "*i32")
INTEGERS |= dict.fromkeys(("context_lens", "slot_mapping"), "*i64")
PARTS = {"partial_lse": "*fp32", "partial_output": "*fp32", "scale": "fp32", "eps": "fp32", "num_splits": "i32"}


def compile_kernel(kernel, constants, **options):
    signature = {}
    for name in kernel.arg_names:
        kind = "i32" if name.endswith("_stride") else "*bf16"
        signature[name] = "constexpr" if name in constants else {**INTEGERS, **PARTS}.get(name, kind)
    indexed = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(
        ASTSource(kernel, signature, indexed), target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, **options}
    )
    assert compiled.metadata.shared <= 227 * 1024, (kernel.__name__, compiled.metadata.shared)
    print(kernel.__name__)


for variant in (PLAIN, RICH):
    prefill = {**COMMON, **variant, "BLOCK_M": 128, "BLOCK_N": 64}
    compile_kernel(kernels.prefill_kernel, prefill, num_warps=8, num_stages=3)
    decode = {**COMMON, **variant, "BLOCK_G": 16, "BLOCK_N": 64}
    compile_kernel(kernels.decode_kernel, {**decode, "IS_SPLIT": False}, num_stages=2)
PARTS["output"] = "*fp32"
compile_kernel(kernels.decode_kernel, {**decode, "IS_SPLIT": True}, num_stages=2)
compile_kernel(kernels.merge_kernel, {"VALUE_DIM": 80, "BLOCK_VALUE_DIM": 128, "BLOCK_SPLITS": 64})
compile_kernel(kernels.write_kernel, {"NUM_KV_HEADS": 2, **DIMS}, num_warps=1)
compile_kernel(fused_kernels.rms_norm_kernel, {"SIZE": 1536, "BLOCK": 2048, "HAS_ADDED": True})
compile_kernel(fused_kernels.silu_mul_kernel, {"SIZE": 8960, "BLOCK": 1024})
rope = {**HEADS, "DIM": 128, "BLOCK_HALF": 64}
for has_norm in (False, True):
    compile_kernel(fused_kernels.rope_write_kernel, {**rope, "HAS_NORM": has_norm}, num_warps=1)
"""


def test_kernels_compile_for_hopper(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    compiled = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    assert len(compiled.stdout.splitlines()) == 11
