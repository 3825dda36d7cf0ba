"""Prompts to rows: against transformers itself, with real tokenizers, and the cache on disk."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

from attacks.checkpoints.small import MODEL, small_checkpoint
from cosmos_fast.errors import CheckpointError, InputError
from cosmos_fast.model.text import CachedTextEncoder, PromptCache, TextEncoder
from cosmos_fast.model.tokens import load_tokenizer, tokenize
from cosmos_fast.types import TextEmbedding
from cosmos_fast.weights import find_checkpoint, load_text_encoder

PROMPTS = [
    "A red ball moves slowly to the left under gravity.",
    "word",
    "",
    "  spaces   and\ttabs\nand lines  ",
    "Größe, 城市, 🚌 and “87D”",
    "the bus moves " * 400,
]
IDS = ["sentence", "word", "empty", "white space", "beyond the vocabulary", "too long"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    small_checkpoint(root)
    return root


def encoder_of(root: Path, dtype: torch.dtype | None = None) -> TextEncoder:
    files = find_checkpoint(root / MODEL)
    config, parameters = load_text_encoder(files, "cpu", dtype)
    _, tokenizer = files.require_text()
    return TextEncoder.from_parameters(config, parameters, load_tokenizer(tokenizer))


def rows_by_transformers(root: Path, prompt: str, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    folder = str(root / "google-t5" / "t5-11b")
    model: Any = transformers.T5EncoderModel.from_pretrained(folder, dtype=dtype)
    tokenizer: Any = transformers.T5TokenizerFast.from_pretrained(folder)
    tokens = tokenizer(
        [prompt], padding="max_length", truncation=True, max_length=512, return_tensors="pt"
    )
    length = int(tokens["attention_mask"].sum())
    with torch.no_grad():
        state = model.eval()(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state
    rows = state[0].to(torch.bfloat16)
    rows[length:] = 0
    return rows, length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=IDS)
def test_rows_are_those_of_transformers(made: Path, prompt: str, dtype: torch.dtype) -> None:
    expected, length = rows_by_transformers(made, prompt, dtype)
    ours = encoder_of(made, dtype).embed([prompt])[0]
    assert ours.length == length
    assert torch.equal(ours.rows, expected)


def test_rows_are_those_of_transformers_row(made: Path, parity: Any) -> None:
    expected, _ = rows_by_transformers(made, PROMPTS[0], torch.float32)
    ours = encoder_of(made, torch.float32).embed(PROMPTS[:1])[0].rows
    error = float((ours.float() - expected.float()).norm() / expected.float().norm())
    parity("T5 rows", "transformers' T5EncoderModel", error, 0)
    assert error == 0


def test_rows_past_the_end_token_are_zero_and_its_own_is_not(made: Path) -> None:
    embedding = encoder_of(made).embed(["the bus"])[0]
    assert embedding.rows.shape == (512, 32)
    assert embedding.rows.dtype == torch.bfloat16
    assert embedding.length == 3
    assert embedding.rows[2].any()
    assert not embedding.rows[3:].any()


def test_a_prompt_beyond_512_tokens_is_cut_with_a_warning(
    made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cosmos_fast"):
        embedding = encoder_of(made).embed(PROMPTS[-1:])[0]
    assert embedding.length == 512
    assert "its last 689 of 1201 tokens are not read" in caplog.text
    with caplog.at_level(logging.WARNING, "cosmos_fast"):
        caplog.clear()
        encoder_of(made).embed(PROMPTS[:1])
    assert not caplog.text


def test_text_that_is_no_unicode_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match="Unicode"):
        encoder_of(made).embed(["half a \ud83d pair"])


def test_values_that_are_not_finite_are_refused(made: Path) -> None:
    files = find_checkpoint(made / MODEL)
    config, parameters = load_text_encoder(files, "cpu", torch.float32)
    parameters["encoder.final_layer_norm.weight"].fill_(float("inf"))
    _, folder = files.require_text()
    broken = TextEncoder.from_parameters(config, parameters, load_tokenizer(folder))
    with pytest.raises(CheckpointError, match="not finite"):
        broken.embed(["word"])


def test_parameters_are_used_where_they_lie(made: Path) -> None:
    files = find_checkpoint(made / MODEL)
    config, parameters = load_text_encoder(files, "cpu")
    _, folder = files.require_text()
    encoder = TextEncoder.from_parameters(config, parameters, load_tokenizer(folder))
    held = dict(encoder.t5.named_parameters())
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    assert held[name].data_ptr() == parameters[name].data_ptr()
    assert not held[name].requires_grad


# Tokenizers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model trained on the spot, in the old form and converted to the new one."""
    root = tmp_path_factory.mktemp("tokenizers")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS[:2] * 50),
        model_writer=model,
        vocab_size=36,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        model_type="unigram",
        minloglevel=2,
    )
    (root / "old").mkdir()
    (root / "old" / "spiece.model").write_bytes(model.getvalue())
    (root / "new").mkdir()
    load_tokenizer(root / "old").save(str(root / "new" / "tokenizer.json"))
    return root


