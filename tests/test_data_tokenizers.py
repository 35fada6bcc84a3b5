"""Tokenizers: exact round trips, known ids, and tokenizers read back from folders."""

import hashlib
import json
import pickle
import sys

import numpy as np
import pytest

from hybrid_jax.data import tokenizers
from hybrid_jax.data.tokenizers import sentencepiece as sentencepiece_bpe
from hybrid_jax.errors import UserError

CORPUS = [f"Document {n} tells of {n * n} hares, {n % 7} foxes and a river.\n" for n in range(90)]
TEXTS = [
    "",
    " ",
    "plain words",
    "  leading,  double  and trailing  ",
    "tab\tnewline\n\n\r\n    indented",
    "naïve façade 日本語 한국어 🙂 e\u0301 \u00a0\u3000\ufeff",
    "▁ the ▁▁ mark ▁ of spaces▁",
    "<s> </s> <unk> <pad> <0x0A> <|endoftext|> [MASK]",
    "nul \0 and \x7f",
]


BYTEWISE = ["sentencepiece", "byte", "gpt2", "hf"]


@pytest.fixture(scope="module", params=[*BYTEWISE, "char"])
def tokenizer(request) -> tokenizers.Tokenizer:
    if request.param == "gpt2":
        return make(f"gpt2:{request.getfixturevalue('shared_data') / 'gpt2'}")
    if request.param == "hf":
        folder = request.getfixturevalue("tmp_path_factory").mktemp("hf")
        return make(write_hf(folder, special=["<s>", "</s>", "[MASK]"]))
    return make(request.param, [*TEXTS, *CORPUS])


def make(name: str, texts=CORPUS, vocab_size: int = 320) -> tokenizers.Tokenizer:
    return tokenizers.make_tokenizer(name, texts, vocab_size=vocab_size)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert not np.isin(ids, [tokenizer.bos, tokenizer.eos]).any()
    assert np.all((ids >= 0) & (ids < tokenizer.vocab_size))


def test_parts_decode_as_one(tokenizer):
    ids = np.concatenate([tokenizer.encode(text) for text in TEXTS])
    assert tokenizer.decode(ids) == "".join(TEXTS)


def test_batches_are_encoded_as_single_texts(tokenizer):
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == np.int32


def test_special_tokens_and_mask(tokenizer):
    mask = tokenizer.vocab_size
    first, second = tokenizer.encode("ab"), tokenizer.encode("cd")
    ids = [tokenizer.bos, mask, *first, mask, mask, *second, tokenizer.eos]
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == "abcd"
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[[tokenizer.bos, tokenizer.eos]].tolist() == [0, 0]


@pytest.mark.parametrize("tokenizer", BYTEWISE, indirect=True)
def test_bytes_that_are_no_text_are_replaced(tokenizer):
    ids = tokenizer.encode("\u2603")  # three bytes, more than one token in each of these
    assert len(ids) > 1
    assert set(tokenizer.decode(ids[:1])) == {"\ufffd"}
    mask = tokenizer.vocab_size
    assert tokenizer.decode([*ids[:1], mask, *tokenizer.encode("a")]) == "\ufffda"


@pytest.mark.parametrize("offset", [1, 1000])
def test_ids_above_mask_are_refused(tokenizer, offset):
    with pytest.raises(UserError) as caught:
        tokenizer.decode([0, tokenizer.vocab_size + offset])
    assert str(caught.value) == (
        f"Token id {tokenizer.vocab_size + offset} is outside this tokenizer's "
        f"0 ... {tokenizer.vocab_size - 1}: it comes from another tokenizer."
    )
    with pytest.raises(UserError, match="Token id -1 is outside"):
        tokenizer.decode([-1])


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = tokenizers.load_tokenizer(tmp_path)
    for name in ("name", "vocab_size", "bos", "eos", "fingerprint"):
        assert getattr(again, name) == getattr(tokenizer, name)
    for text in TEXTS:
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


def test_byte_tokenizer():
    byte = make("byte")
    assert (byte.vocab_size, byte.bos, byte.eos) == (258, 256, 257)
    assert byte.encode("aé").tolist() == [97, 0xC3, 0xA9]


