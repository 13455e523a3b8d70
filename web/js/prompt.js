// Under the inputs of Ovi Text Encode, a ruler in seconds shows while one types when the prompt is spoken and what is
// heard; what Ovi would read otherwise is said, and mended by a click. The prompt itself stays plain text. A blueprint
// that shows the prompt of such a node has the ruler too.

import { app } from "../../../scripts/app.js"
import { EXAMPLES, VOICES } from "./prompt_examples.js"
import { findMends, PEOPLE } from "./prompt_mends.js"
import { placeSpeech, readPrompt, speakingSeconds } from "./prompt_parts.js"
import { watch } from "./watch.js"
import { say, spokenLanguage } from "./words.js"

const FRAMES_A_SECOND = 24
const MILLISECONDS = 150 // between two looks at the prompt
const SUBGRAPH_INPUTS = -10 // the page's id for where links into a subgraph begin
const USUAL_SECONDS = 5 // of a clip whose length is not known
// Pixels. A new node has room for a prompt and its ruler. One of a saved workflow keeps its size, and what it has
// no room for is left out whole: first the ruler, then the line.
const LEAST_FOR_LINE = 26
const LEAST_FOR_RULER = 86
const MOST = 106
const ROOM_IN_A_NEW_NODE = 150

// Colours are given in pairs, so that letters stand out from what is behind them in every theme of the page.
const STYLE = `
.ovi-prompt { display: flex; flex-direction: column; justify-content: flex-end; gap: 4px; font: 11px/1.4 sans-serif;
  color: var(--input-text); background: var(--comfy-input-bg); border-radius: 4px; padding: 5px 6px; box-sizing: border-box;
  overflow: hidden; }
.ovi-prompt.has-no-ruler .ovi-ruler { display: none; }
.ovi-prompt.has-nothing { visibility: hidden; }
.ovi-ruler { position: relative; flex: none; height: 50px; overflow: hidden; border-radius: 3px;
  background: #e8eaed; color: #14181c; }
.ovi-ruler span { position: absolute; box-sizing: border-box; padding: 0 3px; overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; line-height: 17px; }
.ovi-ruler .ovi-ruler-tick { top: 0; bottom: 0; border-left: 1px solid #9aa3ab; color: #4a535b; font-size: 9px;
  line-height: 11px; }
.ovi-ruler-speech { top: 13px; height: 17px; border-radius: 3px; background: #f2c14e; color: #14181c; }
.ovi-ruler-speech.is-late { background: #b3261e; color: #ffffff; }
.ovi-ruler-sound { bottom: 0; left: 0; right: 0; height: 17px; background: #9bdce6; color: #14181c; }
.ovi-ruler-sound.is-absent { background: #e8eaed; color: #4a535b; font-style: italic; }
.ovi-prompt-foot { display: flex; flex: none; gap: 4px; align-items: center; }
.ovi-prompt-line { flex: 1 1 0; min-width: 0; padding: 1px 4px; border-radius: 3px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.ovi-prompt-line.is-advice { background: #f2c14e; color: #14181c; }
.ovi-prompt-line.is-wrong { background: #b3261e; color: #ffffff; }
.ovi-prompt-foot button, .ovi-prompt-foot select { flex: none; font: inherit; border: 1px solid #4a535b;
  border-radius: 3px; background: #e8eaed; color: #14181c; padding: 0 6px; }
.ovi-prompt-foot select { width: 84px; }
`

app.registerExtension({
  name: "Ovi.Prompt",
  setup() {
    const style = document.createElement("style")
    style.textContent = STYLE
    document.head.append(style)
  },
  nodeCreated(node) {
    if (node.comfyClass === "OviTextEncode") {
      const [width, height] = addReading(node, node).computeSize()
      node.setSize([Math.max(width, node.size[0]), height + ROOM_IN_A_NEW_NODE])
    } else if (node.isSubgraphNode?.()) whenPlaced(node, () => readInside(node))
  },
})

// A blueprint's node has what it shows of the nodes inside when it is on the canvas. It keeps its size.
function whenPlaced(node, then) {
  let isDone = false
  const end = watch(
    node,
    () => {
      end()
      if (!isDone) then()
      isDone = true
    },
    MILLISECONDS,
  )
}