@pytest.mark.parametrize("form", ["old", "new"])
@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_tokens_are_those_of_sentencepiece(trained: Path, form: str, prompt: str) -> None:
    pieces = sentencepiece.SentencePieceProcessor(str(trained / "old" / "spiece.model"))
    tokenizer = load_tokenizer(trained / form)
    found = tokenize(tokenizer, prompt)
    assert found.ids[: found.length] == [*pieces.encode(prompt), 1]
    assert found.ids[found.length :] == [0] * (512 - found.length)


def damaged_tokenizer(folder: Path, fault: str) -> Path:
    from tokenizers import Tokenizer, models, processors

    path = folder / "tokenizer.json"
    if fault == "no file":
        return folder
    if fault == "no JSON":
        path.write_text("{")
        return folder
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}
    if fault == "no padding":
        vocabulary["[PAD]"] = vocabulary.pop("<pad>")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    if fault != "no end":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    tokenizer.save(str(path))
    return folder


@pytest.mark.parametrize("fault", ["no file", "no JSON", "no padding", "no end"])
def test_a_tokenizer_that_is_not_t5s_is_refused(tmp_path: Path, fault: str) -> None:
    folder = damaged_tokenizer(tmp_path, fault)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_tokenizer(folder)
    assert load_tokenizer(damaged_tokenizer(tmp_path, "none")).get_vocab()["a"] == 3


def test_a_tokenizer_larger_than_the_encoder_is_refused(made: Path) -> None:
    files = find_checkpoint(made / MODEL)
    config, parameters = load_text_encoder(files, "cpu")
    tokenizer = load_tokenizer(files.require_text()[1])
    tokenizer.add_tokens([f"new {i}" for i in range(400)])
    with pytest.raises(CheckpointError, match="do not belong together"):
        TextEncoder.from_parameters(config, parameters, tokenizer)


# The cache


def embedding(seed: int = 0, length: int = 5, dim: int = 8) -> TextEmbedding:
    rows = torch.zeros(512, dim, dtype=torch.bfloat16)
    rows[:length] = torch.randn(length, dim, generator=torch.Generator().manual_seed(seed))
    return TextEmbedding(rows, length)


def same(one: TextEmbedding | None, other: TextEmbedding) -> bool:
    return one is not None and one.length == other.length and torch.equal(one.rows, other.rows)


def test_an_embedding_comes_back_as_it_went(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path / "text", "t5")
    for length in (0, 1, 511, 512):
        kept = embedding(length, length)
        cache.put(f"prompt of {length}", kept)
        assert same(cache.get(f"prompt of {length}"), kept)
    assert cache.get("another prompt") is None


def test_nothing_is_shared_between_encoders(tmp_path: Path) -> None:
    PromptCache(tmp_path, "t5 in float32").put("word", embedding(1))
    assert PromptCache(tmp_path, "t5 in bfloat16").get("word") is None
    assert same(PromptCache(tmp_path, "t5 in float32").get("word"), embedding(1))


def test_the_encoder_is_identified_once_and_only_when_a_prompt_comes(tmp_path: Path) -> None:
    asked: list[str] = []

    def identify() -> str:
        asked.append("t5")
        return asked[-1]

    cache = PromptCache(tmp_path, identify)
    assert not asked
    cache.put("word", embedding(1))
    assert same(cache.get("word"), embedding(1))
    assert same(PromptCache(tmp_path, "t5").get("word"), embedding(1))
    assert asked == ["t5"]


def test_prompt_and_encoder_cannot_be_confused(tmp_path: Path) -> None:
    PromptCache(tmp_path, 'a", "b').put("c", embedding(1))
    assert PromptCache(tmp_path, "a").get('b", "c') is None


