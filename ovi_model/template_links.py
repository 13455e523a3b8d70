"""Keeps links to templates under their earlier names: `?template=ovi_miniature` still opens one."""

from functools import partial
from pathlib import Path

from aiohttp import web

from . import core_facts

FOLDER = Path(__file__).parents[1]  # not resolved: ComfyUI knows a link by its own name
# Earlier names, and what the templates are called now.
RENAMED = {
    "ovi_miniature": "Ovi_13_All_nodes_miniature",
    "ovi_text_to_audio_video": "Ovi_14_All_nodes_text",
    "ovi_image_to_audio_video": "Ovi_15_All_nodes_picture",
    "ovi_recording_to_video": "Ovi_04_Voice_recording_to_video",
    "ovi_sound_for_video": "Ovi_05_Sound_for_a_video",
    "ovi_three_shots": "Ovi_06_Film_of_three_shots",
    "ovi_few_step_lora": "Ovi_07_Fast_in_six_steps",
    "ovi_two_pass": "Ovi_08_Two_passes_larger",
    "ovi_model_upscale": "Ovi_09_Upscaled_by_a_model",
    "ovi_lora_upscale": "Ovi_10_LoRA_and_upscaler",
    "ovi_simple_ksampler": "Ovi_11_One_KSampler",
    "ovi_multi_gpu": "Ovi_12_Two_graphics_cards",
}


def install() -> None:
    """Give the server a route for each earlier name; without a server there are no links."""
    server = core_facts.find_server()
    if server is None:
        return
    for old, new in RENAMED.items():
        path = f"/workflow_templates/{FOLDER.name}/{old}.json"
        server.routes.get(path)(partial(_send, FOLDER / "workflows" / f"{new}.json"))


async def _send(path: Path, _request: web.Request) -> web.FileResponse:
    return web.FileResponse(path)