function readInside(host) {
  const isShown = (node) => node.comfyClass === "OviTextEncode" && linkOf(node, "prompt") && fieldOf(node, "prompt", host)
  const encoder = host.subgraph.nodes.find(isShown)
  if (encoder) addReading(host, encoder, host)
  app.graph.setDirtyCanvas(true, true)
}

// Adds the reading of an encoder's prompt to a node: the encoder, or the blueprint's node around it. Returns the node.
function addReading(node, encoder, host = null) {
  const element = makeElement("div", "ovi-prompt")
  // What is not saved must be the last widget: values of widgets are saved by their number.
  const widget = node.addDOMWidget("ovi_reading", "ovi_reading", element, {
    serialize: false,
    hideOnZoom: true,
    getMinHeight: () => LEAST_FOR_LINE + 2, // a page may give a pixel less than is asked for
    getMaxHeight: () => MOST,
    getValue: () => undefined,
    setValue: () => {},
  })
  widget.serialize = false
  keepWidth(widget)
  new ResizeObserver(() => leaveOut(element)).observe(element)

  // Front ends differ in what they call when a text is typed, pasted, loaded or undone, so the text is looked at.
  let shown = null
  const look = () => {
    const field = fieldOf(encoder, "prompt", host)
    const text = field ? String(field.value ?? "") : null // null: it comes from another node
    const seconds = clipSeconds(encoder, host)
    const now = JSON.stringify([text, seconds, spokenLanguage()])
    if (now !== shown) show(element, text, seconds, (mended) => write(field, mended))
    shown = now
  }
  watch(node, look, MILLISECONDS)
  return node
}

// Newer pages set the width of a widget to that of their side panel, where they show it too.
function keepWidth(widget) {
  Object.defineProperty(widget, "width", { configurable: true, get: () => undefined, set: () => {} })
}

function leaveOut(element) {
  const height = element.clientHeight
  element.classList.toggle("has-no-ruler", height < LEAST_FOR_RULER)
  element.classList.toggle("has-nothing", height < LEAST_FOR_LINE)
}

function write(field, text) {
  field.value = text
  field.callback?.(text)
  app.graph.setDirtyCanvas(true, true)
}

// The link into an input that is a widget too; none if its value is typed.
function linkOf(node, name) {
  const id = node.inputs?.find((input) => input.name === name)?.link
  return id == null ? null : (node.graph?.getLink?.(id) ?? node.graph?.links.get(id))
}

// The widget into which the value of an input is typed: the node's own, or that of the blueprint's node around it.
// null if another node gives the value. host: that blueprint's node, where it is known.
function fieldOf(node, name, host = null) {
  const link = linkOf(node, name)
  if (!link) return node.widgets?.find((widget) => widget.name === name) ?? null
  if (Number(link.origin_id) !== SUBGRAPH_INPUTS) return null
  const around = host ?? hostOf(node.graph)
  return around && fieldOf(around, node.graph.inputs[link.origin_slot].name)
}

function hostOf(subgraph) {
  const root = app.rootGraph ?? app.graph
  const graphs = [root, ...(root.subgraphs?.values() ?? [])]
  return graphs.flatMap((graph) => graph.nodes).find((node) => node.subgraph === subgraph) ?? null
}

