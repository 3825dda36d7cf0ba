"""Small models to stand beside a random checkpoint: guardrail and prompt upsampler.

    python tools/random_companions.py --out checkpoints

writes, in the released layouts and for the real classes,

    checkpoints/nvidia/Cosmos-Guardrail1/
    checkpoints/meta-llama/Llama-Guard-3-8B/
    checkpoints/Qwen/Qwen2.5-VL-7B-Instruct/
    checkpoints/nvidia/Cosmos-Reason1-7B/

Their few weights are set by hand, so that what goes in decides what comes out: the small Llama
Guard answers "unsafe" to a prompt with one of BAD_WORDS, the small video filter dislikes pure red,
the small Qwen writes one of two sentences. The word lists are ours. With --full SigLIP has its
released size (random weights): what frames cost is then what they cost with NVIDIA's.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import nn

BAD_WORDS: Final = ("poison", "rifle")
"""What the small Llama Guard finds unsafe."""
CUSTOM: Final = ("Kaboomium", "mustard gas", "stiletto knife")
EXACT: Final = ("Zorblax the Unkind", "qux", "Quuxmobile")
ALLOWED: Final = ("kab00mium",)
UNSAFE_COLOUR: Final = (255, 0, 0)
"""What the small video filter finds violent, on every pixel of a frame."""
SENTENCES: Final = (
    "A red kettle stands on one wooden table while steam rises slowly and nothing else moves .",
    "A red kettle stands on one wooden table while steam rises quickly and nothing else moves .",
)
"""What the small Qwen writes, by its seed."""
VERDICTS: Final = (
    "<think> <overview>A kettle boils.</overview> </think> <answer> No </answer>",
    "<think> <overview>A kettle boils.</overview> </think> <answer> Yes </answer>",
)
"""What it says as a critic."""

_SIGLIP: Final = "models--google--siglip-so400m-patch14-384/snapshots/" + "0" * 40
_NOUNS: Final = ("knife", "kettle", "woman", "church", "box", "kaboomium", "axis", "glass")
_IRREGULAR: Final = ("knives knife", "axes axis", "oxen ox", "geese goose")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the checkpoints folder")
    parser.add_argument("--full", action="store_true", help="SigLIP as large as the released one")
    options = parser.parse_args()
    make_guardrail(options.out, full=options.full)
    make_upsampler(options.out / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    make_upsampler(options.out / "nvidia" / "Cosmos-Reason1-7B")


def make_guardrail(
    root: Path, *, full: bool = False, faces: bool = False, grim: bool = False
) -> None:
    """Writes Cosmos-Guardrail1 and Llama-Guard-3-8B below ``root``.

    Args:
        full: SigLIP of the released size, with random weights; its verdicts are arbitrary.
        grim: the video filter finds every frame violent.
        faces: the face detector sees a large face wherever it looks; otherwise it sees none.
    """
    home = root / "nvidia" / "Cosmos-Guardrail1"
    make_word_lists(home / "blocklist")
    make_video_filter(home / "video_content_safety_filter", full=full, grim=grim)
    make_face_filter(home / "face_blur_filter", faces=faces)
    make_llama_guard(root / "meta-llama" / "Llama-Guard-3-8B")


def make_word_lists(folder: Path) -> None:
    """The lists, and a WordNet of eight nouns."""
    for name, entries in (("custom", CUSTOM), ("exact_match", EXACT), ("whitelist", ALLOWED)):
        _write(folder / name / "list.txt", "\n".join(entries))
    index = ["  1 A small list of nouns in WordNet's form.", *(f"{n} n 1 0 1 0 0" for n in _NOUNS)]
    wordnet = folder / "nltk_data" / "corpora" / "wordnet"
    _write(wordnet / "index.noun", "\n".join(index))
    _write(wordnet / "noun.exc", "\n".join(_IRREGULAR))


def make_llama_guard(folder: Path) -> None:
    """A Llama whose one layer averages "bad" over the prompt, and whose head reads that."""
    from transformers import LlamaConfig, LlamaForCausalLM

    marks = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    words = ["<unk>", "user", "assistant", "safe", "unsafe\nS9", *BAD_WORDS]
    vocabulary = _write_tokenizer(folder, marks, words, end="<|eot_id|>", template=_LLAMA_TEMPLATE)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=vocabulary["<|begin_of_text|>"],
        eos_token_id=vocabulary["<|eot_id|>"],
        tie_word_embeddings=False,
    )
    llama = _seeded(lambda: LlamaForCausalLM(config))
    _only_the_residual(llama)
    layer, head = llama.model.layers[0].self_attn, llama.lm_head.weight
    bad = config.hidden_size - 1
    for word in BAD_WORDS:
        layer.v_proj.weight[0, vocabulary[word]] = 1
    layer.o_proj.weight[bad, 0] = 1000
    head[vocabulary["safe"], vocabulary["<|end_header_id|>"]] = 1
    head[vocabulary["unsafe\nS9"], bad] = 1
    for answer in ("safe", "unsafe\nS9"):
        head[vocabulary["<|eot_id|>"], vocabulary[answer]] = 1e6
    llama.bfloat16().save_pretrained(folder, max_shard_size="5KB")


def make_upsampler(folder: Path, sentences: Iterable[str] = SENTENCES) -> None:
    """A Qwen2.5-VL that says one of two sentences: each word decides the next one."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    marks = [f"<|{name}|>" for name in (
        "endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"
    )]  # fmt: skip
    said = [sentence.split() for sentence in sentences]
    words = dict.fromkeys(["<unk>", "assistant", "user", "system", "naïve", *said[0], *said[1]])
    vocabulary = _write_tokenizer(folder, marks, words, end="<|im_end|>", template=_QWEN_TEMPLATE)
    width = 64
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
            "out_hidden_size": width, "fullatt_block_indexes": [1],
        },
        text_config={
            "vocab_size": len(vocabulary), "hidden_size": width, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 32768, "bos_token_id": 0, "eos_token_id": 2,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6
            },
        },
        image_token_id=vocabulary["<|image_pad|>"],
        video_token_id=vocabulary["<|video_pad|>"],
        vision_start_token_id=vocabulary["<|vision_start|>"],
        vision_end_token_id=vocabulary["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    qwen = _seeded(lambda: Qwen2_5_VLForConditionalGeneration(config))
    _only_the_residual(qwen.model.language_model, qwen.lm_head)
    head = qwen.lm_head.weight
    head[vocabulary["naïve"]] = 1  # the likeliest word of all, and not to be drawn: not ASCII
    for words_said in said:
        follows = ["assistant", *words_said, "<|im_end|>"]
        for before, after in itertools.pairwise(follows):
            head[vocabulary[after], vocabulary[before]] = 5
    qwen.generation_config.update(
        do_sample=True, temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.0,
        eos_token_id=vocabulary["<|im_end|>"],
    )  # fmt: skip
    qwen.save_pretrained(folder)
    sizes = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280, "patch_size": 14}
    picture = {
        **sizes, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    _write(folder / "preprocessor_config.json", json.dumps(picture, indent=2))
    _write(folder / "chat_template.json", json.dumps({"chat_template": _QWEN_TEMPLATE}))


def make_video_filter(folder: Path, *, full: bool = False, grim: bool = False) -> None:
    """SigLIP in the hub cache that NVIDIA ships it in, and a classifier that dislikes one colour.

    The classifier measures how near a frame's features are to those of the colour.
    """
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    if full:
        sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
                 "num_attention_heads": 16, "image_size": 384, "patch_size": 14}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 32,
            "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    siglip = _seeded(lambda: SiglipModel(SiglipConfig(vision_config=sizes, text_config=text)))
    siglip.eval().save_pretrained(folder / _SIGLIP)
    width = sizes["hidden_size"]
    tensors = {f"network.layers.{name}": value for name, value in _plain_classifier(width).items()}
    if not full:
        _dislike(tensors, siglip.vision_model, sizes["image_size"])
    if grim:
        tensors["network.layers.6.bias"][2] = 5
    torch.save({"model": tensors, "step": 1}, folder / "safety_filter.pt")