def test_sentencepiece_is_reproducible_and_of_the_size_asked_for():
    first, second = make("sentencepiece"), make("sentencepiece")
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != make("sentencepiece", ["other words ", *CORPUS]).fingerprint
    assert (first.vocab_size, first.bos, first.eos) == (320, 1, 2)
    assert len(first.encode(CORPUS[0])) < len(CORPUS[0]) / 2


def test_sentencepiece_learns_indentation():
    texts = ["if x:\n        return y\n" * 50]
    assert len(make("sentencepiece", texts, 290).encode("        ")) < 8


def test_sentencepiece_reads_no_more_than_it_needs():
    read = []
    texts = (read.append(text) or text for text in CORPUS)
    sentencepiece_bpe.train(texts, vocab_size=300, training_bytes=3000)
    assert 3000 < sum(map(len, read)) < 3200


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (CORPUS, 50_000, "vocab_size=50000 is more than this text supports: choose at most "),
        (CORPUS, 100, "vocab_size=100 is too small for the bytes and characters of this text: "),
        ([], 300, "There is no text to train a tokenizer on: use more text."),
    ],
)
def test_sentencepiece_needs_a_possible_size(texts, vocab_size, message):
    with pytest.raises(UserError) as caught:
        make("sentencepiece", texts, vocab_size)
    assert str(caught.value).startswith(message)


def test_the_advised_sizes_are_possible():
    for asked in (50_000, 100):
        with pytest.raises(UserError) as caught:
            make("sentencepiece", CORPUS, asked)
        advised = int(str(caught.value).split("choose at ")[1].split(",")[0].split()[1].strip("."))
        assert make("sentencepiece", CORPUS, advised).vocab_size == advised


def test_gpt2_ids_are_the_published_ones(shared_data):
    known = make(f"gpt2:{shared_data / 'gpt2'}")
    assert (known.vocab_size, known.bos, known.eos) == (50257, 50256, 50256)
    assert known.encode("Hello world").tolist() == [15496, 995]
    assert known.encode("I've  seen 3 <|endoftext|>").tolist()[:5] == [40, 1053, 220, 1775, 513]


MERGES = "Ġ t\nh e\nĠt he\n# #\n"


def write_bpe(folder, *, first=(), last=("<|endoftext|>",), merges=f"#version: 0.2\n{MERGES}"):
    """A small byte-level BPE with special tokens, as Hugging Face names the files."""
    seen = [chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))]
    unseen = [chr(256 + n) for n in range(256 - len(seen))]
    made = [line.replace(" ", "") for line in MERGES.splitlines()]
    ids = {token: i for i, token in enumerate([*first, *seen, *unseen, *made, *last])}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8", newline="")
    return f"gpt2:{folder}"


@pytest.mark.parametrize(
    ("first", "last", "size", "bos", "eos"),
    [
        ([], ["<|endoftext|>"], 261, 260, 260),
        ([], ["<|endoftext|>", "<pad>", "[SEP]"], 263, 260, 260),
        (["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"], 265, 0, 2),
        (["[PAD]", "<|endoftext|>"], [], 262, 1, 1),
        ([], [], 261, 260, 260),  # an end that the files leave out
    ],
)
def test_gpt2_files_may_have_special_tokens(tmp_path, first, last, size, bos, eos):
    bpe = make(write_bpe(tmp_path, first=first, last=last))
    assert (bpe.vocab_size, bpe.bos, bpe.eos) == (size, bos, eos)
    the, hashes = 258 + len(first), 259 + len(first)
    text = "the <pad> the##\x00é"
    ids = bpe.encode(text)
    assert [the, hashes] == [i for i in ids if i >= the]
    assert bpe.decode([bpe.bos, *ids, *range(len(first)), bpe.vocab_size, *ids]) == 2 * text
    assert bpe.token_bytes.shape == (size,)
    assert bpe.token_bytes[ids].sum() == len(text.encode())
    assert np.flatnonzero(bpe.token_bytes == 0).size == size - 260
    bpe.save(tmp_path)
    assert tokenizers.load_tokenizer(tmp_path).encode(text).tolist() == ids.tolist()


