// Beside the length of Ovi Latent in frames stands what it is in seconds.

import { app } from "../../../scripts/app.js"

const FRAMES_A_SECOND = 24

app.registerExtension({
  name: "Ovi.Seconds",
  nodeCreated(node) {
    if (node.comfyClass === "OviLatent") showSeconds(node)
  },
})

// Asked for at each drawing, so that it follows whatever sets the length. Nodes 2.0 ask once, and would keep what is
// no longer so. A length that comes from elsewhere, a blueprint's too, is not the widget's.
function showSeconds(node) {
  const widget = node.widgets.find((widget) => widget.name === "length")
  const isLinked = () => node.inputs?.some((input) => input.name === "length" && input.link != null)
  let given = widget.label // of the page's language, or of a user who renamed it
  Object.defineProperty(widget, "label", {
    configurable: true,
    enumerable: true,
    get: () => (window.LiteGraph?.vueNodesMode || isLinked() ? given : `${given ?? widget.name} (${secondsOf(widget)} s)`),
    set: (label) => (given = label),
  })
}

function secondsOf(widget) {
  return (widget.value / FRAMES_A_SECOND).toFixed(2)
}
