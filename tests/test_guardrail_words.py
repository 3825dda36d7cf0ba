"""Word lists: disguises as better-profanity's, near matches as difflib's, forms as WordNet's."""

from __future__ import annotations

import shutil
import zipfile
from difflib import SequenceMatcher
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_fast.errors import CheckpointError
from cosmos_fast.prompt.guardrails import Blocklist
from cosmos_fast.prompt.guardrails.lemmas import Lemmatizer
from cosmos_fast.prompt.guardrails.word_match import DisguisedWords, ForeignWords, WholeWords
from cosmos_fast.weights.released import NEGATIVE_PROMPT
from guarded import COSMOS, PROMPT

LISTED = ("evil", "slot", "mustard gas", "aviso", "xy", "lost cause here")
LETTERS = "evilsotauxy@*3150$47 "


@given(st.text(LETTERS, min_size=2, max_size=24))
@settings(max_examples=400, deadline=None)
def test_disguises_are_those_of_better_profanity(text: str) -> None:
    profanity = pytest.importorskip("better_profanity").Profanity(list(LISTED))
    words = " ".join(text.split())
    theirs = profanity.censor(words) != words
    found = DisguisedWords(LISTED, ()).find(words)
    if theirs:
        assert found is not None
    elif found is not None:
        # Ours looks at every run of words; theirs skips on after a match and at the text's end.
        spans = (found.text, found.text.replace(" ", ""))
        assert any(profanity.censor(f"{span} .") != f"{span} ." for span in spans)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("an evil plan", True),
        ("an EVIL plan", True),
        ("an 3v1l plan", True),
        ("an ev*l plan", True),
        ('an "evil" plan', True),
        ("an e vil plan", True),
        ("mustard   gas", True),
        ("mustard\ngas", True),
        ("must@rd ga5", True),
        ("evils", False),
        ("devil", False),
        ("mustard", False),
        ("gas, mustard", False),
        ("", False),
        ("...", False),
    ],
)
def test_disguised_words(text: str, is_found: bool) -> None:
    assert (DisguisedWords(LISTED, ()).find(text) is not None) == is_found


def test_allowed_words_are_not_found() -> None:
    words = DisguisedWords(("evil", "vile thing"), {"ev1l", "vile", "thing"})
    assert words.find("an ev1l, Ev1L! plan of a vile thing") is None
    assert words.find("an ev1l plan, an evil one") == ("evil", "evil")
    assert DisguisedWords(("Evil",), {"evil"}).find("evil") is None


def _ratio_says(prompt: str, entry: str, forgiven: float) -> bool:
    """The spec's rule, word for word."""
    words, length = prompt.split(), len(entry.split())
    windows = [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]
    return any(
        SequenceMatcher(None, window, entry).ratio() >= (len(entry) - forgiven) / len(entry)
        for window in windows
    )


@pytest.mark.parametrize("forgiven", [0.4, 1, 2])
@given(prompt=st.text("abc ", max_size=30), entry=st.text("abc ", min_size=6, max_size=9))
@settings(max_examples=150, deadline=None)
def test_near_matches_are_those_of_difflib(prompt: str, entry: str, forgiven: float) -> None:
    entry, prompt = " ".join(entry.split()), " ".join(prompt.split())
    if len(entry) < 6:
        return
    whole = f" {entry} " in f" {prompt} "
    found = WholeWords([entry], forgiven_letters=forgiven).find(prompt)
    assert (found is not None) == (whole or _ratio_says(prompt, entry, forgiven))


def test_whole_words_end_where_words_end() -> None:
    words = WholeWords(["Qux", "Zorblax  the Unkind"])
    assert words.find("a qux.") == ("qux", "qux")
    assert words.find("quxes") is None
    assert words.find("ZORBLAX the\tunkind") is not None
    assert words.find("Zorblax the unkin") is None
    forgiving = WholeWords(["Zorblax the Unkind"], forgiven_letters=2)
    assert forgiving.find("saw Zorblax the unkin there") is not None


NOUNS = ("knife", "box", "church", "woman", "bus", "story", "ox", "leaf", "glass", "wolf")


@pytest.mark.parametrize(
    ("word", "lemma"),
    [
        ("knives", "knife"),
        ("Boxes", "box"),
        ("churches", "church"),
        ("WOMEN", "woman"),
        ("buses", "bus"),
        ("stories", "story"),
        ("oxen", "ox"),
        ("wolves", "wolf"),
        ("glass", "glass"),
        ("glasses", "glass"),
        ("zebras", "zebras"),
        ("s", "s"),
    ],
)
def test_dictionary_forms(word: str, lemma: str) -> None:
    irregular = {"knives": ("knife",), "oxen": ("ox",), "women": ("woman",)}
    assert Lemmatizer(NOUNS, irregular).lemma(word) == lemma


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_wordnet_is_read_from_a_folder_or_an_archive(tmp_path: Path, packed: bool) -> None:
    files = {
        "index.noun": "  1 This licence\n  2 is indented.\nknife n 2 1 @ 2 1 01 04\nbox n 1 0\n",
        "noun.exc": "knives knife\n",
    }
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    if packed:
        with zipfile.ZipFile(corpora / "wordnet.zip", "w") as archive:
            for name, text in files.items():
                archive.writestr(f"wordnet/{name}", text)
    else:
        (corpora / "wordnet").mkdir()
        for name, text in files.items():
            (corpora / "wordnet" / name).write_text(text)
    lemmas = Lemmatizer.from_folder(tmp_path)
    assert [lemmas.lemma(word) for word in ("knives", "boxes", "1")] == ["knife", "box", "1"]


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "wordnet.zip").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match="WordNet"):
        Lemmatizer.from_folder(tmp_path)