def entry(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "foreign", "longer", "folder"])
def test_a_damaged_entry_is_made_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PromptCache(tmp_path, "t5")
    cache.put("word", embedding(1))
    path = entry(tmp_path)
    content = bytearray(path.read_bytes())
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[:-3])
        case "flipped":
            content[-3] ^= 1
            path.write_bytes(content)
        case "foreign":
            save_file({"rows": torch.zeros(5, 8, dtype=torch.bfloat16)}, path)
        case "longer":
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            save_file({"rows": torch.zeros(600, 8)}, path, metadata=metadata)
        case "folder":
            path.unlink()
            path.mkdir()
    with caplog.at_level(logging.WARNING, "cosmos_fast"):
        assert cache.get("word") is None
    assert "is made again" in caplog.text
    if damage != "folder":
        encoder = CachedTextEncoder(lambda: Fixed(embedding(1)), cache)
        assert same(encoder.embed(["word"])[0], embedding(1))
        assert same(cache.get("word"), embedding(1))


def test_an_entry_of_another_prompt_under_this_name_is_not_used(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, "t5")
    cache.put("one", embedding(1))
    first = entry(tmp_path)
    cache.put("two", embedding(2))
    (second,) = set(tmp_path.glob("*.safetensors")) - {first}
    second.replace(first)
    assert cache.get("one") is None


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache = PromptCache(blocked / "text", "t5")
    cache.put("word", embedding())
    assert cache.get("word") is None


def test_the_bound_removes_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, "t5", max_bytes=1 << 40)
    for number in range(6):
        cache.put(str(number), embedding(number))
        stamp = 1_000_000_000 + number
        os.utime(cache._path(str(number)), (stamp, stamp))
    size = entry_size = cache._path("0").stat().st_size
    assert same(cache.get("0"), embedding(0))  # used again: the newest now
    bounded = PromptCache(tmp_path, "t5", max_bytes=4 * size + entry_size // 2)
    bounded.put("6", embedding(6))
    kept = [number for number in range(7) if bounded.get(str(number)) is not None]
    assert kept == [0, 4, 5, 6]


def test_many_threads_and_no_leftovers(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path, "t5")
    failures: list[object] = []

    def work(worker: int) -> None:
        for number in range(20):
            cache.put(str(number), embedding(number))
            if not same(cache.get(str(number)), embedding(number)):
                failures.append((worker, number))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(tmp_path.iterdir())) == 20


class Fixed:
    """An encoder that gives one embedding and counts."""

    def __init__(self, value: TextEmbedding) -> None:
        self.value = value
        self.asked: list[str] = []

    def embed(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        self.asked += prompts
        return [self.value] * len(prompts)


@pytest.mark.parametrize("kept", [True, False], ids=["cache", "no cache"])
def test_the_encoder_is_loaded_once_and_only_when_needed(tmp_path: Path, kept: bool) -> None:
    loads: list[Fixed] = []

    def load() -> Fixed:
        loads.append(Fixed(embedding(3)))
        return loads[-1]

    def again() -> CachedTextEncoder:
        return CachedTextEncoder(load, PromptCache(tmp_path, "t5") if kept else None)

    first = again()
    assert not first.loaded
    for prompt in ("a", "b", "a"):
        assert same(first.embed([prompt])[0], embedding(3))
    assert len(loads) == 1
    assert loads[0].asked == (["a", "b"] if kept else ["a", "b", "a"])
    first.release()
    assert not first.loaded
    again().embed(["b"])
    assert len(loads) == (1 if kept else 2)


def test_a_hit_imports_no_transformers(tmp_path: Path) -> None:
    PromptCache(tmp_path, "t5").put("word", embedding(4))
    code = f"""
        import sys
        from pathlib import Path
        from cosmos_fast.model.text import CachedTextEncoder, PromptCache
        def load():
            raise AssertionError("a hit loads nothing")
        cache = PromptCache(Path({str(tmp_path)!r}), "t5")
        embedding = CachedTextEncoder(load, cache).embed(["word"])[0]
        assert embedding.length == 5, embedding
        print([name for name in ("transformers", "tokenizers") if name in sys.modules])
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


def test_embedding_leaves_the_process_as_it_was(made: Path, unchanged_globals: Any) -> None:
    with unchanged_globals():
        embedding = encoder_of(made).embed(["the bus moves"])[0]
    assert embedding.rows.any()
