// Lets the names of saved videos and latents hold %date:yyyy-MM-dd% and values of other nodes, %KSampler.seed%, as the page does for
// ComfyUI's own nodes that save.

import { app } from "../../../scripts/app.js"

const SAVERS = ["OviSaveVideo", "OviSaveLatent"]

app.registerExtension({
  name: "Ovi.FileName",
  nodeCreated(node) {
    if (SAVERS.includes(node.comfyClass)) fillName(node.widgets.find((widget) => widget.name === "filename_prefix"))
  },
})

// The name goes to the server filled in, and stays as typed in the workflow.
function fillName(widget) {
  const fill = window.comfyAPI?.utils?.applyTextReplacements
  if (fill) widget.serializeValue = () => fill(app, widget.value)
}
