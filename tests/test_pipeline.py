"""The whole engine against a loop over diffusers' modules, written here without our code."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

import cosmos_fast as cf

HEIGHT, WIDTH, FRAMES, STEPS, GUIDANCE, SEED = 48, 80, 13, 7, 3.0, 11
PROMPT, NEGATIVE = "a red ball rolls over the floor", "blurry and grey"
DIT = {"num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2}


@pytest.fixture(scope="module", params=[64, 128], ids=["head_dim_64", "head_dim_128"])
def modules(request):
    """diffusers' transformer and VAE and a T5 encoder, small, random, without dead parts."""
    from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(request.param)
    transformer = CosmosTransformer3DModel(
        in_channels=17,
        num_attention_heads=2,
        attention_head_dim=request.param,
        num_layers=2,
        text_embed_dim=32,
        adaln_lora_dim=8,
        max_size=(128, 240, 240),
        rope_scale=(1.0, 3.0, 3.0),
        extra_pos_embed_type=None,
    )
    vae = AutoencoderKLWan(base_dim=8)
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
            feed_forward_proj="relu",
        )
    )  # fmt: skip
    for module in (transformer, vae, t5):
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1 and "norm" not in name:
                parameter.data.normal_(0, 0.7 / math.sqrt(parameter[0].numel()))
            elif "norm" in name or "gamma" in name:
                parameter.data.uniform_(0.5, 1.5)
            else:
                parameter.data.normal_(0, 0.02)
        module.eval().requires_grad_(False)
    return transformer, vae, t5


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = sorted({*PROMPT.split(), *NEGATIVE.split()})
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {w: i + 3 for i, w in enumerate(words)}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    raw.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def folder(modules, tokenizer, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("diffusers")
    for name, module in zip(("transformer", "vae", "text_encoder"), modules, strict=True):
        module.save_pretrained(root / name)
    tokenizer.save_pretrained(root / "tokenizer")
    (root / "model_index.json").write_text(
        json.dumps({"_class_name": "Cosmos2VideoToWorldPipeline"})
    )
    described = {
        "name": "tiny",
        "size": [HEIGHT, WIDTH],
        "num_frames": FRAMES,
        "fps": 16,
        "num_steps": STEPS,
        "guidance": GUIDANCE,
        "negative_prompt": None,
    }
    (root / "cosmos_fast.json").write_text(json.dumps(described))
    return root


@pytest.fixture(scope="module")
def engine(folder):
    return cf.Video2World.from_pretrained(
        folder, device="cpu", rope_table="float32", guardrail=cf.NoGuardrail(reason="test")
    )


def picture(height=101, width=133):
    rng = np.random.default_rng(5)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 9, 12)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return smooth[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()


def independent_video(modules, tokenizer, frames, conditional):
    """Latents and video of the reference's algorithm, from model.md's formulas, on diffusers."""
    transformer, vae, t5 = modules
    for block in transformer.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = 1e-6

    def text_rows(text):
        tokens = tokenizer(
            text, padding="max_length", max_length=512, truncation=True, return_tensors="pt"
        )
        rows = t5(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        rows[:, int(tokens.attention_mask.sum()) :] = 0
        return rows.bfloat16().float()

    chw = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    scale = max(HEIGHT / chw.shape[2], WIDTH / chw.shape[3])
    high, wide = math.ceil(scale * chw.shape[2]), math.ceil(scale * chw.shape[3])
    fitted = resize(chw, [high, wide], antialias=True)
    top, left = round((high - HEIGHT) / 2), round((wide - WIDTH) / 2)
    fitted = (fitted[..., top : top + HEIGHT, left : left + WIDTH] * 255).to(torch.uint8)
    padded = torch.cat([fitted, fitted[-1:].repeat(FRAMES - len(fitted), 1, 1, 1)])
    video = (padded.float() / 127.5 - 1).permute(1, 0, 2, 3)[None]

    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    given = (vae.encode(video).latent_dist.mean - mean) / std
    latent_count = (FRAMES - 1) // 4 + 1
    known = (conditional - 1) // 4 + 1
    mask = torch.zeros(1, 1, latent_count, 1, 1)
    mask[:, :, :known] = 1

    noise = np.random.RandomState(SEED).standard_normal(
        (1, 16, latent_count, HEIGHT // 8, WIDTH // 8)
    )
    low, high_ = 0.002 ** (1 / 7), 80 ** (1 / 7)
    levels = [(high_ + i / STEPS * (low - high_)) ** 7 for i in range(STEPS + 1)]
    positive, negative = text_rows(PROMPT), text_rows(NEGATIVE)

    def clean(x, sigma):
        t = sigma / (1 + sigma)
        t_c = 1e-4 / (1 + 1e-4)
        x_in = mask * given + (1 - mask) * (1 - t) * x
        times = mask * t_c + (1 - mask) * t
        guesses = []
        for rows in (positive, negative):
            flow = transformer(
                x_in,
                times,
                rows,
                fps=24,
                condition_mask=mask.expand(-1, -1, -1, *x.shape[3:]),
                padding_mask=torch.zeros(1, 1, HEIGHT, WIDTH),
                return_dict=False,
            )[0]
            guesses.append(mask * given + (1 - mask) * ((1 - t) * x - t * flow))
        return guesses[0] + GUIDANCE * (guesses[0] - guesses[1])

    x, old = torch.from_numpy(noise.astype(np.float32)) * 80, None
    for i in range(STEPS):
        x0, a, h = (
            clean(x, levels[i]),
            levels[i + 1] / levels[i],
            math.log(levels[i] / levels[i + 1]),
        )
        step = a * x.double() + (1 - a) * x0.double()
        if old is not None:
            step += (h - 1 + a) * (x0 - old).double() / math.log(levels[i - 1] / levels[i])
        x, old = step.float(), x0
    latents = clean(x, levels[-1])
    decoded = vae.decode(latents * std + mean, return_dict=False)[0]
    pixels = ((decoded.clamp(-1, 1) + 1) / 2 * 255 + 0.5).to(torch.uint8)
    return latents, pixels[0].permute(1, 2, 3, 0)


@pytest.mark.parametrize("conditional", [1, 5])
def test_the_engine_equals_the_independent_loop(modules, tokenizer, engine, conditional, parity):
    frames = np.stack([np.roll(picture(), 2 * i, axis=1) for i in range(conditional)])
    latents, pixels = independent_video(modules, tokenizer, frames, conditional)
    clip = engine.generate(
        frames,
        PROMPT,
        NEGATIVE,
        num_conditional_frames=conditional,
        num_steps=STEPS,
        guidance=GUIDANCE,
        seed=SEED,
    )
    ours = clip.latents.tensor
    head_dim = modules[0].config.attention_head_dim
    parity(
        f"whole pipeline, {conditional} given frames, head dim {head_dim}",
        "a loop over diffusers' modules",
        ((ours - latents).norm() / latents.norm()).item(),
        1e-4,
    )
    assert clip.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    difference = (clip.frames.to("pt").int() - pixels.int()).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() >= 0.999
    assert pixels.float().std() > 5, "a constant picture would prove nothing"
