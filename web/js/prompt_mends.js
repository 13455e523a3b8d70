// What Ovi may read as something else than was meant, and the prompt as it is mended. The rules are those of
// ovi_model/text/advice.py and ovi_model/text/mends.py, which speak and mend when the workflow runs.

import { say } from "./words.js"

const TAGS = ["<S>", "<E>", "<AUDCAP>", "<ENDAUDCAP>"]
const CLOSED_BY = { "<S>": "<E>", "<AUDCAP>": "<ENDAUDCAP>" }
const MEANT = { "</S>": "<E>", "</E>": "<E>", "</AUDCAP>": "<ENDAUDCAP>", "</ENDAUDCAP>": "<ENDAUDCAP>" }
const LIKE_A_TAG = /<\s*\/?\s*(?:S|E|AUDCAP|ENDAUDCAP)\s*>/gi
const LIKE_A_NAME = /(?<![\p{L}\p{N}_])audio\s*[:\uff1a]/iu
const SPEECH = /<S>[^]*?<E>/g
const SOUND = /Audio:|<AUDCAP>/
const QUOTES = [
  '"[^"]+"',
  "\u201c[^\u201d]+\u201d",
  "\u201e[^\u201c\u201d]+[\u201c\u201d]",
  "\u00ab[^\u00bb]+\u00bb",
  "\u300c[^\u300d]+\u300d",
  "\u300e[^\u300f]+\u300f",
  "(?<![\\p{L}\\p{N}_])['\u2018](?=[\\p{L}\\p{N}_]).{1,300}?['\u2019](?![\\p{L}\\p{N}_])",
]
const QUOTED = new RegExp(QUOTES.join("|"), "gu")
const VERBS = [
  "says?|said|saying|asks?|asked|asking|answers?|answered|repl(?:y|ies|ied)|tells?|told",
  "whispers?|whispered|whispering|shouts?|shouted|shouting|yells?|yelled|cries|cried",
  "sings?|sang|singing|speaks?|spoke|speaking|calls?|called|exclaims?|mutters?|murmurs?",
]
const SPOKEN = new RegExp(`\\b(?:${VERBS.join("|")})\\b[^.<>]{0,40}$`)
// Quoted words that are seen: on a sign, or as a name.
const SEEN = [
  "reads?|reading|signs?|posters?|screens?|titled?|label(?:s|l?ed)?|written|writing|named",
  "words?|letters?|logo|caption",
]
const WRITTEN = new RegExp(`\\b(?:${SEEN.join("|")})\\b[^.<>]{0,20}$`)
export const PEOPLE = /<(?:img|sub)\d+>/ // a prompt of Ovi References has a form of its own
const LETTERS_BEFORE = 60 // quoted words, in which a word like "says" is looked for
const QUIET = "Audio: quiet room tone."
// The model reads 512 tokens; English takes them with about so many words.
const MOST_WORDS = 350

// Return { says, mended } for each: what is wrong, in a sentence, and the prompt without it.
export function findMends(text) {
  if (!text.trim()) return []
  return [mendTags, mendClosing, mendName, mendSound, mendQuotes, mendLength].map((mend) => mend(text)).filter(Boolean)
}

// What is spoken is blanked; all else stays at its place.
const withoutSpeech = (text) => text.replace(SPEECH, (spoken) => " ".repeat(spoken.length))

function soundStart(text) {
  const start = withoutSpeech(text).search(SOUND)
  return start < 0 ? null : start
}

function mendTags(text) {
  const meant = (found) => {
    const tag = found.replace(/\s/g, "").toUpperCase()
    return MEANT[tag] ?? tag
  }
  const wrong = (text.match(LIKE_A_TAG) ?? []).find((found) => !TAGS.includes(found))
  if (!wrong) return null
  const mended = text.replace(LIKE_A_TAG, (found) => (TAGS.includes(found) ? found : meant(found)))
  return { says: say("%tag% is read as letters: %meant% is the tag", { tag: wrong, meant: meant(wrong) }), mended }
}

// A tag that is not closed is closed before the next one, the sound or the end of its line.
function mendClosing(text) {
  for (const [opening, closing] of Object.entries(CLOSED_BY)) {
    let open = null
    for (const match of text.matchAll(new RegExp(`${opening}|${closing}`, "g"))) {
      if (match[0] === closing && open === null) {
        const mended = text.slice(0, match.index) + text.slice(match.index + closing.length)
        return { says: say("%tag% closes nothing", { tag: closing }), mended }
      }
      if (match[0] === opening && open !== null) break
      open = match[0] === opening ? match.index : null
    }
    if (open === null) continue
    return { says: say("%tag% is not closed", { tag: opening }), mended: close(text, open, opening, closing) }
  }
  return null
}

function close(text, open, opening, closing) {
  const from = open + opening.length
  const next = text.slice(from).search(/<S>|<AUDCAP>|Audio:|\n/)
  const to = next < 0 ? text.length : from + next
  const words = text.slice(from, to).trimEnd()
  return text.slice(0, from) + words + closing + text.slice(from + words.length)
}

function mendName(text) {
  if (soundStart(text) !== null) return null
  const match = LIKE_A_NAME.exec(withoutSpeech(text))
  if (!match) return null
  const mended = `${text.slice(0, match.index)}Audio:${text.slice(match.index + match[0].length)}`
  return { says: say("%found% does not begin the sound: Audio: does", { found: match[0] }), mended }
}

function mendSound(text) {
  const read = withoutSpeech(text)
  if (soundStart(text) !== null || LIKE_A_NAME.test(read) || /<S>/.test(read)) return null
  if (PEOPLE.test(text)) return null
  return { says: say("Nothing is said of the sound"), mended: `${text.trimEnd()}\n\n${QUIET}` }
}

// Quoted words: where nothing is tagged as speech any but those on a sign, else those after a word like "says" that
// hold no tagged speech.
function mendQuotes(text) {
  const picture = withoutSpeech(text).slice(0, soundStart(text) ?? undefined)
  const hasSpeech = text.search(SPEECH) >= 0
  for (const match of picture.matchAll(QUOTED)) {
    const before = picture.slice(Math.max(0, match.index - LETTERS_BEFORE), match.index)
    const end = match.index + match[0].length
    const isTagged = text.slice(match.index, end).includes("<S>")
    if (hasSpeech ? isTagged || !SPOKEN.test(before) : WRITTEN.test(before)) continue
    const mended = `${text.slice(0, match.index)}<S>${match[0].slice(1, -1)}<E>${text.slice(end)}`
    return { says: say("%quoted% is not spoken: quotes are read as letters", { quoted: match[0] }), mended }
  }
  return null
}

const countWords = (text) => text.split(/\s+/).filter(Boolean).length

// The end, where the sound stands, would be cut; so the last sentences of the picture go, but none with a tag.
function mendLength(text) {
  const words = countWords(text)
  if (words <= MOST_WORDS) return null
  const start = soundStart(text) ?? text.length
  const sentences = text.slice(0, start).match(/[^.!?\n]*[.!?\n]+\s*|[^.!?\n]+$/g) ?? []
  let over = words - MOST_WORDS
  for (let last = sentences.length - 1; last > 0 && over > 0; last--) {
    if (/[<>]/.test(sentences[last])) continue
    over -= countWords(sentences[last])
    sentences.splice(last, 1)
  }
  const says = say("%words% words: about %most% are read, and the end is cut", { words, most: MOST_WORDS })
  return { says, mended: over > 0 ? null : `${sentences.join("").trimEnd()}\n\n${text.slice(start)}`.trimEnd() }
}
