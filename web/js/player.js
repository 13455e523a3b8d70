// In Ovi Preview the clip plays above its sheet, the picture of frames and waveform: a click on the sheet is heard from
// there. The clips of a batch play small below; one that is clicked plays large, with sound. Where this file is not
// run, and where the node could write no clip, the page shows the sheet as any picture.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { watch } from "./watch.js"
import { say } from "./words.js"

const MILLISECONDS = 150 // between two looks at what the node made
const WIDTH = 480 // pixels; of a node that plays, if nobody gave it another
const MARGINS = 20 // pixels; of a widget, on both sides together
const GAP = 4 // pixels
const TALLEST = 0.75 // of the width; taller clips have bars at their sides
const LONGEST_ROW = 4 // of small clips; more make a square
const STEP = 0.25 // seconds, by an arrow key

const STYLE = `
.ovi-player { display: flex; flex-direction: column; gap: ${GAP}px; width: 100%; box-sizing: border-box; }
.ovi-player:empty { display: none; }
.ovi-player video { display: block; width: 100%; object-fit: contain; background: #000000; border-radius: 4px; }
.ovi-player > video { flex: 1 1 auto; min-height: 0; }
.ovi-sheet { position: relative; flex: none; cursor: pointer; touch-action: manipulation; }
.ovi-sheet img { display: block; width: 100%; border-radius: 4px; user-select: none; -webkit-user-drag: none; }
.ovi-sheet-head { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #ffffff;
  box-shadow: 0 0 0 1px #15171c; pointer-events: none; }
.ovi-clips { display: grid; flex: none; gap: ${GAP}px; }
.ovi-clips button { padding: 0; border: 2px solid transparent; border-radius: 6px; background: none; cursor: pointer; }
.ovi-clips button[aria-pressed="true"] { border-color: #6fe0d6; }
.ovi-sheet:focus-visible, .ovi-clips button:focus-visible { outline: 2px solid #f2c14e; outline-offset: 1px; }
`

app.registerExtension({
  name: "Ovi.Player",
  setup() {
    const style = document.createElement("style")
    style.textContent = STYLE
    document.head.append(style)
  },
  nodeCreated(node) {
    if (node.comfyClass === "OviPreview") addPlayer(node)
  },
})

function addPlayer(node) {
  const element = makeElement("div", "ovi-player")
  let ratio = 0 // of the height of what is shown to its width
  const widget = node.addDOMWidget("ovi_player", "ovi_player", element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getMinHeight: () => (ratio ? ratio * (node.size[0] - MARGINS) + MARGINS + 2 * GAP : 0),
    getMaxHeight: () => (ratio ? undefined : 0),
    getValue: () => undefined,
    setValue: () => {},
  })
  widget.serialize = false
  hideSheet(node)
  zoomThrough(element)

  const [widthOfNew] = node.size
  const fit = () => {
    if (!element.childElementCount) return // emptied while the clip was on its way
    ratio = ratioOf(element)
    const [width, height] = node.size
    if (width === widthOfNew) node.setSize([Math.max(width, WIDTH), height])
    node.setSize([node.size[0], Math.max(height, node.computeSize()[1])])
    app.graph.setDirtyCanvas(true, true)
  }
  // Pages differ in what they call when a node has run, or a workflow is opened with what it made, so it is looked at.
  let shown = "[]"
  const show = (clips) => {
    const now = JSON.stringify(clips)
    if (now === shown) return
    shown = now
    ratio = 0
    element.replaceChildren(...(clips.length ? makeParts(clips, fit) : []))
  }
  watch(node, () => show(clipsOf(node)), MILLISECONDS)
  const { onRemoved } = node
  node.onRemoved = function (...given) {
    show([])
    return onRemoved?.apply(this, given)
  }
}

// What the node made last, each clip with its sheet; none while it has made nothing.
function clipsOf(node) {
  const { graph, id } = node
  const { images = [], ovi_clips: clips = [] } = app.nodeOutputs?.[graph?.isRootGraph ? id : `${graph?.id}:${id}`] ?? {}
  return clips.length === images.length ? clips.map((clip, place) => ({ ...clip, sheet: images[place] })) : []
}

// The page shows the pictures that a node makes: on the canvas as its background is drawn, in Nodes 2.0 unless told not
// to. The player has them already.
function hideSheet(node) {
  const { onDrawBackground } = node
  node.onDrawBackground = function (...given) {
    if (clipsOf(node).length === 0) return onDrawBackground?.apply(this, given)
  }
  Object.defineProperty(node, "hideOutputImages", { configurable: true, get: () => clipsOf(node).length > 0 })
}

// On the canvas, unlike in Nodes 2.0, an element would keep the wheel for itself.
function zoomThrough(element) {
  const zoom = (event) => {
    if (window.LiteGraph?.vueNodesMode) return
    event.preventDefault()
    app.canvas.canvas.dispatchEvent(new WheelEvent("wheel", event))
  }
  element.addEventListener("wheel", zoom, { passive: false })
}