@pytest.mark.parametrize(
    "merges", [MERGES, f"#version: 0.2\n{MERGES}\n\n", f"#version: 0.2\n{MERGES}".strip()]
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_merges_of_gpt2_with_another_beginning_or_end(tmp_path, merges, end):
    bpe = make(write_bpe(tmp_path, merges=merges.replace("\n", end)))
    assert bpe.encode(" the##").tolist() == [258, 259]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"last": ["<|endoftext|>", "word"]},
            "do not belong together: only one of them has 'word'",
        ),
        ({"merges": MERGES[:-4]}, "do not belong together: only one of them has '##'"),
        ({"merges": f"{MERGES}a b\n"}, "do not belong together: only one of them has 'ab'"),
        ({"merges": "a b c\n"}, "are damaged at the merge 'a b c'"),
        ({"merges": "日 b\n"}, "are damaged at the merge '日 b'"),
        ({"merges": "h e\nĠ t\nĠt he\n# #\n"}, "differ in the order of their tokens"),
        ({"last": ["a"]}, "do not give each token an id from 0 on"),
    ],
)
def test_gpt2_files_that_are_no_bpe(tmp_path, change, message):
    with pytest.raises(UserError) as caught:
        make(write_bpe(tmp_path, **change))
    assert f"vocab.json and merges.txt in {tmp_path} {message}" in str(caught.value)


def test_gpt2_needs_both_files(tmp_path):
    write_bpe(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError) as caught:
        make(f"gpt2:{tmp_path}")
    assert str(caught.value) == (
        f"The GPT-2 tokenizer needs the files vocab.json and merges.txt in {tmp_path}: "
        f"{tmp_path}/merges.txt: No such file or directory."
    )
    write_bpe(tmp_path)
    for content, message in [
        (b"[1, 2]", "do not give each token"),
        (b'{"a": ', "are damaged"),
        (b"[" * 100_000, "are damaged"),
        (b'{"\xff": 0}', "are damaged"),
    ]:
        (tmp_path / "vocab.json").write_bytes(content)
        with pytest.raises(UserError, match=message):
            make(f"gpt2:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, f"Unknown tokenizer {name!r}: choose sentencepiece, byte, char, gpt2:FOLDER, "
           "hf:NAME, ids:VOCABULARY or saved:FOLDER.")
          for name in ("words", "byte:x", "char:x", "gpt2", "hf:")),
        *((f"ids:{size}", f"The tokenizer ids:{size} does not say how many ids there are: write "
           "ids:VOCABULARY, such as ids:128 for the ids 0 … 127.")
          for size in ("x", "-1", "1.5", "²", "9" * 5000)),
        ("ids:0", "The tokenizer ids:0 must have 1 … 2147483645 ids."),
        ("ids:2147483646", "The tokenizer ids:2147483646 must have 1 … 2147483645 ids."),
    ],
)  # fmt: skip
def test_unknown_tokenizers(name, message):
    with pytest.raises(UserError) as caught:
        make(name)
    assert str(caught.value) == message


# Characters ----------------------------------------------------------------------------------


def test_characters_are_in_the_order_of_unicode():
    one, other = make("char", ["cab", "d🙂"]), make("char", ["🙂dcba" * 9])
    assert one.encode("abcd🙂").tolist() == [0, 1, 2, 3, 4]
    assert (one.vocab_size, one.bos, one.eos) == (6, 5, 5)
    assert one.fingerprint == other.fingerprint != make("char", ["abc"]).fingerprint


def test_unknown_characters_are_refused():
    with pytest.raises(UserError) as caught:
        make("char", ["abc"]).encode("baé")
    assert str(caught.value) == (
        "The character 'é' (U+00E9) is not among the 3 of this tokenizer, those of the text that "
        "it was made for: leave it out, or use tokenizer=byte."
    )
    with pytest.raises(UserError, match="no text to take characters from"):
        make("char", [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"abd"', "are not those that"),
        ('"ab', "is damaged"),
        ('["a"]', "is damaged"),
        ('""', "is damaged"),
        ('"\\ud800"', "is damaged"),
    ],
)
def test_damaged_alphabets_are_refused(tmp_path, content, message):
    make("char", ["abc"]).save(tmp_path)
    (tmp_path / "characters.json").write_text(content)
    with pytest.raises(UserError, match=message):
        tokenizers.load_tokenizer(tmp_path)


# Ids -----------------------------------------------------------------------------------------


