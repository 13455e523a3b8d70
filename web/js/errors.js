// Newer pages keep an error's own words behind a button. Those of Ovi's nodes, and of Ovi inside other nodes, say what
// to do: they are shown at once, unless the page shows them itself.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

// Of this extension, as errors name it.
const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3))
const MILLISECONDS = 500 // in which a page that shows the words does so
const SHOWN_MILLISECONDS = 20_000
const ENOUGH = 40 // letters, by which words are found again though the page cuts them

app.registerExtension({
  name: "Ovi.Errors",
  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      if (isOurs(detail)) tell(detail.node_type, detail.exception_message)
    })
    tellRefusals()
  },
})

function isOurs({ node_type, traceback }) {
  const raisedIn = [...(traceback ?? [])].at(-1) ?? ""
  return node_type.startsWith("Ovi") || raisedIn.includes(`/${FOLDER}/`) || raisedIn.includes(`\\${FOLDER}\\`)
}

// What is refused before a run is known only to who asked for the run. ComfyUI says it of every input that was looked
// at.
function tellRefusals() {
  const queuePrompt = api.queuePrompt
  api.queuePrompt = async function (...request) {
    try {
      return await queuePrompt.apply(this, request)
    } catch (error) {
      for (const { class_type, errors } of Object.values(error?.response?.node_errors ?? {})) {
        if (!class_type.startsWith("Ovi")) continue
        const refused = errors.filter(({ type }) => type === "custom_validation_failed")
        const words = refused.map(({ details }) => details.replace(/^\w+ - /, ""))
        for (const sentence of new Set(words)) tell(class_type, sentence)
      }
      throw error
    }
  }
}

function tell(type, words) {
  setTimeout(() => {
    if (document.body.innerText.includes(words.slice(0, ENOUGH))) return
    const name = window.LiteGraph?.registered_node_types[type]?.title ?? type
    app.extensionManager.toast.add({ severity: "error", summary: name, detail: words, life: SHOWN_MILLISECONDS })
  }, MILLISECONDS)
}
