"""What 8-bit weights and activations cost SmolLM2-135M, by simulation: ``python -m tests.bench.eight_bits FOLDER``.

For each size of the groups that share a scale, of weights and of activations: how often the likeliest token is that of float32,
and the mean change of the log probability of the text's next token. Integers are simulated in float32, whose sums of products
within a group are exact; scales of weights are float16. The table of docs/quantization-formats.md is its output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TEXTS = (
    "The river rises in the hills behind the village and turns east at the old mill. In spring it floods the lower "
    "fields, and the farmers leave a strip of reeds along the bank so that the soil is not carried away. A narrow bridge "
    "of stone has stood there for three hundred years; carts crossed it on market days, and children still fish from its "
    "middle arch. When the water is low you can see the marks that the masons cut into the piers, one for every team "
    "that worked on them. The last flood took away a part of the parapet, and it was put back the same summer with "
    "stones from the quarry on the other side.",
    "def merge(left, right):\n    \"\"\"Two sorted lists as one.\"\"\"\n    result = []\n    i = j = 0\n    while i < "
    "len(left) and j < len(right):\n        if left[i] <= right[j]:\n            result.append(left[i])\n            i "
    "+= 1\n        else:\n            result.append(right[j])\n            j += 1\n    result.extend(left[i:])\n    "
    "result.extend(right[j:])\n    return result\n\n\ndef sort(values):\n    if len(values) < 2:\n        return "
    "values\n    middle = len(values) // 2\n    return merge(sort(values[:middle]), sort(values[middle:]))\n",
    "Question: Why is the sky blue during the day and red in the evening?\nAnswer: Sunlight is a mixture of all colours. "
    "Air scatters short wavelengths much more than long ones, so blue light reaches us from every direction of the sky. "
    "In the evening the light has to pass through far more air before it reaches us. Most of the blue has been scattered "
    "out of the beam by then, and what is left is orange and red. Dust and small drops of water make the colours "
    "stronger.\nQuestion: Why are clouds white?\nAnswer: The drops in a cloud are larger than the wavelengths of light, "
    "so they scatter all colours equally.",
    "Water boils at 100 degrees Celsius at sea level. On a mountain of 3,000 metres it boils at about 90 degrees, "
    "because the air presses less on its surface. Cooking an egg there takes longer. The opposite happens in a pressure "
    "cooker: at twice the normal pressure water boils at 120 degrees, and a stew is done in a third of the time. Salt "
    "raises the boiling point too, but only by half a degree for a spoonful in a litre. To find the height of a hill, "
    "climbers once carried a thermometer and a small stove, and read the temperature of the boiling water at the top.",
)  # fmt: skip
LENGTH = 117  # tokens of each text; one position less is compared
GROUPS = (0, 128, 64, 32)  # 0: a whole row


def rounded(values: Tensor, group: int, half: bool = False) -> Tensor:
    """Rows as 8-bit numbers times a scale for each ``group`` of them."""
    width = values.shape[-1]
    size = group or width
    padded = nn.functional.pad(values, (0, -width % size)).unflatten(-1, (-1, size))
    scale = padded.abs().amax(-1, keepdim=True) / 127
    scale = scale.half().float() if half else scale
    codes = (padded / scale.clamp_min(1e-30)).round().clamp(-127, 127)
    return (codes * scale).flatten(-2)[..., :width]


class Rounded(nn.Module):
    """A linear layer with rounded weights and inputs; ``act`` None: bfloat16 inputs."""

    def __init__(self, linear: nn.Linear, weights: int, act: int | None) -> None:
        super().__init__()
        self.weight, self.act = rounded(linear.weight.detach(), weights, half=True), act

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.bfloat16().float() if self.act is None else rounded(x, self.act), self.weight)


def with_layers(model: Any, make: Any) -> Any:
    """A copy whose linear layers are ``make(layer)``."""
    import copy

    other = copy.deepcopy(model)
    for module in list(other.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child))
    return other


@torch.no_grad()
def logprobs(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits.log_softmax(-1)[:, :-1]


def compared(found: Tensor, right: Tensor, tokens: Tensor) -> tuple[float, float]:
    nexts = tokens[:, 1:, None]
    change = (found.gather(-1, nexts) - right.gather(-1, nexts)).abs().mean()
    return float((found.argmax(-1) == right.argmax(-1)).float().mean()), float(change)


def main() -> None:
    from ferrum.graphs.model_files import open_files
    from ferrum.text.tokenizer import Tokenizer
    from tests.gguf.smollm2 import reference, smollm2

    torch.set_num_threads(1)
    path = smollm2(Path(sys.argv[1]))
    tokenizer = Tokenizer(open_files(path).read("tokenizer.json") or b"")
    ids = [tokenizer.encode(text)[:LENGTH] for text in TEXTS]
    assert {len(part) for part in ids} == {LENGTH}, [len(part) for part in ids]
    tokens, model = torch.from_numpy(np.array(ids)), reference(path)
    right = logprobs(model, tokens)
    print(f"{tokens.shape[0] * (LENGTH - 1)} positions\n| weights | activations | top-1 | mean change |\n|---|---|---|---|")
    for weights in GROUPS:
        for act in (None, *GROUPS):
            made = with_layers(model, lambda layer, w=weights, a=act: Rounded(layer, w, a))
            top, change = compared(logprobs(made, tokens), right, tokens)
            names = ["bf16" if size is None else f"int8, {f'groups of {size}' if size else 'rows'}" for size in (weights, act)]
            print(f"| {names[0]} | {names[1]} | {top:.3f} | {change:.4f} |", flush=True)


if __name__ == "__main__":
    main()