def test_ids_are_read_and_written(tmp_path):
    ids = make("ids:128")
    assert (ids.vocab_size, ids.bos, ids.eos) == (129, 128, 128)
    assert ids.encode(" 3 127\r\n0\n").tolist() == [3, 127, 0]
    assert ids.decode([128, 3, 127, 128, 0]) == "3 127 0 "
    assert ids.decode([3, 129, 129, 0]) == "3 0 "
    # Parts join to the whole.
    assert ids.encode(ids.decode([1, 2]) + ids.decode([3])).tolist() == [1, 2, 3]
    assert not ids.token_bytes.any()
    ids.save(tmp_path)
    assert tokenizers.load_tokenizer(tmp_path) == ids
    assert make("ids:127").fingerprint != ids.fingerprint
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    for size, message in ((127, "are not those that"), ("many", "is damaged")):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**values, "vocab_size": size}))
        with pytest.raises(UserError, match=message):
            tokenizers.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3 128", "The id 128 of the record '3 128' is outside 0 … 127, those of the tokenizer "),
        ("9" * 5000, f"The id {'9' * 12} of the record '{'9' * 40}…' is outside 0 … 127"),
        ("1,2", "The record '1,2' holds ',': write ids separated by spaces, such as '3 17 4'."),
        ("1\t2", r"The record '1\t2' holds '\t': write ids separated by spaces"),
        ("-1", "The record '-1' holds '-': write ids"),
        ("٣", "The record '٣' holds '٣': write ids"),
    ],
)
def test_texts_that_are_no_ids(text, message):
    with pytest.raises(UserError) as caught:
        make("ids:128").encode(text)
    assert str(caught.value).startswith(message)


# Hugging Face --------------------------------------------------------------------------------


def write_hf(folder, kind="bytes", special=()) -> str:
    """A tokenizer.json trained on the corpus: of bytes, "words" or "spaces" (as of Llama 2)."""
    library = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    pre, decoders, trainers = library.pre_tokenizers, library.decoders, library.trainers
    common = {"vocab_size": 320, "show_progress": False}
    if kind == "words":
        made = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
        made.normalizer = library.normalizers.BertNormalizer()
        made.pre_tokenizer, made.decoder = pre.BertPreTokenizer(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(special_tokens=["[UNK]", *special], **common)
    elif kind == "spaces":
        made = library.Tokenizer(library.models.BPE(byte_fallback=True))
        made.pre_tokenizer = pre.Metaspace(split=False)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(special_tokens=list(special), **common)
    else:
        made = library.Tokenizer(library.models.BPE())
        made.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        common["initial_alphabet"] = pre.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=list(special), **common)
    made.train_from_iterator(CORPUS, trainer)
    values = json.loads(made.to_str())
    if kind == "spaces":
        ids = values["model"]["vocab"]
        ids |= {f"<0x{byte:02X}>": len(ids) + byte for byte in range(256)}
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    return f"hf:{folder}"


@pytest.mark.parametrize(
    ("special", "config", "bos", "eos"),
    [
        (["<s>", "</s>"], None, "<s>", "</s>"),
        (["[CLS]", "[SEP]", "[MASK]"], None, "[CLS]", "[SEP]"),
        (["<|endoftext|>"], None, "<|endoftext|>", "<|endoftext|>"),
        (["</s>"], None, "</s>", "</s>"),
        (["<s>", "</s>", "<end>"], {"eos_token": "<end>"}, "<s>", "<end>"),
        (["<s>", "<a>"], {"bos_token": {"content": "<a>"}, "eos_token": None}, "<a>", "<a>"),
        (["<s>", "<a>"], {"cls_token": "<a>", "eos_token": "<b>"}, "<a>", "<a>"),
        ([], None, None, None),
    ],
)
def test_hf_files_tell_bos_and_eos(tmp_path, special, config, bos, eos):
    name = write_hf(tmp_path, special=special)
    with pytest.raises(UserError, match=f"name one of Hugging Face {name}, or prepare"):
        make(f"saved:{tmp_path}")
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    made = make(name)
    size = 320
    # Without an end in the files, it is one more.
    ids = {token: i for i, token in enumerate(special)} | {None: size}
    assert (made.bos, made.eos) == (ids[bos], ids[eos])
    assert made.vocab_size == size + (eos is None)
    assert made.decode([made.bos, *made.encode("hares"), made.eos]) == "hares"
    copy = tmp_path / "copy"
    copy.mkdir()
    made.save(copy)
    for again in (tokenizers.load_tokenizer(copy), make(f"hf:{copy}")):
        assert (again.bos, again.eos, again.fingerprint) == (made.bos, made.eos, made.fingerprint)


