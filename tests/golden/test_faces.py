"""Help and tables look as they did; `python -m tests.golden --write` keeps what they look like."""

from tests.golden.faces import WIDTH, kept, now


def test_people_see_what_they_saw_and_no_torch_is_loaded_for_it() -> None:
    texts, imported = now()
    golden = kept()
    assert texts.keys() == golden.keys()
    for name, text in texts.items():
        assert text.splitlines() == golden[name].splitlines(), name
    assert imported.isdisjoint({"torch", "torchvision", "numpy", "onnx", "onnxruntime"})


def test_every_line_fits_its_screen_and_shows_no_code_of_a_terminal() -> None:
    for name, text in kept().items():
        assert "\x1b" not in text
        if name.startswith("help/"):
            assert max(map(len, text.splitlines())) <= WIDTH, name