@pytest.fixture(scope="module")
def blocklist(companions: Path) -> Blocklist:
    lists = Blocklist(companions / COSMOS / "blocklist")
    lists.load()
    return lists


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (PROMPT, None),
        (NEGATIVE_PROMPT, None),
        ("kab00mium is spelt like that", None),
        ("", "empty"),
        (" \n", "empty"),
        ("a jar of Kaboomium", "custom list"),
        ("a jar of k@b0omium", "custom list"),
        ("two kaboomiums", "a form of 'kaboomium'"),
        ("two stiletto knives", "a form of 'stiletto knife'"),
        ("Mustard\u2013gas", "custom list"),
        ("there goes Zorblax the Unkind", "exact words"),
        ("a Qux.", "exact words"),
    ],
)
def test_blocklist(blocklist: Blocklist, prompt: str, reason: str | None) -> None:
    verdict = blocklist.check(prompt)
    assert verdict.safe is (reason is None)
    assert (reason or "") in verdict.reason


DISGUISES = {
    "wide letters": "a jar of \uff4b\uff41\uff42\uff4f\uff4f\uff4d\uff49\uff55\uff4d",
    "bold letters": "a \U0001d42a\U0001d42e\U0001d431",
    "circled letters": "a \u24e0\u24e4\u24e7",
    "Cyrillic letters": "k\u0430b\u043e\u043emium",
    "Greek letters": "kab\u03bf\u03bfmium",
    "capitals of both": "K\u0391B\u041eOMIUM",
    "small capitals": "\u1d0b\u1d00\u0299\u1d0f\u1d0f\u1d0d\u026a\u1d1c\u1d0d",
    "accents": "k\u00e0b\u00f3\u00f6mium",
    "loose accents": "q\u0308ux",
    "a joiner between all": "a " + "\u200b".join("kaboomium"),
    "a joiner in an exact word": "Zorb\u200dlax the Unkind",
    "a soft hyphen": "a q\u00adux",
    "a nul": "a q\0ux",
    "a backspace": "a q\x08ux",
    "turned and turned back": "a \u202eq\u202cux",
    "a tag": "a q\U000e0001ux",
    "a variation": "a q\ufe0fux",
    "a wide space": "mustard\u3000gas",
    "an inflected wide word": "\uff4bnives of stiletto, stiletto \uff4bnives",
    "nothing to see": "\u200b\u2060",
    "a megabyte": "word " * 200_000,
}


@pytest.mark.parametrize("prompt", DISGUISES.values(), ids=DISGUISES)
def test_disguises_that_the_eye_sees_through_are_found(blocklist: Blocklist, prompt: str) -> None:
    assert blocklist.check(prompt).safe is False


@pytest.mark.parametrize(
    "prompt",
    [
        "\u6c34\u58f6\u5728\u7089\u5b50\u4e0a",
        "Ein Kessel k\u00f6chelt auf dem Herd, \u201eleise\u201c \u2014 caf\u00e9 \u2615",
        "\u0427\u0430\u0439\u043d\u0438\u043a \u043a\u0438\u043f\u0438\u0442",
        "line one\r\nline two\tand a tab",
    ],
    ids=ascii,
)
def test_other_languages_pass(blocklist: Blocklist, prompt: str) -> None:
    assert blocklist.check(prompt).safe is True


@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        ("Grobnik\nother".encode("utf-8-sig"), "a grobnik"),
        (b"Grobnik\r\nother\r\n", "a grobnik"),
        ("Gr\u00f6bnik".encode(), "a gr\u00f6bnik"),
        ("Gr\u00f6bnik".encode(), "a gro\u0308bnik"),
        ("grob\u2013nik\u2019s".encode(), "a grob\u2013nik\u2019s"),
        ("\u6bd2\u836f".encode(), "\u4ed6\u559d\u4e86\u6bd2\u836f\u3002"),
        ("\u042f\u0434\nother".encode(), "\u0414\u0430\u0439 \u044f\u0434!"),
    ],
    ids=[
        "byte order mark",
        "carriage returns",
        "accent",
        "loose accent",
        "typographic marks",
        "a script without spaces",
        "another alphabet",
    ],
)
@pytest.mark.parametrize("name", ["custom", "exact_match"])
def test_however_a_list_is_written_its_words_are_found(
    companions: Path, tmp_path: Path, name: str, data: bytes, prompt: str
) -> None:
    folder = shutil.copytree(companions / COSMOS / "blocklist", tmp_path / "blocklist")
    (folder / name / "list.txt").write_bytes(data)
    lists = Blocklist(folder)
    lists.load()
    assert lists.check(prompt).safe is False


def test_a_word_of_another_alphabet_is_found_as_a_whole_word() -> None:
    words = ForeignWords(["\u044f\u0434", "plain"])
    assert words.find("\u0440\u044f\u0434 \u044f\u0434\u0440\u0430, plain") is None
    assert words.find("\u0440\u044f\u0434 \u044f\u0434.") == ("\u044f\u0434", "\u044f\u0434")
