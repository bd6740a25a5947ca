"""What each stage of the compiler does; ``ferrum explain STAGE`` prints it. The names are those of --stop-after."""

from __future__ import annotations

STAGES: dict[str, str] = {
    "import": (
        "The model's torch module is traced by torch.export on the meta device (no weights are loaded) and each ATen "
        "operation becomes one of ours through one literal table (graphs/frontend). Everything unsupported is listed at once."
    ),
    "canonicalize": (
        "One spelling for each idea: casts that change nothing, views of views and constants that can be folded are removed, "
        "so that later patterns have one form to match (graphs/passes/canonicalize.py)."
    ),
    "fuse_norm": (
        "x * rsqrt(mean(x^2) + eps) * weight becomes one rms_norm node, or one layer_norm where the mean was taken off before "
        "(graphs/passes/fuse_norm.py)."
    ),
    "fuse_rope": (
        "Slices, negation, concatenation and cos/sin products become one rope node by positions that are a value "
        "(graphs/passes/fuse_rope.py)."
    ),
    "fuse_attention": (
        "Scaled dot-product attention with its mask and its copies of kv heads becomes one attend node with its window and "
        "scale as attributes (graphs/passes/fuse_attention.py)."
    ),
    "fuse_mlp": "silu(gate) * up, or gelu, becomes the activation of one linear node (graphs/passes/fuse_mlp.py).",
    "merge_linear": (
        "Projections that read the same input are joined: Q, K and V in one matrix, gate and up in another. Only names and "
        "shapes change here; the parameter becomes a `cat` of theirs, which is read when the pack is written "
        "(graphs/passes/merge_linear.py)."
    ),
    "page_attention": (
        "Stateless attention over [batch, seq] becomes ragged tokens [tokens]: keys and values are written into states, which "
        "attend reads, positions become an input, and only sampled rows reach the LM head. A plain torch model gets "
        "continuous batching here, without knowing of it (graphs/passes/page_attention.py)."
    ),
    "fuse_residual": "add(linear(x), residual) becomes a linear that adds in place (graphs/passes/fuse_residual.py).",
    "fuse_paged": (
        "For the machine: the columns of one linear, q/k norm, rope, both writes and attend become one paged_attention node, "
        "which CPUs and GPUs have kernels for; the states are the device's own after it (graphs/passes/fuse_paged.py)."
    ),
    "layout": (
        "Each weight gets a logical number format (bf16, int8, int4-g32 ...) and the physical layout that every kernel of "
        "the target reads (graphs/passes/layout.py)."
    ),
    "select": "A kernel is chosen for every node and the reason is kept: ferrum explain PACK --why (codegen/select.py).",
    "plan": "Arena offsets, workspace as a function of tokens, and the order of launches (codegen/plan.py).",
    "render": "jinja2 templates become C with the model's dimensions as constants (codegen/render.py, templates/).",
    "build": "The C compiler makes one shared object; sources and the command to repeat a failure are kept (codegen/toolchains).",
    "pack": "Weights are streamed tensor by tensor into their final layout; the file appears under its name only when whole.",
    "prove": (
        "The pack is opened and run against the graph interpreter; prompts, logits and tolerances stay inside the file for "
        "ferrum verify --numeric."
    ),
}