// Returns the clip that plays, its sheet, and, of a batch, all clips small. fit: called when their sizes are known.
function makeParts(clips, fit) {
  const sources = clips.map((clip) => ({ ...clip, address: addressOf(clip), sheet: addressOf(clip.sheet) }))
  const video = makeVideo({ controls: true })
  video.addEventListener("loadedmetadata", fit)
  const { sheet, show } = makeSheet(video, fit)
  const buttons = sources.map((_, place) => makeElement("button"))
  const choose = (place) => {
    video.src = sources[place].address
    show(sources[place])
    buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === place)))
  }
  choose(0)
  if (clips.length === 1) return [video, sheet]
  const grid = makeElement("div", "ovi-clips")
  grid.style.gridTemplateColumns = `repeat(${columnsOf(clips.length)}, 1fr)`
  for (const [place, button] of buttons.entries()) {
    const values = { clip: place + 1, count: clips.length }
    button.title = button.ariaLabel = say("Clip %clip% of %count%: play it large, with sound", values)
    button.append(makeVideo({ src: sources[place].address, tabIndex: -1 }))
    button.addEventListener("click", () => {
      choose(place)
      playAloud(video)
    })
  }
  grid.append(...buttons)
  return [video, sheet, grid]
}

// A clip begins without sound, as pages may play it unasked, and not at all for those who asked for less motion.
function makeVideo(properties) {
  const video = document.createElement("video")
  video.addEventListener("loadedmetadata", () => (video.style.aspectRatio = `1 / ${aspectOf(video)}`))
  const autoplay = !window.matchMedia("(prefers-reduced-motion: reduce)").matches
  return Object.assign(video, { autoplay, muted: true, loop: true, playsInline: true, ...properties })
}

function playAloud(video) {
  video.muted = false
  video.play().catch(() => {}) // it ends so too when another clip is chosen meanwhile
}

// A sheet with a line where the clip is, and the function that shows that of a clip. It is a slider to those who use
// the keyboard or do not see it.
function makeSheet(video, fit) {
  const picture = makeElement("img")
  picture.alt = ""
  picture.addEventListener("load", fit)
  const head = makeElement("div", "ovi-sheet-head")
  const sheet = makeElement("div", "ovi-sheet")
  sheet.append(picture, head)
  Object.assign(sheet, { tabIndex: 0, role: "slider", ariaLabel: say("Place in the clip"), ariaValueMin: "0" })
  sheet.title = say("Click to hear the clip from there. Arrow keys move, the space bar plays and stops.")
  let clip = null

  const place = () => {
    const [start, end] = clip.axis
    const time = Math.min(video.currentTime, clip.seconds)
    head.style.left = `${100 * (start + (end - start) * (time / clip.seconds))}%`
    sheet.ariaValueNow = time.toFixed(2)
    sheet.ariaValueText = say("%time% of %whole% seconds", { time: time.toFixed(2), whole: clip.seconds.toFixed(2) })
  }
  const follow = () => {
    place()
    if (!video.paused && video.isConnected) requestAnimationFrame(follow)
  }
  video.addEventListener("play", follow)
  for (const event of ["timeupdate", "seeked"]) video.addEventListener(event, place)

  const seek = (seconds) => {
    video.currentTime = Math.max(0, Math.min(seconds, clip.seconds))
    place()
  }
  sheet.addEventListener("click", (event) => {
    const { left, width } = sheet.getBoundingClientRect()
    const [start, end] = clip.axis
    seek((((event.clientX - left) / width - start) / (end - start)) * clip.seconds)
    playAloud(video)
  })
  sheet.addEventListener("keydown", (event) => {
    const act = {
      ArrowLeft: () => seek(video.currentTime - STEP),
      ArrowRight: () => seek(video.currentTime + STEP),
      Home: () => seek(0),
      End: () => seek(clip.seconds),
      " ": () => (video.paused ? playAloud(video) : video.pause()),
    }[event.key]
    if (!act) return
    event.preventDefault()
    event.stopPropagation() // the page has uses of its own for these keys
    act()
  })

  const show = (chosen) => {
    clip = chosen
    picture.src = clip.sheet
    sheet.ariaValueMax = clip.seconds.toFixed(2)
    place()
  }
  return { sheet, show }
}

function aspectOf(video) {
  return Math.min(video.videoHeight / video.videoWidth || 9 / 16, TALLEST)
}

function columnsOf(count) {
  return count <= LONGEST_ROW ? count : Math.ceil(Math.sqrt(count))
}

function ratioOf(element) {
  const video = element.querySelector(":scope > video")
  const picture = element.querySelector("img")
  const count = element.querySelectorAll("button").length
  const small = count ? Math.ceil(count / columnsOf(count)) / columnsOf(count) : 0
  return aspectOf(video) * (1 + small) + (picture.naturalHeight / picture.naturalWidth || 0)
}

function addressOf({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}${app.getRandParam()}`)
}

function makeElement(name, className = "") {
  const element = document.createElement(name)
  element.className = className
  return element
}