def test_special_tokens_of_hf_are_text_in_texts(tmp_path):
    """Even in another process, and if the file does not say that they are special."""
    name = write_hf(tmp_path, special=["</s>"])
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["added_tokens"][0]["special"] = False
    path.write_text(json.dumps(values), encoding="utf-8")
    for made in (make(name), pickle.loads(pickle.dumps(make(name)))):
        ids = made.encode("one</s>two")
        assert made.eos not in ids
        assert made.decode([*ids, made.eos]) == "one</s>two"
        assert made.token_bytes[made.eos] == 0


def test_hf_encodes_whole_texts_always_in_the_same_way(tmp_path):
    plain = make(write_hf(tmp_path, special=["<s>", "</s>"]))
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    values["padding"] = {
        "strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<s>",
    }  # fmt: skip
    values["model"]["dropout"] = 0.5
    ends = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    values["post_processor"] = {
        "type": "TemplateProcessing", "single": ends, "pair": ends,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }  # fmt: skip
    path.write_text(json.dumps(values), encoding="utf-8")
    made = make(f"hf:{path}")
    np.testing.assert_array_equal(made.encode(CORPUS[8]), plain.encode(CORPUS[8]))


def test_hf_with_spaces_in_front(tmp_path):
    made = make(write_hf(tmp_path, "spaces", special=["<s>", "</s>"]))
    text = "Document  of hares 日本\n é"
    ids = made.encode(text)
    assert made.decode(ids) == text
    assert made.token_bytes[ids].sum() == len(f" {text}".encode())


def test_hf_that_changes_texts_counts_the_bytes_of_what_comes_back(tmp_path):
    made = make(write_hf(tmp_path, "words", special=["[SEP]"]))
    ids = made.encode("FOXES and  狐 a rivér")
    assert made.decode(ids) == "foxes and a river"
    assert made.token_bytes[ids].sum() == len(" foxes and a river")
    (unknown,) = made.encode("狐")
    assert made.token_bytes[unknown] == 0


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 5}', "[" * 100_000])
def test_hf_files_that_are_none(tmp_path, content):
    name = write_hf(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer.json is no tokenizer.json of Hugging Face"):
        make(name)
    with pytest.raises(UserError, match=r"none.json cannot be read \(No such file"):
        make(f"hf:{tmp_path}/none.json")


def test_hf_names_of_the_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    write_hf(tmp_path)

    def fetch(name, **_):
        if name != "someone/model":
            raise OSError("no network")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert make("hf:someone/model").fingerprint == make(f"hf:{tmp_path}").fingerprint
    assert [*tokenizers.contents("hf:someone/model")] == [f"{tmp_path}/tokenizer.json"]
    said = r"can be fetched \(no network\): name a folder with tokenizer.json, or the file, such as"
    with pytest.raises(UserError, match=said):
        make("hf:no-model-of-this-name")


def test_hf_needs_its_package(tmp_path, monkeypatch):
    name = write_hf(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs tokenizers: install it with pip install 'hybrid_j"):
        make(name)


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        tokenizers.load_tokenizer(tmp_path)
    make("sentencepiece").save(tmp_path)
    model = tmp_path / "sentencepiece.model"
    whole = model.read_bytes()
    for content, message in [
        (whole[: len(whole) // 2], "is damaged"),
        (b"", "is damaged"),
        (whole.replace(b"hares", b"harps"), "are not those that"),
    ]:
        assert hashlib.sha256(content).digest() != hashlib.sha256(whole).digest()
        model.write_bytes(content)
        with pytest.raises(UserError, match=message):
            tokenizers.load_tokenizer(tmp_path)
    model.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        tokenizers.load_tokenizer(tmp_path)
    for text, message in [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({"name": "words", "fingerprint": ""}), "unknown tokenizer, 'words'"),
    ]:
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            tokenizers.load_tokenizer(tmp_path)


def test_a_saved_tokenizer_has_a_name_that_makes_it_anew(tmp_path):
    for made in (make("byte"), make("ids:7"), make(write_hf(tmp_path, special=["</s>"]))):
        folder = tmp_path / made.name
        folder.mkdir()
        made.save(folder)
        assert make(tokenizers.name_of(made, str(folder))).fingerprint == made.fingerprint
