"""Takes the picture of every help page: each node on ComfyUI's own page, the titles of the nodes
that it is usually wired to above and below.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from browser import NoBrowserError, find_chromium
from comfy_page import ComfyPage, open_page
from comfy_server import REPOSITORY, ServerError, running_server
from PIL import Image

PAGES = REPOSITORY / "web" / "docs"
QUALITY = 80
# Pixels.
CORNER = 160  # from the window's corner to the first node, beside what the page keeps there
GAP = 50  # from the end of a node to the place of the next, with its title
MARGIN = 28  # around all of them
TITLE = 30  # of a node, above its place
WIDTH = 340  # of the node: legible in a panel of help, which is 270 wide
# Node.output > Node.input
WIRINGS = {
    "OviModelLoader": ["OviModelLoader.model > OviGuidance.model"],
    "OviLoraLoader": [
        "UNETLoader.MODEL > OviLoraLoader.model",
        "OviLoraLoader.model > OviGuidance.model",
    ],
    "OviTextEncoderLoader": ["OviTextEncoderLoader.CLIP > OviTextEncode.clip"],
    "OviAudioVAELoader": ["OviAudioVAELoader.VAE > OviDecode.audio_vae"],
    "OviMiniature": [
        "OviMiniature.model > KSampler.model",
        "OviMiniature.clip > OviTextEncode.clip",
        "OviMiniature.vae > OviDecode.vae",
        "OviMiniature.audio_vae > OviDecode.audio_vae",
        "OviTextEncode.positive > KSampler.positive",
        "OviTextEncode.negative > KSampler.negative",
        "KSampler.LATENT > OviDecode.samples",
    ],
    "OviMendPrompt": [
        "OviMendPrompt.prompt > PreviewAny.source",
        "OviMendPrompt.prompt > OviTextEncode.prompt",
    ],
    "OviTextEncode": [
        "OviTextEncoderLoader.CLIP > OviTextEncode.clip",
        "OviTextEncode.positive > CFGGuider.positive",
        "OviTextEncode.negative > CFGGuider.negative",
    ],
    "OviImageSize": [
        "LoadImage.IMAGE > OviImageSize.image",
        "OviImageSize.width > OviLatent.width",
        "OviImageSize.height > OviLatent.height",
    ],
    "OviLatent": [
        "LoadImage.IMAGE > OviLatent.start_image",
        "VAELoader.VAE > OviLatent.vae",
        "OviLatent.latent > SamplerCustomAdvanced.latent_image",
    ],
    "OviHoldPictures": [
        "OviLatent.latent > OviHoldPictures.latent",
        "VAELoader.VAE > OviHoldPictures.vae",
        "LoadImage.IMAGE > OviHoldPictures.images",
        "OviHoldPictures.latent > KSampler.latent_image",
    ],
    "OviHoldSound": [
        "OviLatent.latent > OviHoldSound.latent",
        "OviAudioVAELoader.VAE > OviHoldSound.audio_vae",
        "LoadAudio.AUDIO > OviHoldSound.audio",
        "OviHoldSound.latent > KSampler.latent_image",
        "OviHoldSound.audio > OviSaveVideo.audio",
    ],
    "OviTimeMask": [
        "OviLoadLatent.latent > OviTimeMask.latent",
        "OviTimeMask.latent > KSampler.latent_image",
    ],
    "OviContinue": [
        "GetVideoComponents.images > OviContinue.images",
        "GetVideoComponents.audio > OviContinue.audio",
        "GetVideoComponents.fps > OviContinue.fps",
        "VAELoader.VAE > OviContinue.vae",
        "OviAudioVAELoader.VAE > OviContinue.audio_vae",
        "OviContinue.latent > KSampler.latent_image",
    ],
    "OviAttention": [
        "UNETLoader.MODEL > OviAttention.model",
        "OviAttention.model > OviGuidance.model",
        "OviAttention.report > PreviewAny.source",
    ],
    "OviGuidance": ["UNETLoader.MODEL > OviGuidance.model", "OviGuidance.model > CFGGuider.model"],
    "OviReferences": [
        "OviTextEncode.positive > OviReferences.positive",
        "OviTextEncode.negative > OviReferences.negative",
        "OviLatent.latent > OviReferences.latent",
        "VAELoader.VAE > OviReferences.vae",
        "OviAudioVAELoader.VAE > OviReferences.audio_vae",
        "LoadImage.IMAGE > OviReferences.image",
        "LoadAudio.AUDIO > OviReferences.voice",
        "OviReferences.positive > KSampler.positive",
        "OviReferences.negative > KSampler.negative",
    ],
    "OviReferenceGuidance": [
        "UNETLoader.MODEL > OviReferenceGuidance.model",
        "OviReferenceGuidance.model > KSampler.model",
    ],
    "OviReferenceGuider": [
        "UNETLoader.MODEL > OviReferenceGuider.model",
        "OviReferences.positive > OviReferenceGuider.positive",
        "OviReferences.negative > OviReferenceGuider.negative",
        "OviReferenceGuider.guider > SamplerCustomAdvanced.guider",
    ],
    "OviSteer": ["OviGuidance.model > OviSteer.model", "OviSteer.model > KSampler.model"],
    "OviScheduler": ["OviScheduler.sigmas > SamplerCustomAdvanced.sigmas"],
    "OviStreamingSampler": ["OviStreamingSampler.sampler > SamplerCustomAdvanced.sampler"],
    "OviSamplerUniPC": ["OviSamplerUniPC.sampler > SamplerCustomAdvanced.sampler"],
    "OviSeparateLatent": [
        "SamplerCustomAdvanced.output > OviSeparateLatent.latent",
        "OviSeparateLatent.video_latent > VAEDecode.samples",
        "OviSeparateLatent.audio_latent > VAEDecodeAudio.samples",
    ],
    "OviConcatLatent": [
        "OviLatent.latent > OviSeparateLatent.latent",
        "OviSeparateLatent.video_latent > OviConcatLatent.video_latent",
        "VAEEncodeAudio.LATENT > SetLatentNoiseMask.samples",
        "SolidMask.MASK > SetLatentNoiseMask.mask",
        "SetLatentNoiseMask.LATENT > OviConcatLatent.audio_latent",
        "OviConcatLatent.latent > KSampler.latent_image",
    ],
    "OviSaveLatent": [
        "SamplerCustomAdvanced.output > OviSaveLatent.latent",
        "OviSaveLatent.latent > OviDecode.samples",
    ],
    "OviLoadLatent": ["OviLoadLatent.latent > KSampler.latent_image"],
    "OviDecode": [
        "SamplerCustomAdvanced.output > OviDecode.samples",
        "VAELoader.VAE > OviDecode.vae",
        "OviAudioVAELoader.VAE > OviDecode.audio_vae",
        "OviDecode.images > OviSaveVideo.images",
        "OviDecode.audio > OviSaveVideo.audio",
    ],
    "OviJoin": [
        "OviDecode.images > OviJoin.new_images",
        "OviDecode.audio > OviJoin.new_audio",
        "GetVideoComponents.images > OviJoin.images",
        "GetVideoComponents.audio > OviJoin.audio",
        "OviJoin.images > OviSaveVideo.images",
        "OviJoin.audio > OviSaveVideo.audio",
    ],
    "OviPreview": [
        "OviDecode.images > OviPreview.images",
        "OviDecode.audio > OviPreview.audio",
        "OviPreview.sheet > SaveImage.images",
    ],
    "OviSaveVideo": [
        "OviDecode.images > OviSaveVideo.images",
        "OviDecode.audio > OviSaveVideo.audio",
    ],
    "OviTrainingClips": [
        "OviTextEncoderLoader.CLIP > OviTrainingClips.clip",
        "VAELoader.VAE > OviTrainingClips.vae",
        "OviTrainingClips.latents > OviTrainLora.latents",
        "OviTrainingClips.positive > OviTrainLora.positive",
    ],
    "OviTrainLora": [
        "OviTrainingClips.latents > OviTrainLora.latents",
        "OviTrainingClips.positive > OviTrainLora.positive",
        "OviTrainLora.lora > SaveLoRA.lora",
        "OviTrainLora.loss_map > LossGraphNode.loss",
    ],
}
AUDIO_VAE = "mmaudio_vae_16k_fp32.safetensors"
VOCODER = "mmaudio_vocoder_bigvgan_best_netG_fp32.safetensors"
# What the lists of the loaders show: files of these names lie in the folders, empty.
FILES = {
    "diffusion_models": ["Wan2_2-5B-Ovi_960x960_fp8_e4m3fn_scaled_KJ.safetensors"],
    "loras": ["my_voice.safetensors"],
    "text_encoders": ["umt5_xxl_fp8_e4m3fn_scaled.safetensors"],
    "vae": [AUDIO_VAE, VOCODER, "wan2.2_vae.safetensors"],
}
LATENT, RECORDING = "pier_00001_.safetensors", "recording.wav"  # in the input folder
WIDGETS = {
    "prompt": "A woman on a pier says <S>The tide is coming in.<E> Audio: waves, a gull cries.",
    "vae_name": "wan2.2_vae.safetensors",
    "vae": AUDIO_VAE,
    "vocoder": VOCODER,
    "cfg": 4.0,
    "value": 0.0,
}
OTHER_WIDGETS = {"OviMiniature": {"prompt": "A red face says <S>ba ba<E>. Audio: a low voice."}}
NO_BADGES = "app.ui.settings.setSettingValueAsync('Comfy.NodeBadge.NodeSourceBadgeMode', 'None')"
# Puts the nodes one below the other, in the order in which they run: the one that is pictured
# whole, the others as their titles. Returns how much room they take.
ARRANGE = """async ([pictured, links, corner, gap, wide]) => {
    const graph = app.graph, nodes = new Map(), turns = new Map()
    const get = type => {
        if (nodes.has(type)) return nodes.get(type)
        const node = LiteGraph.createNode(type)
        // Pictures in nodes are kept by their ids.
        node.id = window.lastPictured = (window.lastPictured ?? 1000) + 1
        graph.add(node)
        nodes.set(type, node)
        turns.set(type, 0)
        return node
    }
    const slot = (slots, name) => {
        const found = slots.findIndex(slot => slot.name === name)
        if (found < 0) throw new Error(`no ${name} among ${slots.map(slot => slot.name)}`)
        return found
    }
    for (const [source, output, target, input] of links) {
        const from = get(source), to = get(target)
        from.connect(slot(from.outputs, output), to, slot(to.inputs, input))
    }
    for (const _ of links) for (const [source, , target] of links)
        turns.set(source, Math.min(turns.get(source), turns.get(target) - 1))
    await new Promise(done => setTimeout(done, 500))  // nodes grow to what they show
    const turn = turns.get(pictured)
    let top = 0
    const inOrder = [...nodes].sort(([one], [other]) => turns.get(one) - turns.get(other))
    for (const [type, node] of inOrder) {
        if (type === pictured) {
            node.setSize([wide, node.size[1]])
            node.pos = [0, top]
            top += node.size[1] + gap
        } else {
            node.flags.collapsed = true
            app.canvas.draw(true, true)
            node.pos = [turns.get(type) < turn ? 0 : wide - node._collapsed_width, top]
            top += gap
        }
    }
    const canvas = app.canvas.canvas.getBoundingClientRect()
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [corner - canvas.left, corner - canvas.top]
    app.canvas.setDirty(true, true)
    return top - gap
}"""


def take_picture(page: ComfyPage, node: str) -> None:
    """Wire a node on an empty canvas and write what it looks like at 100 %."""
    page.clear()
    links = [link.replace(" > ", ".").split(".") for link in WIRINGS[node]]
    height = page.page.evaluate(ARRANGE, [node, links, CORNER, GAP, WIDTH])
    wanted = WIDGETS | OTHER_WIDGETS.get(node, {})
    page.set_widgets(wanted)
    page.page.wait_for_timeout(1000)  # what is shown follows
    for entry in page.api_form().values():
        for name in wanted.keys() & entry["inputs"].keys():
            shown = entry["inputs"][name]  # a list is a link
            if not isinstance(shown, list) and shown != wanted[name]:
                raise ServerError(
                    f"{entry['class_type']} shows {shown} as {name} in the picture of {node}"
                )
    box = {"x": CORNER - MARGIN, "y": CORNER - TITLE - MARGIN}
    box |= {"width": WIDTH + 2 * MARGIN, "height": height + TITLE + 2 * MARGIN}
    path = PAGES / f"{node}.jpg"
    page.page.screenshot(path=path, clip=box, type="jpeg", quality=QUALITY)
    print(f"{path.name}: {path.stat().st_size} bytes")


def make_files(base: Path) -> None:
    """Write the files that the nodes list: empty ones, and as image a frame of the miniature."""
    for folder, names in FILES.items():
        (base / "models" / folder).mkdir(parents=True)
        for name in names:
            (base / "models" / folder / name).touch()
    (base / "input").mkdir()
    for name in (LATENT, RECORDING):
        (base / "input" / name).touch()
    with Image.open(REPOSITORY / "web" / "docs" / "miniature_speaks.jpg") as sheet:
        sheet.crop((24, 40, 172, 188)).save(base / "input" / "example.png")


def take_pictures(comfyui: Path, chromium: str, nodes: list[str]) -> None:
    """Take the pictures of these nodes in one page of one server."""
    with tempfile.TemporaryDirectory() as base:
        make_files(Path(base))
        with running_server(comfyui, Path(base)) as server, open_page(server.url, chromium) as page:
            page.page.evaluate(NO_BADGES)
            for node in nodes:
                take_picture(page, node)


def main() -> int:
    """Take the pictures of all nodes, or of those named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("nodes", nargs="*", metavar="NODE", help="ids of nodes (default: all)")
    arguments = parser.parse_args()
    if unknown := set(arguments.nodes) - set(WIRINGS):
        parser.error(f"{', '.join(sorted(unknown))}: not in WIRINGS; add there how it is wired")
    try:
        take_pictures(
            arguments.comfyui.resolve(), find_chromium(), arguments.nodes or list(WIRINGS)
        )
    except (NoBrowserError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
