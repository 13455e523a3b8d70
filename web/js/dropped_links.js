// The menu that opens where a link is dropped on the empty canvas names a few nodes that take it: the first that were
// registered, which are ComfyUI's own. Below them it names Ovi's too, once a node of Ovi was on the canvas; whoever
// works with other models has their menu as it was.

import { app } from "../../../scripts/app.js"

// By type of socket, the nodes that come next in a workflow, and those that come before.
const NEXT = {
  CLIP: ["OviTextEncode"],
  MODEL: ["OviGuidance", "OviSteer"],
  LATENT: ["OviDecode", "OviHoldSound"],
  VAE: ["OviLatent", "OviDecode"],
  IMAGE: ["OviLatent", "OviSaveVideo"],
  AUDIO: ["OviHoldSound", "OviSaveVideo"],
}
const BEFORE = {
  CLIP: ["OviTextEncoderLoader"],
  MODEL: ["OviModelLoader"],
  LATENT: ["OviLatent"],
  VAE: ["OviAudioVAELoader"],
  CONDITIONING: ["OviTextEncode"],
  SAMPLER: ["OviSamplerUniPC"],
  SIGMAS: ["OviScheduler"],
  IMAGE: ["OviDecode"],
  AUDIO: ["OviDecode"],
}

app.registerExtension({
  name: "Ovi.DroppedLinks",
  // At each node: the page makes its lists anew when the setting for their length is changed.
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Ovi")) return
    add(LiteGraph.slot_types_default_out, NEXT)
    add(LiteGraph.slot_types_default_in, BEFORE)
  },
})

function add(lists, ours) {
  for (const [type, names] of Object.entries(ours)) lists[type] = [...new Set([lists[type] ?? [], names].flat())]
}
