// Under the inputs of Ovi Text Encode, shows the prompt as Ovi reads it while one types: speech and sound in colours,
// tags that are wrong, and how long the speech takes in a clip of this length. The prompt itself stays plain text.

import { app } from "../../../scripts/app.js"
import { readPrompt, speakingSeconds } from "./prompt_parts.js"

const FRAMES_A_SECOND = 24
const MILLISECONDS = 150 // between two looks at the prompt
// Pixels. A new node has room for a prompt and its reading. One of a saved workflow keeps its size, and what it has
// no room for is left out whole: first the text, then the line.
const LEAST_FOR_LINE = 30
const LEAST_FOR_TEXT = 51
const MOST = 160
const ROOM_IN_A_NEW_NODE = 150

const STYLE = `
.ovi-prompt { display: flex; flex-direction: column; gap: 4px; font: 11px/1.4 sans-serif; color: var(--input-text);
  background: var(--comfy-input-bg); border-radius: 4px; padding: 6px; box-sizing: border-box; overflow: hidden; }
.ovi-prompt.has-no-text .ovi-prompt-text { display: none; }
.ovi-prompt.has-nothing { visibility: hidden; }
.ovi-prompt-text { flex: 1 1 0; min-height: 0; overflow-y: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.ovi-prompt-speech { color: #e0a030; }
.ovi-prompt-sound { color: #3aa8b8; }
.ovi-prompt-tag { opacity: 0.6; }
.ovi-prompt-fault { color: #e05050; text-decoration: underline wavy; }
.ovi-prompt-line { flex: none; border-top: 1px solid var(--border-color); padding-top: 4px; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }
.ovi-prompt-line.is-wrong { color: #e05050; }
`

app.registerExtension({
  name: "Ovi.Prompt",
  setup() {
    const style = document.createElement("style")
    style.textContent = STYLE
    document.head.append(style)
  },
  nodeCreated(node) {
    if (node.comfyClass === "OviTextEncode") addReading(node)
  },
})

function addReading(node) {
  const element = makeElement("div", "ovi-prompt")
  // What is not saved must be the last widget: values of widgets are saved by their number.
  const widget = node.addDOMWidget("ovi_reading", "ovi_reading", element, {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => LEAST_FOR_LINE,
    getMaxHeight: () => MOST,
    getValue: () => undefined,
    setValue: () => {},
  })
  widget.serialize = false
  const [width, height] = node.computeSize()
  node.setSize([Math.max(width, node.size[0]), height + ROOM_IN_A_NEW_NODE])
  const sizes = new ResizeObserver(() => leaveOut(element))
  sizes.observe(element)

  // Front ends differ in what they call when a text is typed, pasted, loaded or undone, so the text is looked at.
  let shown = null
  const look = () => {
    if (!node.graph) return // it is made, but not on the canvas yet
    const text = promptOf(node)
    const seconds = clipSeconds(node)
    const now = JSON.stringify([text, seconds])
    if (now !== shown) show(element, text, seconds)
    shown = now
  }
  const timer = setInterval(look, MILLISECONDS)
  const { onRemoved } = node
  node.onRemoved = function (...given) {
    clearInterval(timer)
    sizes.disconnect()
    return onRemoved?.apply(this, given)
  }
}

function leaveOut(element) {
  const height = element.clientHeight
  element.classList.toggle("has-no-text", height < LEAST_FOR_TEXT)
  element.classList.toggle("has-nothing", height < LEAST_FOR_LINE)
}

// The prompt as typed; null if it comes from another node.
function promptOf(node) {
  if (node.inputs?.some((input) => input.name === "prompt" && input.link != null)) return null
  return String(node.widgets.find((widget) => widget.name === "prompt")?.value ?? "")
}

// Length in seconds that the nearest Ovi Latent asks for; null if there is none or another node sets it.
function clipSeconds(node) {
  const seen = new Set([node])
  for (const here of seen) {
    if (here.comfyClass === "OviLatent") {
      const linked = here.inputs?.some((input) => input.name === "length" && input.link != null)
      const frames = here.widgets?.find((widget) => widget.name === "length")?.value
      return linked || !frames ? null : frames / FRAMES_A_SECOND
    }
    for (const next of neighbours(here)) seen.add(next) // the loop goes on over what is added
  }
  return null
}

function neighbours(node) {
  const before = (node.inputs ?? []).map((_, slot) => node.getInputNode(slot))
  const after = (node.outputs ?? []).flatMap((_, slot) => node.getOutputNodes(slot) ?? [])
  return [...before, ...after].filter(Boolean)
}

function show(element, text, seconds) {
  if (text === null) {
    element.replaceChildren(makeElement("div", "ovi-prompt-line", "The prompt comes from another node."))
    return
  }
  const { parts, faults } = readPrompt(text)
  const shown = makeElement("div", "ovi-prompt-text")
  shown.append(...parts.map((part) => makeElement("span", `ovi-prompt-${part.kind}`, part.text)))
  const speaking = speakingSeconds(parts)
  const wrong = faults.length > 0 || (seconds !== null && speaking > seconds)
  const line = makeElement("div", "ovi-prompt-line", faults[0] ?? say(speaking, seconds))
  line.title = line.textContent // a narrow node cuts it
  line.classList.toggle("is-wrong", wrong)
  element.replaceChildren(shown, line)
}

function say(speaking, seconds) {
  const clip = seconds === null ? "" : ` in a clip of ${seconds.toFixed(1)} s`
  if (speaking === 0) return `No speech${clip}. Put it in <S>...<E>.`
  const long = seconds !== null && speaking > seconds ? ": too long" : ""
  return `Speech of about ${speaking.toFixed(1)} s${clip}${long}`
}

function makeElement(name, className, text = "") {
  const element = document.createElement(name)
  element.className = className
  element.textContent = text
  return element
}