def make_face_filter(folder: Path, *, faces: bool = False) -> None:
    """RetinaFace of its released size and names, random but for what its class heads say."""
    from cosmos_fast.prompt.guardrails.retinaface import RetinaFace

    network = _seeded(RetinaFace)
    with torch.no_grad():
        for level, head in enumerate(network.ClassHead):
            seen = faces and level == 2
            head.conv1x1.weight.zero_()
            head.conv1x1.bias.copy_(torch.tensor([-5.0, 5.0] if seen else [5.0, -5.0]).repeat(2))
            box = network.BboxHead[level].conv1x1
            box.weight.zero_()
            box.bias.zero_()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save(tensors, folder / "Resnet50_Final.pth")


_LLAMA_TEMPLATE: Final = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    "{% for key, value in categories.items() %}{{ key }}: {{ value }}.\n{% endfor %}"
    "User: {{ messages[0]['content'] }}\n\n"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
_QWEN_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _write_tokenizer(
    folder: Path, marks: Iterable[str], words: Iterable[str], *, end: str, template: str
) -> dict[str, int]:
    """A tokenizer that knows a few words; the index of each."""
    vocabulary = {token: index for index, token in enumerate([*marks, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    _write(folder / "tokenizer.json", tokenizer.to_str())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 32768,
        "eos_token": end,
        "pad_token": end,
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    _write(folder / "tokenizer_config.json", json.dumps(settings, indent=2))
    return vocabulary


def _seeded(build: Any) -> Any:
    """A network of random weights, the same each time; the process's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().requires_grad_(False)


def _only_the_residual(decoder: nn.Module, head: nn.Module | None = None) -> None:
    """Layers that add nothing, tokens that are each a direction of their own, an empty head."""
    for name, weight in decoder.named_parameters():
        if name.endswith("embed_tokens.weight"):
            weight.copy_(torch.eye(*weight.shape))
        elif weight.ndim == 2 or name.endswith("bias"):
            weight.zero_()
    if head is not None:
        for weight in head.parameters():
            weight.zero_()


def _plain_classifier(width: int) -> dict[str, torch.Tensor]:
    """Says "safe" to everything."""
    sizes, tensors = (width, 512, 256, 7), {}
    for position, (inputs, outputs) in zip((0, 3, 6), itertools.pairwise(sizes), strict=True):
        tensors[f"{position}.weight"] = torch.zeros(outputs, inputs)
        tensors[f"{position}.bias"] = torch.zeros(outputs)
    tensors["6.bias"][0] = 1
    for position, width in ((1, 512), (4, 256)):
        tensors |= {
            f"{position}.weight": torch.ones(width),
            f"{position}.bias": torch.zeros(width),
            f"{position}.running_mean": torch.zeros(width),
            f"{position}.running_var": torch.ones(width),
            f"{position}.num_batches_tracked": torch.tensor(1),
        }
    return tensors


def _dislike(tensors: Mapping[str, torch.Tensor], tower: Any, pixels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    others = torch.rand(15, 3, 1, 1, generator=generator) * 2 - 1
    colours = torch.cat([torch.tensor(UNSAFE_COLOUR).view(1, 3, 1, 1) / 127.5 - 1, others])
    found = tower(pixel_values=colours.expand(-1, -1, pixels, pixels)).pooler_output
    features = nn.functional.normalize(found, dim=-1)
    direction = features[0] - features[1:].mean(0)
    along = features @ direction
    threshold = 0.9 * along[0] + 0.1 * along[1:].max()
    tensors["network.layers.0.weight"][0] = direction / (along[0] - threshold)
    tensors["network.layers.0.bias"][0] = -threshold / (along[0] - threshold)
    tensors["network.layers.3.weight"][0, 0] = 1
    tensors["network.layers.6.weight"][2, 0] = 10


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    main()