// Length in seconds that the nearest Ovi Latent asks for; null if there is none or another node sets it.
function clipSeconds(encoder, host) {
  const seen = new Set([encoder])
  for (const here of seen) {
    if (here.comfyClass === "OviLatent") {
      const frames = fieldOf(here, "length", host)?.value
      return frames ? frames / FRAMES_A_SECOND : null
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

function show(element, text, seconds, change) {
  if (text === null) {
    element.replaceChildren(makeElement("div", "ovi-prompt-line", say("The prompt comes from another node.")))
    return
  }
  const { parts, faults } = readPrompt(text)
  const foot = makeElement("div", "ovi-prompt-foot")
  const mends = findMends(text)
  foot.append(makeLine(parts, faults, mends, seconds))
  const mend = mends.find((mend) => mend.mended !== null)
  if (mend) foot.append(makeButton(mend, change))
  foot.append(makeMenu(text, change))
  const unsaid = PEOPLE.test(text) ? say("the sound follows from the sentences") : say("no sound is described")
  element.replaceChildren(makeRuler(parts, seconds, unsaid), foot)
}

// Faults stop the workflow and come first; then what is read otherwise, then what stands on the ruler.
function makeLine(parts, faults, mends, seconds) {
  const speaking = speakingSeconds(parts)
  const late = seconds !== null && speaking > seconds
  const advice = late ? null : mends[0]?.says
  const isHeard = parts.some((part) => part.kind === "sound")
  const says = faults[0] ?? advice ?? sayLength(speaking, seconds, isHeard)
  const line = makeElement("div", "ovi-prompt-line", says)
  line.title = line.textContent // a narrow node cuts it
  line.classList.toggle("is-wrong", faults.length > 0 || late)
  line.classList.toggle("is-advice", faults.length === 0 && !late && Boolean(advice))
  return line
}

function makeButton({ says, mended }, change) {
  const button = makeElement("button", "ovi-prompt-mend", say("Fix"))
  button.title = says
  button.addEventListener("click", () => change(mended))
  return button
}

function makeMenu(text, change) {
  const menu = makeElement("select", "ovi-prompt-examples")
  menu.append(new Option(say("Examples"), "", true, true))
  const prompts = makeElement("optgroup")
  prompts.label = say("Prompts")
  prompts.append(...Object.keys(EXAMPLES).map((name) => new Option(say(name), EXAMPLES[name])))
  const voices = makeElement("optgroup")
  voices.label = say("Voices")
  voices.append(...VOICES.map((voice) => new Option(voice, withVoice(text, voice))))
  menu.append(prompts, voices)
  menu.addEventListener("change", () => menu.value && change(menu.value))
  return menu
}

function withVoice(text, voice) {
  if (text.includes("Audio:")) return text.replace(/Audio:\s*/, `Audio: ${voice}, `)
  return `${text.trimEnd()}\n\nAudio: ${voice}.`
}

// unsaid: what stands in place of a sound part.
function makeRuler(parts, seconds, unsaid) {
  const ruler = makeElement("div", "ovi-ruler")
  const whole = seconds ?? USUAL_SECONDS
  const blocks = placeSpeech(parts, whole)
  const shown = Math.max(whole, ...blocks.map((block) => block.end))
  const place = (element, from, to) => {
    element.style.left = `${(100 * from) / shown}%`
    element.style.width = `${(100 * (to - from)) / shown}%`
    element.title = element.textContent
    return element
  }
  for (let second = 1; second < shown; second++)
    ruler.append(place(makeElement("span", "ovi-ruler-tick", String(second)), second, second + 1))
  const heard = parts.filter((part) => part.kind === "sound").map((part) => part.text.trim())
  const sound = makeElement("span", "ovi-ruler-sound", heard.join(" ") || unsaid)
  sound.classList.toggle("is-absent", heard.length === 0)
  sound.title = sound.textContent
  ruler.append(sound)
  for (const { text, start, end } of blocks) {
    const block = place(makeElement("span", "ovi-ruler-speech", text), start, end)
    block.classList.toggle("is-late", end > whole)
    ruler.append(block)
  }
  return ruler
}

function sayLength(speaking, seconds, isHeard) {
  const values = { speech: speaking.toFixed(1), clip: seconds?.toFixed(1) }
  // A prompt that has its sound may well be without speech.
  const hint = isHeard ? "" : ` ${say("Put it in <S>...<E>.")}`
  if (seconds === null && speaking === 0) return say("No speech.") + hint
  if (seconds === null) return say("Speech of about %speech% s", values)
  if (speaking === 0) return say("No speech in a clip of %clip% s.", values) + hint
  if (speaking > seconds) return say("Speech of about %speech% s in a clip of %clip% s: too long", values)
  return say("Speech of about %speech% s in a clip of %clip% s", values)
}

function makeElement(name, className = "", text = "") {
  const element = document.createElement(name)
  element.className = className
  element.textContent = text
  return element
}
