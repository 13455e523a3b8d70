// Which parts of a prompt are spoken and which are heard, what is wrong with its tags, and how long the speech takes.
// The tags are those of ovi_model/text/prompt.py, which has the last word when the workflow runs.

import { say } from "./words.js"

const CLOSED_BY = { "<S>": "<E>", "<AUDCAP>": "<ENDAUDCAP>" }
const OPENED_BY = { "<E>": "<S>", "<ENDAUDCAP>": "<AUDCAP>" }
const MEANT = { "</S>": "<E>", "</E>": "<E>", "</AUDCAP>": "<ENDAUDCAP>", "</ENDAUDCAP>": "<ENDAUDCAP>" }
const TAG = /<\/?(?:S|E|AUDCAP|ENDAUDCAP)>|Audio:/g

// Spans of a clip that begin a part of a prompt: "0-2 s: ...", "[2s to 5s] ...", "(0:05-0:08) ...".
const TIME = String.raw`(\d{1,2}:\d\d|\d{1,3}(?:\.\d+)?)`
const UNIT = String.raw`\s*(?:s|secs?|seconds?)`
const SPAN = new RegExp(
  String.raw`[\[(]?\b${TIME}(?:${UNIT})?\s*(?:-|\u2013|\u2014|\bto\b)\s*${TIME}(${UNIT}\b)?\s*(?:[\])]\s*:?|:)`,
  "gi",
)
const LONGEST = 60 // seconds; later times are those of a clock
// What is spoken, or written on something that is seen.
const WORDS = /<S>.*?<E>|"[^"]*"|\u201c[^\u201d]*\u201d/gs

// A person says about twelve words in five seconds.
const SECONDS_A_WORD = 5 / 12

// Return the parts of a prompt in order, each { text, kind } with kind picture, speech, sound, tag or fault, and the
// faults as sentences.
export function readPrompt(text) {
  const parts = []
  const faults = []
  const open = {} // the part of each opening tag that is not closed yet
  let named = false // whether what follows "Audio:" is reached
  let end = 0

  const add = (to, kind) => {
    const part = { text: text.slice(end, to), kind }
    if (to > end) parts.push(part)
    end = to
    return part
  }
  const kindHere = () => (open["<S>"] ? "speech" : named || open["<AUDCAP>"] ? "sound" : "picture")

  for (const match of text.matchAll(TAG)) {
    const tag = match[0]
    add(match.index, kindHere())
    const place = match.index + tag.length
    if (tag === "Audio:") {
      named ||= !open["<AUDCAP>"]
      add(place, kindHere())
      continue
    }
    const fault = faultOf(tag, open)
    if (fault) faults.push(fault)
    const part = add(place, fault ? "fault" : "tag")
    if (tag in CLOSED_BY) open[tag] = part
    else delete open[OPENED_BY[MEANT[tag] ?? tag]]
  }
  add(text.length, kindHere())
  for (const [tag, part] of Object.entries(open)) {
    part.kind = "fault"
    faults.push(say("%tag% is not closed: add %missing% where it ends", { tag, missing: CLOSED_BY[tag] }))
  }
  if (hasTimes(text)) faults.push(say("Ovi reads no times in a prompt: make each part a clip, with Ovi Continue"))
  return { parts, faults }
}

// Whether parts of a prompt have spans of the clip, one after the other from 0 on.
function hasTimes(text) {
  let count = 0
  let reached = 0
  for (const [, from, to, unit] of text.replace(WORDS, (words) => " ".repeat(words.length)).matchAll(SPAN)) {
    const [start, end] = [seconds(from), seconds(to)]
    const isNext = start >= reached && start < end && end <= LONGEST && (count > 0 || start === 0)
    if (isNext && (unit || to.includes(":"))) {
      count += 1
      reached = end
    }
  }
  return count > 1
}

// "2.5", or minutes and seconds, "0:02".
function seconds(time) {
  return time.split(":").reduce((sum, part) => 60 * sum + Number(part), 0)
}

function faultOf(tag, open) {
  if (tag in MEANT) return say("%tag% is not a tag of Ovi: write %meant%", { tag, meant: MEANT[tag] })
  if (open[tag]) {
    return say("%tag% opens before the last %tag% is closed: add %missing%", { tag, missing: CLOSED_BY[tag] })
  }
  if (tag in OPENED_BY && !open[OPENED_BY[tag]]) {
    return say("%tag% closes nothing: add %missing% before it", { tag, missing: OPENED_BY[tag] })
  }
  return null
}

// Return how long the spoken parts take to say, in seconds; 0 without any.
export function speakingSeconds(parts) {
  const words = parts.filter((part) => part.kind === "speech").map((part) => countWords(part.text))
  return words.reduce((sum, count) => sum + count, 0) * SECONDS_A_WORD
}

// Return { text, start, end } in seconds for each spoken part: in order, with equal rests before, between and behind
// them. What does not fit a clip of so many seconds runs past its end.
export function placeSpeech(parts, seconds) {
  const spoken = parts.filter((part) => part.kind === "speech" && part.text.trim())
  const lengths = spoken.map((part) => countWords(part.text) * SECONDS_A_WORD)
  const speaking = lengths.reduce((sum, length) => sum + length, 0)
  const rest = Math.max(0, seconds - speaking) / (spoken.length + 1)
  let end = 0
  return spoken.map((part, place) => {
    const start = end + rest
    end = start + lengths[place]
    return { text: part.text.trim(), start, end }
  })
}

// Not every script puts spaces between words.
const segmenter = globalThis.Intl?.Segmenter && new Intl.Segmenter(undefined, { granularity: "word" })

function countWords(text) {
  if (!segmenter) return text.split(/\s+/).filter(Boolean).length
  return [...segmenter.segment(text)].filter((segment) => segment.isWordLike).length
}
