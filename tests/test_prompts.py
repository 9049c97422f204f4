"""Prompts: where captions are found, what the log says about them, and the text encoder's order and cache."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")
for package in ("diffusers", "transformers"):
    pytest.importorskip(package, reason="needs the extra `train`")

from make_miniature_sd21 import TOKENS, WIDTH, make_miniature  # noqa: E402  (after importorskip)

from training.model.text import DEFAULT_PROMPT, PromptSource, TextConditioner, load_text  # noqa: E402


def write_metadata(folder: Path, *entries: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def test_captions_are_found_in_their_order(tmp_path: Path) -> None:
    write_metadata(tmp_path, {"file_name": "a.png", "text": "from the root"})
    write_metadata(
        tmp_path / "deep",
        {"file_name": "b.png", "text": " from the folder "},
        "",
        {"file_name": "e.png", "text": ""},
    )
    for name in ("a", "deep/b", "deep/c", "deep/e"):
        (tmp_path / f"{name}.txt").write_text(f"beside {name}\n")
    (tmp_path / "deep" / "f.txt").write_text(" \n")
    source = PromptSource(tmp_path)
    assert source.prompt_for(tmp_path / "a.png") == "from the root"
    assert source.prompt_for(tmp_path / "deep" / "b.png") == "from the folder"
    assert source.prompt_for(tmp_path / "deep" / "c.png") == "beside deep/c"
    assert source.prompt_for(str(tmp_path / "deep" / "e.png")) == "beside deep/e"  # an empty caption is none
    assert source.prompt_for(tmp_path / "deep" / "d.png") == DEFAULT_PROMPT
    assert source.prompt_for(tmp_path / "deep" / "f.png") == DEFAULT_PROMPT
    assert PromptSource(tmp_path, default="plain").prompt_for(tmp_path / "d.png") == "plain"
    assert PromptSource(tmp_path, fixed="").prompt_for(tmp_path / "a.png") == ""


def test_a_function_gives_what_no_file_does_once_for_each_image(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("from a file")
    asked = []

    def caption(path: Path) -> str:
        asked.append(path.name)
        return " a tag \n" if path.stem == "b" else ""

    source = PromptSource(tmp_path, caption=caption)
    prompts = [source.prompt_for(tmp_path / f"{name}.png") for name in "abcbc"]
    assert prompts == ["from a file", "a tag", DEFAULT_PROMPT, "a tag", DEFAULT_PROMPT]
    assert asked == ["b.png", "c.png"]
    line = source.describe([tmp_path / f"{name}.png" for name in "abc"])
    assert line.startswith(
        "captions: 2 of 3 images have one (1 from .txt, 1 from a function); 1 get the default"
    )
    assert PromptSource(tmp_path, "same", caption=caption).prompt_for(tmp_path / "d.png") == "same"


def test_metadata_of_the_root_reaches_into_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metadata(
        tmp_path,
        {"file_name": "train/x.png", "text": "a", "extra": 1},
        {"file_name": "train\\y.png", "text": "b"},
    )
    source = PromptSource(tmp_path)
    assert source.prompt_for(tmp_path / "train" / "x.png") == "a"
    assert source.prompt_for(tmp_path / "train" / "y.png") == "b"
    monkeypatch.chdir(tmp_path)
    assert PromptSource(Path()).prompt_for("train/x.png") == "a"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"file_name": "b.png", "text": }', "line 2: not JSON"),
        ('{"file_name": "b.png"}', "line 2: .* text is missing"),
        ('{"text": "b"}', "line 2: .* file_name is missing"),
        ('{"file_name": "b.png", "text": 7}', "line 2: .* text is missing or no text"),
        ('["b.png", "b"]', "line 2: .* file_name is missing"),
        ('{"file_name": "a.png", "text": "again"}', r"line 2: a second caption for a\.png"),
    ],
)
def test_broken_metadata_names_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    write_metadata(tmp_path, {"file_name": "a.png", "text": "good"}, line)
    with pytest.raises(ValueError, match=r"metadata\.jsonl, " + says):
        PromptSource(tmp_path).prompt_for(tmp_path / "a.png")


def test_log_line_counts_captions(tmp_path: Path) -> None:
    images = [tmp_path / f"{name}.png" for name in "abcde"]
    (tmp_path / "c.txt").write_text("side-car")
    write_metadata(
        tmp_path,
        {"file_name": "a.png", "text": "1"},
        {"file_name": "b.png", "text": "2"},
        {"file_name": "z.png", "text": "3"},
    )
    line = PromptSource(tmp_path, default="plain").describe(images)
    assert line == (
        "captions: 3 of 5 images have one (2 from metadata.jsonl, 1 from .txt); 2 get the default 'plain'; "
        "1 captions in metadata.jsonl name none of these images"
    )
    assert (
        PromptSource(tmp_path, "same").describe(images)
        == "captions: the fixed prompt 'same' for all 5 images"
    )
    assert PromptSource(tmp_path).describe(images[:3]).startswith("captions: 3 of 3 images have one")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextConditioner:
    return load_text(make_miniature(tmp_path_factory.mktemp("sd21")))


def test_embeddings_come_in_the_order_of_the_prompts(text: TextConditioner) -> None:
    prompts = ["a cat", "the photo", "a cat", "sharp", "the photo"]
    embeddings = text(prompts)
    assert embeddings.shape == (5, TOKENS, WIDTH) == (5, text.length, text.width)
    for prompt, embedding in zip(prompts, embeddings, strict=True):
        assert torch.equal(embedding, text([prompt])[0])
    assert torch.equal(embeddings[0], embeddings[2])
    assert float((embeddings[0] - embeddings[1]).abs().mean()) > 0.05
    assert not embeddings.requires_grad


def test_embeddings_are_those_of_transformers(text: TextConditioner) -> None:
    prompts = ["the sharp photo of a house and very many other things in it", "", "Zürich"]
    tokens = text.tokenizer(
        prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    assert tokens.input_ids[0, -1] == text.tokenizer.eos_token_id  # cut at the end, not at the front
    assert tokens.input_ids[1, 2:].tolist() == [text.tokenizer.pad_token_id] * (TOKENS - 2)
    expected = text.encoder(tokens.input_ids).last_hidden_state
    torch.testing.assert_close(text(prompts), expected, atol=1e-5, rtol=1e-5)


def test_each_text_is_encoded_once(text: TextConditioner) -> None:
    small = TextConditioner(text.tokenizer, text.encoder, cache_size=2)
    calls: list[int] = []
    hook = small.encoder.register_forward_hook(lambda *_: calls.append(1))
    small(["a", "b", "a"])
    small(["b", "a"])
    assert len(calls) == 2
    small(["c"])  # pushes out b, which was used longest ago
    small(["a"])
    assert len(calls) == 3
    assert small(["d", "e", "f"]).shape[0] == 3  # more than the cache holds
    hook.remove()


def test_encoder_stays_frozen_and_follows_dtype(text: TextConditioner, tmp_path: Path) -> None:
    text.train()
    assert not text.encoder.training
    assert not any(parameter.requires_grad for parameter in text.parameters())
    text.save(tmp_path)
    copy = load_text(tmp_path)
    assert torch.equal(copy(["a photo"]), text(["a photo"]))
    assert copy.bfloat16()(["a photo"]).dtype == torch.bfloat16


def test_saved_text_encoder_has_the_published_names(text: TextConditioner, tmp_path: Path) -> None:
    from safetensors import safe_open

    text.save(tmp_path)
    with safe_open(tmp_path / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118  (not a dict)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (tmp_path / "tokenizer").iterdir()}


@pytest.mark.parametrize(
    ("prompts", "says"), [("one text", "a list with one prompt"), ([], "at least one prompt")]
)
def test_wrong_prompts_are_refused(text: TextConditioner, prompts: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        text(prompts)


def test_a_folder_without_text_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no text encoder: text_encoder/config\.json is missing"):
        load_text(tmp_path)
