// The film that Ovi Streaming Sampler shows while it is made plays at once, and goes on where it was when the next
// block is there. The page would show each as a film of its own, at its beginning.

import { app } from "../../../scripts/app.js"
import { watch } from "./watch.js"

const MILLISECONDS = 100 // between two looks at the film

app.registerExtension({
  name: "Ovi.Film",
  nodeCreated(node) {
    if (node.comfyClass === "OviStreamingSampler") playOn(node)
  },
})

// Without sound until somebody turns it on; not at all for those who asked for less motion, nor once somebody stopped
// it.
function playOn(node) {
  let seen = "" // address of the film so far
  let seconds = 0 // of it
  let place = 0 // in it, in seconds
  let muted = true
  let stopped = window.matchMedia("(prefers-reduced-motion: reduce)").matches
  const look = () => {
    const video = videoOf(node)
    if (!video || video.readyState < HTMLMediaElement.HAVE_METADATA) return
    if (video.currentSrc !== seen) {
      if (video.duration <= seconds) place = 0 // another film
      Object.assign(video, { loop: false, muted, currentTime: place })
      if (!stopped) video.play().catch(() => {}) // it ends so too when the next block comes meanwhile
      seen = video.currentSrc
      seconds = video.duration
    } else {
      place = video.currentTime
      muted = video.muted
      stopped = video.paused && !video.ended && !video.seeking
    }
  }
  watch(node, look, MILLISECONDS)
}

// On the canvas the page has it in a widget, in Nodes 2.0 in the node.
function videoOf(node) {
  const widget = node.widgets?.find((widget) => widget.element?.querySelector?.("video"))
  return (widget?.element ?? document.querySelector(`[data-node-id="${node.id}"]`))?.querySelector("video")
}
