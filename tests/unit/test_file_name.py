"""Which names a saved file may be given, and what is said of others."""

import pytest
from comfyui_ovi.ovi_model.save import file_name
from comfyui_ovi.ovi_model.save.file_name import check_prefix, with_name


@pytest.mark.parametrize(
    "prefix",
    [
        "Ovi",
        "video/Ovi",
        "video\\Ovi",
        "a/b/c/",
        "ünï 漢字\u3000(1)",
        ".hidden",
        "a..b",
        "%width%x%height%",
        "x" * 200,
    ],
)
def test_names_inside_the_output_folder(prefix):
    check_prefix(prefix)


@pytest.mark.parametrize(
    ("prefix", "fault"),
    [
        ("../x", "leads out of ComfyUI's output folder"),
        ("video/../../x", "leads out"),
        ("..\\x", "leads out"),
        ("..", "leads out"),
        ("/elsewhere/x", "leads out"),
        ("C:\\x", "leads out"),
        ("C:x", "leads out"),
        ("\\\\server\\share\\x", "leads out"),
        ("", "names no file"),
        ("./", "names no file"),
        ("a\0b", r"holds '\\x00', which no file name can"),
        ("a\nb", r"holds '\\n', which"),
        ("a\ud800", r"holds '\\ud800', which"),
        ("x" * 201, "is too long for a file name: up to 200 bytes"),
        ("\u6f22" * 67, "is too long"),
        ("x/" * 501, "is too long"),
    ],
)
def test_names_that_lead_out_or_are_none(prefix, fault):
    with pytest.raises(
        ValueError, match=f"^filename_prefix '.*' {fault}.*as in 'video/Ovi'"
    ) as caught:
        check_prefix(prefix)
    assert str(caught.value).isprintable()


def test_what_windows_reserves(monkeypatch):
    check_prefix("what?")
    monkeypatch.setattr(file_name, "RESERVED", '<>:"|?*')
    with pytest.raises(ValueError, match=r"holds '\?', which no file name can"):
        check_prefix("what?")


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ("fresh/", "fresh/Ovi"),
        ("a/b//", "a/b//Ovi"),
        ("fresh\\", "fresh/Ovi"),
        ("a\\b\\c", "a/b/c"),
        ("fresh/.", "fresh/Ovi"),
        ("fresh/./", "fresh/./Ovi"),
        ("a./", "a./Ovi"),
        ("a.", "a."),
        ("video/Ovi", "video/Ovi"),
        (".hidden", ".hidden"),
    ],
)
def test_a_folder_alone_gets_a_name(prefix, named):
    check_prefix(prefix)
    assert with_name(prefix) == named
