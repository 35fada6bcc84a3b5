"""Tokenizers by name: made for a corpus, or loaded from a folder."""

from collections.abc import Callable, Iterable
from pathlib import Path

from hybrid_jax.data import content, sources
from hybrid_jax.data.content import Content
from hybrid_jax.data.tokenizers import char, gpt2, huggingface, sentencepiece
from hybrid_jax.data.tokenizers.base import DESCRIPTOR, Tokenizer
from hybrid_jax.data.tokenizers.byte import ByteTokenizer
from hybrid_jax.data.tokenizers.ids import IdTokenizer, of_vocabulary
from hybrid_jax.errors import UserError
from hybrid_jax.runtime.decode import parse_json
from hybrid_jax.runtime.files import expanded

# What stands behind the colon of a name, by kind.
_ARGUMENTS = {"sentencepiece": "", "byte": "", "char": "", "gpt2": "FOLDER", "hf": "NAME",
              "ids": "VOCABULARY", "saved": "FOLDER"}  # fmt: skip


def split_name(name: str, *, whole: bool = True) -> tuple[str, str]:
    """Kind and argument of a tokenizer's name.

    Args:
      whole: whether an argument may not be missing.

    Raises:
      UserError: for an unknown kind, a missing argument, or one that the kind does not take.
    """
    kind, _, argument = name.partition(":")
    takes = _ARGUMENTS.get(kind)
    if takes is None or (argument and not takes) or (whole and takes and not argument):
        *names, last = (f"{kind}:{takes}".rstrip(":") for kind, takes in _ARGUMENTS.items())
        raise UserError(f"Unknown tokenizer {name!r}: choose {', '.join(names)} or {last}.")
    return kind, argument


def make_tokenizer(name: str, texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a name, trained where it is to be.

    Args:
      name: "sentencepiece" (trained on `texts`), "byte", "char" (the characters of `texts`),
        "gpt2:FOLDER" with encoder.json and vocab.bpe in that folder, "hf:NAME" with the file
        tokenizer.json, its folder, or a model of the Hugging Face hub, "ids:VOCABULARY" with the
        number of ids, or "saved:FOLDER" for the one of a workdir or of prepared records.
      texts: see `reads_all`.
      vocab_size: N for "sentencepiece"; the others have their own.

    Raises:
      UserError: for an unknown or incomplete `name`, missing files, or an impossible `vocab_size`.
    """
    kind, argument = split_name(name)
    makers: dict[str, Callable[[], Tokenizer]] = {
        "sentencepiece": lambda: sentencepiece.train(texts, vocab_size=vocab_size),
        "byte": ByteTokenizer,
        "char": lambda: char.of_texts(texts),
        "gpt2": lambda: gpt2.load(expanded(argument)),
        "hf": lambda: huggingface.load(huggingface.find(argument)),
        "ids": lambda: of_vocabulary(argument),
        "saved": lambda: load_saved(argument),
    }
    return makers[kind]()


def check(name: str) -> None:
    """Raises UserError as `make_tokenizer` does, as far as that can be known without texts."""
    if split_name(name)[0] not in ("sentencepiece", "char"):
        make_tokenizer(name, (), vocab_size=0)


def reads_all(name: str) -> bool:
    """True if a tokenizer is made for all text, and not for that to train on alone.

    An alphabet only says what can be written. Validation text may have letters of its own.
    """
    return name == "char"


def expected_size(name: str) -> int:
    """N without files and texts, which may give another: GPT-2's for files, and 128 for "char"."""
    kind, argument = split_name(name, whole=False)
    if kind == "saved" and argument:
        return load_saved(argument).vocab_size
    if kind == "ids":
        return of_vocabulary(argument).vocab_size
    return {"byte": ByteTokenizer.vocab_size, "char": 128}.get(kind, 50_257)


def name_of(tokenizer: Tokenizer, folder: str = "") -> str:
    """The name by which a tokenizer can be made anew, from the folder in which it was saved."""
    if isinstance(tokenizer, IdTokenizer):
        return f"ids:{tokenizer.symbols}"
    return f"{tokenizer.name}:{folder}" if tokenizer.name in ("gpt2", "hf") else tokenizer.name


def check_records(name: str, source: str) -> None:
    """Raises UserError for the first line of a source that is not of a tokenizer "ids:…"."""
    if not name.startswith(("ids:", "saved:")) or not (source and sources.contents(source)):
        return  # a pipe is read only once
    tokenizer = make_tokenizer(name, (), vocab_size=0)
    if not isinstance(tokenizer, IdTokenizer):
        return
    for where, text in sources.located(source):
        try:
            tokenizer.encode(text)
        except UserError as error:
            raise UserError(f"{where} is wrong: {error}") from error


def contents(name: str) -> dict[str, Content]:
    """The content of each file that `make_tokenizer` reads. Raises UserError as it does."""
    kind, _, argument = name.partition(":")
    if kind == "gpt2":
        return gpt2.contents(expanded(argument))
    if kind == "saved":
        folder = saved_folder(argument)
        content.stamp(folder / DESCRIPTOR)  # refuses what is no such folder
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return {str(path): content.of_file(path) for path in files}
    return huggingface.contents(huggingface.find(argument)) if kind == "hf" else {}


def saved_folder(place: str) -> Path:
    """The folder of a saved tokenizer: `place`, or the one in it, as workdirs have one."""
    folder = expanded(place)
    return next((f for f in (folder / "tokenizer", folder) if (f / DESCRIPTOR).is_file()), folder)


def load_saved(place: str) -> Tokenizer:
    """The tokenizer of `saved_folder`. Raises UserError as `load_tokenizer`."""
    return load_tokenizer(saved_folder(place))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer saved in a folder.

    Raises:
      UserError: if there is none, or its files are damaged.
    """
    folder = expanded(folder)
    path = folder / DESCRIPTOR
    try:
        descriptor = parse_json(path.read_bytes())
        name, fingerprint = descriptor["name"], descriptor["fingerprint"]
        symbols = int(descriptor.get("vocab_size", 1)) - 1  # of ids
    except OSError as error:
        raise UserError(
            f"{folder} holds no tokenizer ({DESCRIPTOR}: {error.strerror}): prepare the data first."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged, or another program's: name one of Hugging Face hf:{folder}, or "
            "prepare the data again in a new folder."
        ) from error
    loaders: dict[str, Callable[[Path], Tokenizer]] = {
        "byte": lambda folder: ByteTokenizer(),
        "char": char.load,
        "gpt2": gpt2.load,
        "hf": huggingface.load,
        "ids": lambda folder: IdTokenizer(symbols=symbols),
        "sentencepiece": sentencepiece.load,
    }
    if not isinstance(name, str) or name not in loaders:
        raise UserError(f"{path} names an unknown tokenizer, {name!r}: prepare the data again.")
    tokenizer = loaders[name](folder)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"The tokenizer's files in {folder} are not those that {DESCRIPTOR} describes: restore "
            "them, or prepare the data again in a new folder."
        )
    return tokenizer
