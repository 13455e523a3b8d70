// What our parts of the page say, in the page's language: locales/<language>/main.json has it by the English sentence,
// which stands where it is said. Others of the page's languages read English.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const SETTING = "Comfy.Locale"

let words = {}
let language = "en"

app.registerExtension({
  name: "Ovi.Words",
  setup() {
    // Some pages tell of a change before they make it.
    app.ui.settings.addEventListener(`${SETTING}.change`, ({ detail }) => learn(detail.value))
    return learn(app.ui.settings.getSettingValue(SETTING))
  },
})

async function learn(wanted = "en") {
  const all = wanted === "en" ? {} : await (await api.fetchApi("/i18n")).json()
  words = all[wanted]?.ovi ?? {}
  language = wanted
}

// Return the language of what is said now; what is shown in another is to be said anew.
export function spokenLanguage() {
  return language
}

// Return a sentence; %name% in it stands for a value.
export function say(sentence, values = {}) {
  return (words[sentence] ?? sentence).replace(/%(\w+)%/g, (_, name) => values[name])
}
