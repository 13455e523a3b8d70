"""Latents in files: kept after sampling, and taken up again."""

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..ovi_model.core_facts import answer
from ..ovi_model.file_digest import file_digest
from ..ovi_model.save.file_name import check_prefix, with_name
from ..ovi_model.save.latent_file import SUFFIX, pixels, read_latent, write_latent
from .output_folder import next_file, workflow_tags

FOLDER = "latents"  # in the output folder, where latents are saved unless another is typed
OF_OUTPUT = " [output]"  # core's mark of a file in its output folder


class OviSaveLatent(io.ComfyNode):
    """A latent of picture and sound to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviSaveLatent",
            display_name="Ovi Save Latent",
            category="Ovi/latent",
            description="Saves a latent of picture and sound, with its masks, as one file, with "
            "the workflow inside.",
            inputs=[
                io.Latent.Input(
                    "latent", tooltip="Latent of picture and sound, from 'Ovi Latent' or a sampler."
                ),
                io.String.Input(
                    "filename_prefix",
                    default=f"{FOLDER}/Ovi",
                    tooltip="Folder and name inside ComfyUI's output folder; a free number is "
                    "added. %date:yyyy-MM-dd%, %width% and the like are filled in.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The same latent, for samplers and 'Ovi Decode'."
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, filename_prefix: str) -> io.NodeOutput:
        """Return the latent as it is."""
        check_prefix(filename_prefix)
        kind = io.FolderType.output
        first, subfolder = next_file(
            with_name(filename_prefix), pixels(latent), SUFFIX, kind, "latent"
        )
        path = write_latent(first, latent, workflow_tags(cls.hidden))
        saved = ui.SavedResult(path.name, subfolder, kind)
        return io.NodeOutput(latent, ui={"latents": [saved]})


class OviLoadLatent(io.ComfyNode):
    """A file of 'Ovi Save Latent' to a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OviLoadLatent",
            display_name="Ovi Load Latent",
            category="Ovi/latent",
            description="Loads a latent of picture and sound that 'Ovi Save Latent' saved, number "
            "by number as it was.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_list_files(),
                    tooltip="File in ComfyUI's input folder, or [output] in output/latents, where "
                    "'Ovi Save Latent' saves.",
                )
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Picture and sound with their masks, for samplers and 'Ovi Decode'.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Say that a file is missing before anything is loaded."""
        return answer(_path_of, file=file)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        """Return what changes with the content, so that another file of that name is read."""
        return file_digest(_path_of(file)).hex()

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Return the latent."""
        return io.NodeOutput(read_latent(_path_of(file)))


def _list_files() -> list[str]:
    """Name the files in the input folder, and in the folder where latents are saved."""
    saved = Path(folder_paths.get_output_directory(), FOLDER)
    own = [f"{FOLDER}/{name}{OF_OUTPUT}" for name in _files_in(saved)]
    return [*_files_in(Path(folder_paths.get_input_directory())), *own]


def _files_in(folder: Path) -> list[str]:
    """Return the sorted names of whole files in a folder, which may be missing."""
    if not folder.is_dir():
        return []
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() == SUFFIX and not path.name.startswith(".") and path.is_file()
    )


def _path_of(file: str) -> Path:
    """Return a listed file's path; raise ValueError if there is none, or it leads elsewhere."""
    name, folder = folder_paths.annotated_filepath(str(file))
    folder = Path(folder or folder_paths.get_input_directory()).absolute()
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder) or not os.path.isfile(path):
        raise ValueError(
            f"There is no latent file {name[:100]!a}. Choose one from the list; put files into "
            "ComfyUI's input folder, and reload the page (R) to see them."
        )
    return path
